//! The draws of a calibration as one row: the mean over draws, its interval, and how far the draws lie apart.
//!
//! The mean is taken of samples (of a perplexity: negative log-likelihoods), window by window, before anything else: the
//! perplexity of several draws is `exp` of the mean over draws and windows, the geometric mean of the draws' own perplexities.
//! Its interval is that of these mean windows, paired with another row's as if it were one cell. It tells what other windows would change; what another
//! draw would change is the spread, from the lowest value of a draw to the highest.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::frame;
use super::row::Row;
use super::tables::{decimals, missing, number};
use crate::config::ReferenceValue;
use crate::eval::registry::MetricKey;
use crate::inputs::differences;
use crate::plan::CellId;
use crate::record::{Done, Measurement, Outcome, Record};
use crate::stats::Estimator;

/// What a report is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows<'a> {
    /// One a measurement of each cell, for programs.
    pub cells: Vec<Row>,
    /// One a measurement of all draws of a cell together, for tables and figures.
    pub shown: Vec<Row>,
    /// What `shown` is made of, under the cell of the first draw, and the failures.
    pub records: Vec<Cow<'a, Record>>,
}

/// The rows of `newest` ([`frame::newest`]), in the order of [`frame::rows`].
///
/// # Errors
/// A metric that this program does not know.
pub fn rows<'a>(newest: &[&'a Record], references: &[ReferenceValue], baseline: &str) -> anyhow::Result<Rows<'a>> {
    let mut cells = frame::rows(newest, references, baseline)?;
    let groups = groups(newest);
    let failed = newest.iter().filter(|record| measurements(record).is_none());
    let records: Vec<Cow<'a, Record>> =
        groups.iter().map(|group| mean_record(group)).chain(failed.map(|&record| Cow::Borrowed(record))).collect();
    if groups.iter().all(|group| group.len() == 1) {
        return Ok(Rows { shown: cells.clone(), cells, records });
    }
    let means: Vec<&Record> = records.iter().map(|record| &**record).collect();
    let mut shown = frame::rows(&means, references, baseline)?;
    for row in &mut shown {
        let is_first = |group: &&Vec<&Record>| group[0].cell_id.0 == row.cell_id;
        let Some(group) = groups.iter().find(is_first).filter(|group| group.len() > 1) else { continue };
        let ids: BTreeSet<&str> = group.iter().map(|record| record.cell_id.0.as_str()).collect();
        let is_draw = |cell: &Row| ids.contains(cell.cell_id.as_str()) && cell.is_comparable(row);
        let draws: Vec<Row> = cells.iter().filter(|cell| is_draw(cell)).cloned().collect();
        let spread = Spread::of(&draws);
        cells.iter_mut().filter(|cell| is_draw(cell)).for_each(|cell| spread.write(cell));
        spread.write(row);
        summarize(row, &draws);
    }
    Ok(Rows { cells, shown, records })
}

/// How far the draws of a cell lie apart.
struct Spread {
    n_draws: u64,
    low: f64,
    high: f64,
}

impl Spread {
    fn of(draws: &[Row]) -> Self {
        let values = || draws.iter().map(|draw| draw.value);
        Self {
            n_draws: draws.len() as u64,
            low: values().fold(f64::INFINITY, f64::min),
            high: values().fold(f64::NEG_INFINITY, f64::max),
        }
    }

    fn write(&self, row: &mut Row) {
        row.n_draws = Some(self.n_draws);
        (row.draws_low, row.draws_high) = (Some(self.low), Some(self.high));
    }
}

/// What a row of several draws says beside its value: means, the worst overlap, every commit.
fn summarize(row: &mut Row, draws: &[Row]) {
    let mean = |value: fn(&Row) -> Option<f64>| {
        let values: Vec<f64> = draws.iter().filter_map(value).collect();
        (values.len() == draws.len()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    row.draw = None;
    row.codes_sha256 = None;
    row.changed_steps = mean(|draw| draw.changed_steps);
    row.step_ratio = mean(|draw| draw.step_ratio);
    row.step_ratio_over_scale = mean(|draw| draw.step_ratio_over_scale);
    row.calibration_overlap_tokens = draws.iter().filter_map(|draw| draw.calibration_overlap_tokens).max();
    let commits: BTreeSet<&str> = draws.iter().map(|draw| draw.commit.as_str()).collect();
    row.commit = Vec::from_iter(commits).join(Row::BETWEEN_COMMITS);
    row.dirty = draws.iter().map(|draw| draw.dirty).max().flatten();
}

/// The finished records, those together that are draws of one cell and were scored on the same windows with the same files.
fn groups<'a>(newest: &[&'a Record]) -> Vec<Vec<&'a Record>> {
    let mut groups: Vec<Vec<&Record>> = Vec::new();
    let mut of_first: BTreeMap<CellId, Vec<usize>> = BTreeMap::new();
    for &record in newest.iter().filter(|record| measurements(record).is_some()) {
        let known = of_first.entry(record.cell.first_draw_id()).or_default();
        match known.iter().find(|&&index| may_be_averaged(groups[index][0], record)) {
            Some(&index) => groups[index].push(record),
            None => {
                known.push(groups.len());
                groups.push(vec![record]);
            }
        }
    }
    groups
}

