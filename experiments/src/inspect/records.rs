//! [`RecordsFacts`]: a folder that an experiment wrote: what was asked, and what of it is there.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::config::ExperimentSpec;
use crate::plan::{CellId, Plan};
use crate::record::{Labels, Line as _, Outcome, RESOLVED_CONFIG, StoredRecord, read_records};

/// A folder of results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RecordsFacts {
    /// What the user calls it.
    pub name: String,
    /// The question of the experiment.
    pub question: Option<String>,
    /// Cells that the experiment asks for; absent where its file is not there or not read.
    pub n_asked: Option<usize>,
    /// Cells whose newest record is a result; of the experiment, where it is known.
    pub n_finished: usize,
    /// Cells whose newest record is a failure, likewise.
    pub failed: Vec<FailedCell>,
    /// Cells on record that the experiment no longer asks for.
    pub n_others: usize,
    /// Models of the finished cells.
    pub models: Vec<String>,
    /// Methods with their grids, of the finished cells.
    pub methods: Vec<String>,
    /// What was measured: metric and text.
    pub measured: Vec<String>,
    /// Commits of the programs that made the records.
    pub commits: Vec<String>,
    /// Devices that they were made on.
    pub devices: Vec<String>,
    /// When the first and the last of them was made, in seconds since the Unix epoch.
    pub unix_times: Option<(u64, u64)>,
    /// What a user should know of the files.
    pub notes: Vec<String>,
}

/// A cell that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailedCell {
    /// What it is called, or its id.
    pub cell: String,
    /// Where it failed.
    pub stage: &'static str,
    /// Why.
    pub error: String,
}

impl RecordsFacts {
    /// Reads the records of `folder`, and its experiment.
    ///
    /// # Errors
    /// Records of a newer program.
    pub(super) fn of(name: &str, folder: &Path) -> anyhow::Result<Self> {
        let mut notes = Vec::new();
        let records: Vec<StoredRecord> = if folder.join(StoredRecord::FILE).is_file() {
            let (records, of_file) = read_records(folder)?;
            notes.extend(of_file);
            records
        } else {
            notes.push(format!("no {} yet; run the experiment", StoredRecord::FILE));
            Vec::new()
        };
        let plan = match ExperimentSpec::read(&folder.join(RESOLVED_CONFIG)) {
            Ok(spec) => Some(Plan::new(&spec)),
            Err(error) => {
                notes.push(format!("what was asked is not known: {error:#}"));
                None
            }
        };
        Ok(Self { name: name.to_owned(), notes, ..Self::of_records(plan.as_ref(), &records) })
    }

    fn of_records(plan: Option<&Plan>, records: &[StoredRecord]) -> Self {
        // Records of before there were labels are called what the plan calls their cells.
        let asked: Option<BTreeMap<CellId, Labels>> =
            plan.map(|plan| plan.cells().map(|cell| (cell.id(), Labels::from(cell))).collect());
        let newest: BTreeMap<&CellId, &StoredRecord> = records.iter().map(|record| (&record.cell_id, record)).collect();
        let is_asked = |record: &StoredRecord| asked.as_ref().is_none_or(|asked| asked.contains_key(&record.cell_id));
        let mut facts = Self {
            question: plan.map(|plan| plan.question.clone()),
            n_asked: asked.as_ref().map(BTreeMap::len),
            n_others: newest.values().filter(|record| !is_asked(record)).count(),
            ..Self::default()
        };
        // In the order of the file.
        for record in records.iter().filter(|record| newest[&record.cell_id] == *record && is_asked(record)) {
            let labels = asked.as_ref().and_then(|asked| asked.get(&record.cell_id)).or(record.labels.as_ref());
            facts.add(record, labels);
        }
        facts
    }

    fn add(&mut self, record: &StoredRecord, labels: Option<&Labels>) {
        let made = record.provenance.unix_time;
        let (first, last) = self.unix_times.unwrap_or((made, made));
        self.unix_times = Some((first.min(made), last.max(made)));
        add(&mut self.commits, record.provenance.commit.clone());
        add(&mut self.devices, record.provenance.device.clone());
        match &record.outcome {
            Outcome::Done(done) => {
                self.n_finished += 1;
                if let Some(labels) = labels {
                    add(&mut self.models, labels.model.clone());
                    add(&mut self.methods, method_of(labels));
                }
                for one in &done.measurements {
                    add(&mut self.measured, format!("{} on {}", one.metric, one.dataset));
                }
            }
            Outcome::Failed(failed) => self.failed.push(FailedCell {
                cell: labels.map_or_else(
                    || record.cell_id.0.clone(),
                    |labels| format!("{} {}", labels.model, method_of(labels)),
                ),
                stage: failed.stage.name(),
                error: failed.error.clone(),
            }),
        }
    }
}

/// `AWQ W4 g128`.
fn method_of(labels: &Labels) -> String {
    labels.grid.as_ref().map_or_else(|| labels.method.clone(), |grid| format!("{} {grid}", labels.method))
}

fn add(list: &mut Vec<String>, one: String) {
    if !list.contains(&one) {
        list.push(one);
    }
}
