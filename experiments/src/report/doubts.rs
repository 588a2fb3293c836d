//! What a reader should know of a folder's records before its tables: numbers that do not follow from what stands beside them, and
//! cells that the experiment does not ask for.

use std::collections::BTreeSet;
use std::path::Path;

use crate::eval::registry::MetricKey;
use crate::plan::{Cell, CellId, Plan};
use crate::record::{Line as _, Measurement, Outcome, RESOLVED_CONFIG, StoredRecord};

/// By how much a number may differ from what its samples make, of its size: another program may have summed in another order.
const TOLERANCE: f64 = 1e-6;

/// A sentence for each number of the newest records of the plan's cells that is not what its own samples make.
pub fn numbers(folder: &Path, plan: &Plan, records: &[StoredRecord]) -> Vec<String> {
    let path = folder.join(StoredRecord::FILE);
    let of_cell = |cell: &Cell| {
        let id = cell.id();
        let newest = records.iter().rev().find(|record| record.cell_id == id);
        let Some(Outcome::Done(done)) = newest.map(|record| &record.outcome) else { return Vec::new() };
        let said = |measurement: &Measurement| {
            let made = MetricKey::of_record(&measurement.metric).ok()?.quantity().estimator;
            let made = made.value(measurement.weighted_samples());
            let is_off = (made - measurement.value).abs() > TOLERANCE * made.abs().max(measurement.value.abs());
            (!measurement.samples.is_empty() && is_off).then(|| {
                format!(
                    "{}: {}: {} on {} is {} on record, and its {} samples make {made}: the record was changed or damaged; run the \
                     cell again with --rerun",
                    path.display(),
                    cell.label(),
                    measurement.metric,
                    measurement.dataset,
                    measurement.value,
                    measurement.samples.len(),
                )
            })
        };
        done.measurements.iter().filter_map(said).collect()
    };
    plan.cells().flat_map(of_cell).collect()
}

/// A sentence where finished cells are on record that the plan does not have.
pub fn other_cells(folder: &Path, plan: &Plan, records: &[StoredRecord]) -> Option<String> {
    let asked: BTreeSet<CellId> = plan.cells().map(Cell::id).collect();
    let is_other =
        |record: &&StoredRecord| matches!(record.outcome, Outcome::Done(_)) && !asked.contains(&record.cell_id);
    let others: BTreeSet<&CellId> = records.iter().filter(is_other).map(|record| &record.cell_id).collect();
    (!others.is_empty()).then(|| {
        format!(
            "{}: {} finished cells on record are not asked for by {} beside it, and are not shown",
            folder.join(StoredRecord::FILE).display(),
            others.len(),
            RESOLVED_CONFIG
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::tests::{done, plan, records};
    use super::*;
    use crate::record::{Record, RecordFile, read_records};

    fn stored(records: &[Record]) -> Vec<StoredRecord> {
        let folder = tempfile::tempdir().unwrap();
        let mut file = RecordFile::<StoredRecord>::open(folder.path()).unwrap();
        records.iter().for_each(|record| file.append(record).unwrap());
        read_records(folder.path()).unwrap().0
    }

    #[test]
    fn a_number_that_its_samples_do_not_make_is_named() {
        let mut records = records();
        let plan = plan(&records, Vec::new());
        assert_eq!(numbers(Path::new("out"), &plan, &stored(&records)), Vec::<String>::new());
        let measurement = &mut done(&mut records[2]).measurements[0];
        measurement.value = 5.0;
        let said = numbers(Path::new("out"), &plan, &stored(&records));
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("out/records.jsonl: Tiny_1M RTN W4 g128: token_perplexity on "), "{said:?}");
        assert!(said[0].contains(" is 5 on record, and its "), "{said:?}");
        // Samples that were lost make another number, too.
        let measurement = &mut done(&mut records[3]).measurements[0];
        measurement.samples.truncate(1);
        assert_eq!(numbers(Path::new("out"), &plan, &stored(&records)).len(), 2);
        // An older record does not count.
        let first = records[2].clone();
        let whole = super::super::tests::records();
        assert_eq!(numbers(Path::new("out"), &plan, &stored(&[&[first][..], &whole].concat())), Vec::<String>::new());
    }

    #[test]
    fn cells_of_another_experiment_are_counted() {
        let records = records();
        let folder = Path::new("out");
        assert_eq!(other_cells(folder, &plan(&records, Vec::new()), &stored(&records)), None);
        let of_few = plan(&records[1..3], Vec::new());
        let said = other_cells(folder, &of_few, &stored(&records)).unwrap();
        assert_eq!(
            said,
            "out/records.jsonl: 3 finished cells on record are not asked for by experiment.toml beside it, and are not shown"
        );
    }
}