fn measurements(record: &Record) -> Option<&[Measurement]> {
    match &record.outcome {
        Outcome::Done(done) => Some(&done.measurements),
        Outcome::Failed(_) => None,
    }
}

fn may_be_averaged(a: &Record, b: &Record) -> bool {
    let same_windows = match (measurements(a), measurements(b)) {
        (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| frame::same_windows(a, b)),
        _ => false,
    };
    same_windows && differences(&a.provenance.assets, &b.provenance.assets).is_empty()
}

/// A record of the mean over draws, under the cell of the first.
fn mean_record<'a>(draws: &[&'a Record]) -> Cow<'a, Record> {
    if draws.len() == 1 {
        return Cow::Borrowed(draws[0]);
    }
    let mut record = draws[0].clone();
    if let Outcome::Done(done) = &mut record.outcome {
        for (index, measurement) in done.measurements.iter_mut().enumerate() {
            let of_draws: Vec<&Measurement> = draws.iter().filter_map(|draw| measurements(draw)?.get(index)).collect();
            average(measurement, &of_draws);
        }
        average_cost(done, draws);
    }
    Cow::Owned(record)
}

fn average(measurement: &mut Measurement, draws: &[&Measurement]) {
    let mean =
        |value: &dyn Fn(&Measurement) -> f64| draws.iter().map(|draw| value(draw)).sum::<f64>() / draws.len() as f64;
    // A metric that is not known has made no row.
    let estimator =
        MetricKey::of_record(&measurement.metric).map_or(Estimator::Mean, |metric| metric.quantity().estimator);
    measurement.value = estimator.of_mean(mean(&|draw| estimator.mean_of(draw.value)));
    measurement.samples = (0..measurement.samples.len()).map(|window| mean(&|draw| draw.samples[window])).collect();
    measurement.seconds = mean(&|draw| draw.seconds);
    // The error over windows follows from the windows of the mean. One over tokens is not known of it: draws agree on what is
    // hard, so that the mean of their errors is close, and never too small.
    measurement.standard_error = match measurement.protocol.as_str() {
        "llama-cpp" => draws
            .iter()
            .all(|draw| draw.standard_error.is_some())
            .then(|| mean(&|draw| draw.standard_error.unwrap_or_default())),
        _ => None,
    };
}

/// The mean cost of a draw.
fn average_cost(done: &mut Done, draws: &[&Record]) {
    let costs: Vec<_> = draws
        .iter()
        .filter_map(|draw| match &draw.outcome {
            Outcome::Done(done) => Some(done.cost.clone()),
            Outcome::Failed(_) => None,
        })
        .collect();
    let n = costs.len() as f64;
    done.cost.quantize_seconds = costs.iter().map(|cost| cost.quantize_seconds).sum::<f64>() / n;
    done.cost.shared_capture_seconds = costs.iter().map(|cost| cost.shared_capture_seconds).sum::<f64>() / n;
    done.cost.evaluate_seconds = costs.iter().map(|cost| cost.evaluate_seconds).sum::<f64>() / n;
    done.cost.peak_resident_bytes = costs.iter().map(|cost| cost.peak_resident_bytes).max().unwrap_or_default();
}

/// Whether a row is the mean of several draws.
fn is_mean(row: &Row) -> bool {
    row.n_draws.is_some_and(|n_draws| n_draws > 1)
}

/// Whether a table of `rows` shows the mean of several draws.
pub(super) fn any<'a>(rows: impl IntoIterator<Item = &'a Row>) -> bool {
    rows.into_iter().any(is_mean)
}

/// The heading of [`spread`].
pub(super) const HEADING: &str = "draws: low to high";

/// `3: 68.412 to 72.204`: draws of a row, and their lowest and highest value.
pub(super) fn spread(row: &Row) -> String {
    let (Some(n_draws), Some(low), Some(high)) = (row.n_draws, row.draws_low, row.draws_high) else { return missing() };
    let decimals = decimals(row.quantity().unit, high);
    format!("{n_draws}: {} to {}", number(low, decimals), number(high, decimals))
}

/// What the numbers of several draws are, a sentence after a blank; of rows of one metric.
pub(super) fn sentence<'a>(rows: impl IntoIterator<Item = &'a Row>) -> String {
    let Some(row) = rows.into_iter().find(|row| is_mean(row)) else { return String::new() };
    let quantity = row.quantity();
    let of = match quantity.estimator {
        Estimator::ExpOfMean => "that of the mean log-likelihood over draws",
        Estimator::Mean | Estimator::Largest => "the mean over draws",
        Estimator::RootOfMean => "the root of the mean square over draws",
    };
    format!(
        " Where a calibration is drawn several times, the {} is {of}, and its error and intervals are those of the mean, each \
         window averaged over draws first; how far single draws lie apart is beside it.",
        quantity.label
    )
}
