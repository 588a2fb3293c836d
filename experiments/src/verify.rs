//! Runs the cells of a finished experiment again and compares: the same config, lock file and CPU must give the same codes.

use std::path::Path;

use anyhow::Context;

use crate::assets::AssetStore;
use crate::plan::{CellId, ModelPlan, Plan};
use crate::progress::Progress;
use crate::record::{Done, Outcome, Record, read_records};
use crate::runner::{RunOptions, run};

/// One cell, then and now.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// How messages name the cell.
    pub label: String,
    /// Whether codes, scales and zero points have the hash on record; `None` for full precision.
    pub same_codes: Option<bool>,
    /// Largest relative difference of a measured value.
    pub largest_difference: f64,
    /// Why it could not be run again.
    pub error: Option<String>,
}

impl Verdict {
    /// Whether codes and numbers are bit for bit what they were.
    pub fn same(&self) -> bool {
        self.error.is_none() && self.same_codes != Some(false) && self.largest_difference == 0.0
    }
}

/// Runs every finished cell of `folder` again, in a temporary folder.
///
/// # Errors
/// Records that cannot be read, or anything that stops a whole run.
pub fn verify(
    folder: &Path,
    plan: &Plan,
    device: &str,
    threads: usize,
    store: &AssetStore,
    progress: &Progress,
) -> anyhow::Result<Vec<Verdict>> {
    let then = read_records(folder)?;
    let finished = |id: &CellId| then.iter().rev().find_map(|record| done(record, id));
    let models = plan.models.iter().map(|model| ModelPlan {
        model: model.model.clone(),
        cells: model.cells.iter().filter(|cell| finished(&cell.id()).is_some()).cloned().collect(),
    });
    let again = Plan { models: models.collect(), ..plan.clone() };
    let out = tempfile::tempdir().context("cannot create a temporary folder to verify in")?;
    let options = RunOptions { out: out.path().to_owned(), device: device.to_owned(), threads };
    run(&again, &options, store, progress)?;
    let now = read_records(out.path())?;
    let verdict = |cell: &crate::plan::Cell| {
        let (label, id) = (cell.label(), cell.id());
        let before = finished(&id)?;
        Some(match now.iter().find(|record| record.cell_id == id).map(|record| &record.outcome) {
            Some(Outcome::Done(after)) => compare(label, before, after),
            Some(Outcome::Failed(failed)) => {
                Verdict { label, same_codes: None, largest_difference: f64::NAN, error: Some(failed.error.clone()) }
            }
            None => {
                Verdict { label, same_codes: None, largest_difference: f64::NAN, error: Some("did not run".into()) }
            }
        })
    };
    Ok(again.cells().filter_map(verdict).collect())
}

fn done<'a>(record: &'a Record, id: &CellId) -> Option<&'a Done> {
    match &record.outcome {
        Outcome::Done(done) if record.cell_id == *id => Some(done),
        _ => None,
    }
}

fn compare(label: String, before: &Done, after: &Done) -> Verdict {
    let codes = before.quantization.as_ref().zip(after.quantization.as_ref());
    let difference =
        |(a, b): (&crate::record::Measurement, &crate::record::Measurement)| ((a.value - b.value) / a.value).abs();
    let largest_difference = before.measurements.iter().zip(&after.measurements).map(difference).fold(0.0, f64::max);
    Verdict { label, same_codes: codes.map(|(a, b)| a.codes_sha256 == b.codes_sha256), largest_difference, error: None }
}

/// The verdicts as a table for the terminal.
pub fn table(verdicts: &[Verdict]) -> String {
    let width = verdicts.iter().map(|verdict| verdict.label.len()).max().unwrap_or(0).max(4);
    let mut lines = vec![format!("{:width$}  codes      largest relative difference", "cell")];
    for verdict in verdicts {
        let codes = match verdict.same_codes {
            None => "-",
            Some(true) => "identical",
            Some(false) => "DIFFERENT",
        };
        let difference = match &verdict.error {
            Some(error) => error.clone(),
            None => format!("{:.1e}", verdict.largest_difference),
        };
        lines.push(format!("{:width$}  {codes:9}  {difference}", verdict.label));
    }
    lines.join("\n") + "\n"
}
