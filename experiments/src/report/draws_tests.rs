//! Several draws of a calibration in tables, frames and figures, from synthetic records.

#![allow(clippy::unwrap_used)]

use std::num::NonZeroU16;

use super::draws::Rows;
use super::paper_tests::calibrated;
use super::tests::{AWQ, RTN, done, grid, plan, record, references};
use super::*;
use crate::config::{Draw, TableAxis, TableSpec, TableValue};
use crate::eval::registry::MetricKey;
use crate::record::{Failed, Outcome, Stage};
use crate::stats::{self, Estimator};

const LOSSES: [f64; 3] = [0.20, 0.12, 0.15];

/// AWQ on three draws of one calibration.
fn drawn(losses: [f64; 3]) -> [Record; 3] {
    let n_draws = NonZeroU16::new(3).unwrap();
    let draws = Draw::all(n_draws).zip(losses).map(|(draw, nll)| {
        let mut record = calibrated(AWQ, "few", 2, nll);
        let quantization = record.cell.quantization.as_mut().unwrap();
        quantization.calibration = Some(draw.of(quantization.calibration.as_ref().unwrap()));
        quantization.calibration_name = None;
        quantization.draw = Some(draw);
        record.cell_id = record.cell.id();
        record
    });
    draws.collect::<Vec<_>>().try_into().unwrap()
}

/// Full precision, RTN, and AWQ on three draws.
fn records() -> Vec<Record> {
    let mut records = vec![record(None, 0.0), record(Some((RTN, grid(3, 64))), 0.3)];
    records.extend(drawn(LOSSES));
    records
}

fn rows(records: &[Record]) -> Rows<'_> {
    draws::rows(&frame::newest(records), &[], "RTN").unwrap()
}

fn nll(record: &Record) -> &[f64] {
    match &record.outcome {
        Outcome::Done(done) => &done.measurements[0].samples,
        Outcome::Failed(failed) => unreachable!("{failed:?}"),
    }
}

#[test]
fn a_row_is_the_mean_over_draws_and_its_interval_that_of_the_mean_windows() {
    let records = records();
    let Rows { cells, shown, .. } = rows(&records);
    assert_eq!((cells.len(), shown.len()), (5, 3));
    let awq = shown.iter().find(|row| row.method == "AWQ").unwrap();
    // By hand: average the windows, then everything as for one cell.
    let mean: Vec<f64> =
        (0..12).map(|window| records[2..].iter().map(|draw| nll(draw)[window]).sum::<f64>() / 3.0).collect();
    let estimate = stats::estimate(&mean, Estimator::ExpOfMean, frame::BOOTSTRAP).unwrap();
    assert!((awq.value - estimate.value).abs() < 1e-12 * estimate.value);
    assert_eq!(awq.standard_error, Some(estimate.standard_error));
    assert_eq!((awq.ci_low, awq.ci_high), (Some(estimate.interval.low), Some(estimate.interval.high)));
    for (other, found) in [
        (&records[0], [awq.log_ratio_fp, awq.log_ratio_fp_ci_low, awq.log_ratio_fp_ci_high]),
        (&records[1], [awq.log_ratio_baseline, awq.log_ratio_baseline_ci_low, awq.log_ratio_baseline_ci_high]),
    ] {
        let paired = stats::difference_of_means(&mean, nll(other), frame::BOOTSTRAP).unwrap().interval;
        for (found, expected) in found.into_iter().zip([paired.point, paired.low, paired.high]) {
            assert!((found.unwrap() - expected).abs() < 1e-9, "{found:?}, {expected}");
        }
    }
    // The spread is of the draws' own perplexities, and wider than nothing.
    let draws: Vec<f64> = cells.iter().filter(|row| row.draw.is_some()).map(|row| row.value).collect();
    assert_eq!(draws.len(), 3);
    assert_eq!(awq.draws_low, draws.iter().copied().reduce(f64::min));
    assert_eq!(awq.draws_high, draws.iter().copied().reduce(f64::max));
    assert!(awq.draws_low.unwrap() < awq.value && awq.value < awq.draws_high.unwrap());
    assert_eq!((awq.n_draws, awq.draw), (Some(3), None));
}

#[test]
fn the_frame_has_a_line_a_cell_with_its_draw() {
    let Rows { cells, .. } = rows(&records());
    let mut draws: Vec<_> = cells.iter().map(|row| (row.method.as_str(), row.draw, row.n_draws)).collect();
    draws.sort();
    let of_draw = |draw| ("AWQ", Some(draw), Some(3));
    assert_eq!(draws, [of_draw(0), of_draw(1), of_draw(2), ("FP", None, None), ("RTN", None, None)]);
    let ids: std::collections::BTreeSet<_> = cells.iter().map(|row| &row.cell_id).collect();
    assert_eq!(ids.len(), 5);
}

#[test]
fn without_draws_nothing_changes() {
    let records = [record(None, 0.0), record(Some((RTN, grid(3, 64))), 0.3), calibrated(AWQ, "few", 2, 0.2)];
    let Rows { cells, shown, .. } = rows(&records);
    assert_eq!(cells, shown);
    assert_eq!(cells, frame::rows(&frame::newest(&records), &[], "RTN").unwrap());
    let table = terminal_table(&plan(&records, vec![]), &records, &[]).unwrap();
    assert!(!table.contains("draw"), "{table}");
}

