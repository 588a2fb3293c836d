//! Runs the cells of a finished experiment again and compares: the same config, lock file and CPU must give the same codes.

use std::collections::BTreeSet;

use anyhow::Context;

use crate::assets::AssetStore;
use crate::inputs::differences;
use crate::plan::{Cell, ModelPlan, Plan};
use crate::progress::Progress;
use crate::record::{Done, Measurement, Outcome, RecordFile, StoredRecord, read_records};
use crate::runner::{RunOptions, run};

/// A cell of the plan with its newest finished record.
#[derive(Clone, Copy, Debug)]
pub struct Finished<'a> {
    /// The cell, with the names that the plan gives it.
    pub cell: &'a Cell,
    /// The record.
    pub record: &'a StoredRecord,
    /// What it holds.
    pub done: &'a Done,
}

/// One cell, then and now.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// How messages name the cell.
    pub label: String,
    /// What came of the second run.
    pub again: Again,
    /// Files of the model, and texts, that are not what they were.
    pub changed: Vec<String>,
}

/// What a second run gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Again {
    /// It finished.
    Ran {
        /// Whether codes, scales and zero points have the hash on record; `None` for full precision.
        same_codes: Option<bool>,
        /// Whether every number measured, of every window, is bit for bit the one on record, and every text that was written.
        same_numbers: bool,
        /// Largest relative difference of a number; NaN where other things were measured.
        largest_difference: f64,
    },
    /// It could not be run, and why.
    Failed(String),
}

impl Verdict {
    /// Whether codes and numbers are bit for bit what they were.
    pub fn same(&self) -> bool {
        matches!(self.again, Again::Ran { same_codes: None | Some(true), same_numbers: true, .. })
    }
}

/// The cells of `plan` that `records` holds finished, in the plan's order.
pub fn finished<'a>(plan: &'a Plan, records: &'a [StoredRecord]) -> Vec<Finished<'a>> {
    let of_cell = |cell: &'a Cell| {
        let id = cell.id();
        records.iter().rev().find_map(|record| match &record.outcome {
            Outcome::Done(done) if record.cell_id == id => Some(Finished { cell, record, done }),
            _ => None,
        })
    };
    plan.cells().filter_map(of_cell).collect()
}

/// Runs the finished cells of `plan` again, in a temporary folder.
///
/// # Errors
/// Anything that stops a whole run.
pub fn verify(
    plan: &Plan,
    finished: &[Finished<'_>],
    options: &RunOptions,
    store: &AssetStore,
    progress: &Progress,
) -> anyhow::Result<Vec<Verdict>> {
    let models = plan.models.iter().map(|model| {
        let is_finished = |id| finished.iter().any(|finished| finished.record.cell_id == id);
        let cells = model.cells.iter().filter(|cell| is_finished(cell.id())).cloned().collect();
        ModelPlan { model: model.model.clone(), cells }
    });
    let again = Plan { models: models.collect(), ..plan.clone() };
    let folder = tempfile::tempdir().context("cannot create a temporary folder to verify in")?;
    run(&again, options, RecordFile::open(folder.path())?, store, progress)?;
    let (now, _): (Vec<StoredRecord>, _) = read_records(folder.path())?;
    let verdict = |then: &Finished<'_>| {
        let record = now.iter().find(|record| record.cell_id == then.record.cell_id);
        let again = match record.map(|record| &record.outcome) {
            Some(Outcome::Done(after)) => compare(then.done, after),
            Some(Outcome::Failed(failed)) => Again::Failed(failed.error.clone()),
            None => Again::Failed("it did not run".into()),
        };
        let assets = record.map(|record| &record.provenance.assets).filter(|assets| !assets.is_empty());
        let changed = assets.map_or_else(Vec::new, |now| differences(&then.record.provenance.assets, now));
        Verdict { label: then.cell.label(), again, changed }
    };
    Ok(finished.iter().map(verdict).collect())
}

fn compare(before: &Done, after: &Done) -> Again {
    let codes = |done: &Done| done.quantization.as_ref().map(|quantization| quantization.codes_sha256.clone());
    let same_codes = match (codes(before), codes(after)) {
        (None, None) => None,
        (then, now) => Some(then == now),
    };
    let (then, now) = (numbers(before), numbers(after));
    let comparable = before.measurements.len() == after.measurements.len()
        && before.measurements.iter().zip(&after.measurements).all(same_measurement)
        && then.len() == now.len();
    let largest_difference = if comparable {
        then.iter().zip(&now).map(|(&a, &b)| relative_difference(a, b)).fold(0.0, f64::max)
    } else {
        f64::NAN
    };
    let same_texts = before.measurements.iter().zip(&after.measurements).all(|(a, b)| a.written == b.written);
    Again::Ran { same_codes, same_numbers: same_texts && largest_difference == 0.0, largest_difference }
}

/// Whether both measured the same thing, so that their numbers may be compared at all.
fn same_measurement((a, b): (&Measurement, &Measurement)) -> bool {
    let names =
        |m: &Measurement| [&m.metric, &m.dataset, &m.protocol, &m.text_sha256, &m.tokenizer_sha256].map(Clone::clone);
    let counts = |m: &Measurement| (m.seq_len, m.arithmetic, m.n_windows, m.n_windows_total, m.n_tokens);
    names(a) == names(b) && counts(a) == counts(b)
}

/// Every number that a table is made of.
fn numbers(done: &Done) -> Vec<f64> {
    let measured = done.measurements.iter().flat_map(|m| {
        std::iter::once(m.value)
            .chain(m.standard_error)
            .chain(m.floor)
            .chain(m.samples.iter().chain(&m.weights).copied())
    });
    measured.chain(done.quantization.as_ref().map(|quantization| quantization.bits_per_weight)).collect()
}

fn relative_difference(a: f64, b: f64) -> f64 {
    if a == b { 0.0 } else { (a - b).abs() / a.abs().max(b.abs()) }
}

/// The verdicts as a table for the terminal.
pub fn table(verdicts: &[Verdict]) -> String {
    let width = verdicts.iter().map(|verdict| verdict.label.len()).max().unwrap_or(0).max(4);
    let mut lines = vec![format!("{:width$}  codes      numbers    largest relative difference", "cell")];
    for Verdict { label, again, .. } in verdicts {
        lines.push(match again {
            Again::Ran { same_codes, same_numbers, largest_difference } => {
                let codes = same_codes.map_or("-", identical);
                format!("{label:width$}  {codes:9}  {:9}  {largest_difference:.1e}", identical(*same_numbers))
            }
            Again::Failed(error) => format!("{label:width$}  FAILED: {error}"),
        });
    }
    let changed: BTreeSet<&String> = verdicts.iter().flat_map(|verdict| &verdict.changed).collect();
    lines.extend(changed.into_iter().map(|change| format!("Changed since the record: {change}")));
    let n_same = verdicts.iter().filter(|verdict| verdict.same()).count();
    lines.push(format!("{n_same} of {} cells are identical to the record.", verdicts.len()));
    lines.join("\n") + "\n"
}

fn identical(same: bool) -> &'static str {
    if same { "identical" } else { "DIFFERENT" }
}
