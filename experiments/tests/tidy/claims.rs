//! The sentences of `results/claims.md` and `results/first-looks.md` hold in the committed records that they name.
//!
//! A paragraph is followed by a comment with what must be true for it, a line each, which a reader does not see:
//!
//! ```text
//! <!-- check table4-smollm2
//! AWQ W3 g64 = 69.3
//! AWQ W3 g64 < RTN W3 g64
//! GPTQ W3 g64, quantized inputs ~ RTN W3 g64
//! -->
//! ```
//!
//! `=` is a perplexity to the digits that are written. `<` is better beyond the paired 95% interval of the log ratio, `~` neither
//! better nor worse beyond it. A row is named as messages name its cell, without the model; several draws of a calibration
//! are one row, the mean of their log-likelihoods; ` on TEXT` picks one of several texts,
//! ` on TEXT in bf16` products in another arithmetic.

use std::collections::BTreeMap;

use experiments::config::ExperimentSpec;
use experiments::plan::{Cell, Plan};
use experiments::record::{Outcome, StoredRecord, read_records};
use experiments::report::frame::BOOTSTRAP;
use experiments::stats::{self, Estimator, Interval};

use super::{read, root};

/// Mean negative log-likelihoods of the windows of each row, by its name.
struct Folder {
    rows: BTreeMap<String, Vec<f64>>,
}

impl Folder {
    fn open(name: &str) -> Self {
        let folder = root().join("results/reference").join(name);
        let spec = ExperimentSpec::read(&folder.join("experiment.toml")).unwrap();
        let (records, _): (Vec<StoredRecord>, _) = read_records(&folder).unwrap();
        let mut draws: BTreeMap<String, Vec<Vec<f64>>> = BTreeMap::new();
        for cell in Plan::new(&spec).cells() {
            let newest = records.iter().rev().find(|record| record.cell_id == cell.id());
            let Some(Outcome::Done(done)) = newest.map(|record| &record.outcome) else { continue };
            for measurement in &done.measurements {
                let text = match done.measurements.len() {
                    1 => String::new(),
                    _ if measurement.arithmetic.is_f32() => format!(" on {}", measurement.dataset),
                    _ => format!(" on {} in {}", measurement.dataset, measurement.arithmetic.name()),
                };
                draws.entry(row_name(cell) + &text).or_default().push(measurement.samples.clone());
            }
        }
        Self { rows: draws.into_iter().map(|(name, draws)| (name, mean(&draws))).collect() }
    }

    fn row(&self, name: &str) -> &[f64] {
        let names = || self.rows.keys().map(String::as_str).collect::<Vec<_>>().join("\n  ");
        self.rows.get(name).unwrap_or_else(|| panic!("no row `{name}`; there are\n  {}", names()))
    }

    /// ln of the perplexity of one row over that of another.
    fn log_ratio(&self, a: &str, b: &str) -> Interval {
        stats::difference_of_means(self.row(a), self.row(b), BOOTSTRAP).unwrap().interval
    }

    /// Why a line of a check does not hold; nothing where it does.
    fn fault(&self, line: &str) -> Option<String> {
        if let Some((row, written)) = line.split_once(" = ") {
            let value = Estimator::ExpOfMean.value(self.row(row));
            return (!is_written(value, written)).then(|| format!("it is {value}"));
        }
        let (holds, a, b): (fn(&Interval) -> bool, _, _) = if let Some((a, b)) = line.split_once(" < ") {
            (|ratio| ratio.high < 0.0, a, b)
        } else if let Some((a, b)) = line.split_once(" ~ ") {
            (|ratio| ratio.low <= 0.0 && 0.0 <= ratio.high, a, b)
        } else {
            panic!("`{line}` is no check: use =, < or ~ between blanks");
        };
        let ratio = self.log_ratio(a, b);
        (!holds(&ratio)).then(|| format!("the ln ratio is {:.4} [{:.4}, {:.4}]", ratio.point, ratio.low, ratio.high))
    }
}

fn row_name(cell: &Cell) -> String {
    let label = cell.label();
    let label = label.strip_prefix(&format!("{} ", cell.model.name)).unwrap_or(&label);
    let without_draw = label.split(", ").filter(|part| !part.starts_with("draw "));
    without_draw.collect::<Vec<_>>().join(", ")
}

fn mean(draws: &[Vec<f64>]) -> Vec<f64> {
    (0..draws[0].len()).map(|window| draws.iter().map(|draw| draw[window]).sum::<f64>() / draws.len() as f64).collect()
}

/// Whether `value`, rounded to the digits of `written`, is that: `69.3`, `13,100` (to hundreds).
fn is_written(value: f64, written: &str) -> bool {
    let plain = written.replace(',', "");
    let decimals = plain.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let zeros = if decimals > 0 { 0 } else { plain.len() - plain.trim_end_matches('0').len() };
    let unit = 10f64.powi(zeros as i32 - decimals as i32);
    (value - plain.parse::<f64>().unwrap()).abs() <= unit * (0.5 + 1e-9)
}

#[test]
fn rounded_numbers_are_recognised() {
    let cases = [
        (69.26, "69.3", true),
        (69.36, "69.3", false),
        (13_094.2, "13,100", true),
        (13_160.0, "13,100", false),
        (24.0, "20", true),
    ];
    for (value, written, expected) in cases {
        assert_eq!(is_written(value, written), expected, "{value} as {written}");
    }
}

#[test]
fn every_claim_follows_from_the_committed_records() {
    let claims = read("results/claims.md") + &read("results/first-looks.md");
    let (mut folders, mut faults, mut n_checks) = (BTreeMap::new(), Vec::new(), 0);
    for block in claims.split("<!-- check ").skip(1) {
        let (block, _) = block.split_once("-->").expect("a check has an end");
        let (name, lines) = block.split_once('\n').expect("a check names a folder, then a line each");
        let folder = folders.entry(name.trim().to_owned()).or_insert_with(|| Folder::open(name.trim()));
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            n_checks += 1;
            faults.extend(folder.fault(line).map(|fault| format!("{}: {line}: {fault}", name.trim())));
        }
    }
    assert!(n_checks > 50, "only {n_checks} checks in results/");
    assert!(faults.is_empty(), "a document of results/ says what its records do not:\n{}", faults.join("\n"));
}