#[test]
fn the_table_has_one_row_with_the_spread() {
    let records = records();
    let table = terminal_table(&plan(&records, vec![]), &records, &[]).unwrap();
    let lines = table.lines().filter(|line| ["method", "FP", "RTN", "AWQ"].iter().any(|head| line.starts_with(head)));
    insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @r"
    method  grid    bits/w        perplexity   draws: low to high   ln ratio to FP [95% CI]    ln ratio to RTN [95% CI]
    FP      -        16.00  12.165 ± 0.621                      -                         -                           -
    RTN     W3 g64    3.30  16.501 ± 0.861                      -  +0.3049 [0.2783, 0.3314]                           -
    AWQ     W3 g64    3.30  14.264 ± 0.731 *  3: 13.742 to 14.906  +0.1592 [0.1453, 0.1731]  -0.1457 [-0.1583, -0.1330]
    ");
    let flowing = table.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(flowing.contains("each window averaged over draws first"), "{table}");
}

#[test]
fn a_published_table_shows_the_mean_in_one_place() {
    let records = records();
    let layout = TableSpec {
        title: "T".into(),
        rows: vec![TableAxis::Method],
        columns: vec![TableAxis::Model],
        values: vec![TableValue::Metric(MetricKey::USUAL)],
    };
    let asking = Plan { table: Some(layout), ..plan(&records, references()) };
    let folder = tempfile::tempdir().unwrap();
    let files = write_report(folder.path(), &asking, &records, &[]).unwrap();
    let paper_table = std::fs::read_to_string(&files.paper_tables[0]).unwrap();
    let line = paper_table.lines().find(|line| line.starts_with("| AWQ ")).unwrap();
    assert_eq!(line, "| AWQ | **14.264; draws 3: 13.742 to 14.906 (14.5, -0.236)** |");
    assert!(paper_table.contains("each window averaged over draws first"), "{paper_table}");
    let csv = std::fs::read_to_string(&files.csv).unwrap();
    assert_eq!(csv.lines().count(), 1 + 5);
}

/// A draw that failed is told of below the table, and the others are their mean.
#[test]
fn draws_that_are_not_there_are_not_counted() {
    let mut records = records();
    records[2].outcome = Outcome::Failed(Failed { stage: Stage::Quantize, error: "no".into() });
    let Rows { shown, .. } = rows(&records);
    let awq = shown.iter().find(|row| row.method == "AWQ").unwrap();
    assert_eq!(awq.n_draws, Some(2));
    let failures = frame::failures(&frame::newest(&records));
    assert_eq!(failures[0].label, "Tiny_1M AWQ W3 g64, draw 0");
}

/// Other windows, or other files of the model: no mean of the two means anything.
#[test]
fn only_draws_of_one_model_on_the_same_windows_are_averaged() {
    let changes: [fn(&mut Record); 2] = [
        |draw| done(draw).measurements[0].text_sha256 = "other".into(),
        |draw| drop(draw.provenance.assets.insert("model.safetensors".into(), "b".repeat(64))),
    ];
    for change in changes {
        let mut records = records();
        change(&mut records[3]);
        let Rows { shown, .. } = rows(&records);
        let n_draws: Vec<_> = shown.iter().filter(|row| row.method == "AWQ").map(|row| row.n_draws).collect();
        assert_eq!(n_draws.len(), 2, "{n_draws:?}");
        assert!(n_draws.contains(&Some(2)) && n_draws.contains(&None), "{n_draws:?}");
    }
}

#[test]
fn a_mean_names_every_commit_and_the_worst_overlap() {
    let mut records = records();
    records[3].provenance.commit = "fedcba9876543210".into();
    records[4].provenance.dirty = Some(false);
    for (record, tokens) in records[2..].iter_mut().zip([7, 40, 0]) {
        done(record).measurements[0].calibration_overlap_tokens = Some(tokens);
    }
    let table = terminal_table(&plan(&records, vec![]), &records, &[]).unwrap();
    let flowing = table.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(flowing.contains("Commits 0123456 (dirty), fedcba9 (dirty)."), "{table}");
    assert!(flowing.contains("AWQ W3 g64: 40 calibration tokens also occur"), "{table}");
}

/// The error over tokens cannot be had of a mean: the mean of the draws' errors is what comes nearest.
#[test]
fn an_error_over_tokens_stays_one() {
    let mut records = records();
    for (record, error) in records[2..].iter_mut().zip([0.1, 0.2, 0.3]) {
        let measurement = &mut done(record).measurements[0];
        (measurement.protocol, measurement.standard_error) = ("llama-cpp".into(), Some(error));
    }
    let Rows { shown, .. } = rows(&records);
    let error = shown.iter().find(|row| row.method == "AWQ").unwrap().standard_error.unwrap();
    assert!((error - 0.2).abs() < 1e-12, "{error}");
}

#[test]
fn figures_draw_the_mean_and_the_blocks_of_the_first_draw() {
    let records = records();
    let shown = rows(&records).shown;
    let Picture::Dots(perplexity) = &bits::value_figures(&shown)[0] else { panic!("one grid") };
    let labels: Vec<&str> = perplexity.groups[0].dots.iter().map(|dot| dot.label.as_str()).collect();
    assert_eq!(labels, ["RTN", "AWQ"]);
    let curves = frame::block_curves(&frame::newest(&records));
    let settings: Vec<_> = curves.iter().map(|curve| (curve.grid.as_str(), curve.draw)).collect();
    assert_eq!(settings, [("W3 g64", None), ("W3 g64", Some(0))]);
    assert!(blocks::block_figures(&curves)[0].caption.contains("draw 0 is shown"));
}
