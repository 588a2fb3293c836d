//! What reports say of uncertainty: intervals of blocks, marks of what is not worse than the best, words of captions.

#![allow(clippy::unwrap_used)]

use awq_core::rule::GridOverride;

use super::tests::{AWQ, RTN, done, grid, record};
use super::*;
use crate::config::{TableAxis, TableSpec, TableValue};
use crate::eval::registry::MetricKey;
use crate::plan::ModelPlan;
use crate::record::Measurement;
use crate::stats::Estimator;

const HALF: &str = r#"{"awq": {
    "scale": "off", "clip": {"search": {"n_steps": 20, "max_shrink": 0.5, "n_tokens": 512}}
}}"#;

fn plan(records: &[Record], baseline: &str) -> Plan {
    let cells: Vec<Cell> = records.iter().map(|record| record.cell.clone()).collect();
    let layout = TableSpec {
        title: "Two texts".into(),
        rows: vec![TableAxis::Grid, TableAxis::Method],
        columns: vec![TableAxis::Dataset],
        values: vec![TableValue::Metric(MetricKey::USUAL)],
    };
    Plan {
        question: "How sure?".into(),
        models: vec![ModelPlan { model: cells[0].model.clone(), cells }],
        export: None,
        references: Vec::new(),
        baseline: baseline.into(),
        table: Some(layout),
        figure: None,
        published_speed: Vec::new(),
    }
}

/// Full precision, and three methods at 3 bits of which the last two differ by less than windows do.
fn records() -> Vec<Record> {
    let mut records = vec![
        record(None, 0.0),
        record(Some((RTN, grid(3, 64))), 0.3),
        record(Some((AWQ, grid(3, 64))), 0.12),
        record(Some((HALF, grid(3, 64))), 0.12),
    ];
    let last = &mut done(&mut records[3]).measurements[0];
    for (window, nll) in last.samples.iter_mut().enumerate() {
        *nll += 0.001 + 0.01 * (2.3 * window as f64).sin();
    }
    last.value = Estimator::ExpOfMean.value(&last.samples);
    records
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn shown(records: &[Record], baseline: &str) -> String {
    words(&terminal_table(&plan(records, baseline), records, &[]).unwrap())
}

/// Perplexities that stand out in the first table, and in the one laid out by the plan.
fn marked(records: &[Record]) -> [Vec<String>; 2] {
    let plan = plan(records, "RTN");
    let newest = frame::newest(records);
    let rows = frame::rows(&newest, &[], "RTN").unwrap();
    let pivots = pivots(&plan, &rows, &newest);
    let paper: Vec<Table> = paper_tables(&pivots).collect();
    let document = document(&plan, &rows, &newest, &pivots);
    [&document.tables[0], &paper[0]].map(|table| {
        let cells = |row: &tables::TableRow| row.emphasized.iter().map(|&at| row.cells[at].clone()).collect::<Vec<_>>();
        let cells = table.rows.iter().flat_map(cells);
        cells.map(|cell| cell.split_whitespace().next().unwrap_or_default().to_owned()).collect()
    })
}

#[test]
fn rows_that_are_not_worse_than_the_best_beyond_their_interval_stand_out_together() {
    let records = records();
    let value = |index: usize| format!("{:.3}", done(&mut records[index].clone()).measurements[0].value);
    let both = vec![value(2), value(3)];
    assert_eq!(marked(&records), [both.clone(), both]);
    // Where the windows tell them apart, the better one stands alone.
    let mut apart = records;
    let last = &mut done(&mut apart[3]).measurements[0];
    last.samples.iter_mut().for_each(|nll| *nll += 0.05);
    last.value = Estimator::ExpOfMean.value(&last.samples);
    let best = vec![format!("{:.3}", done(&mut apart[2]).measurements[0].value)];
    assert_eq!(marked(&apart), [best.clone(), best]);
}

#[test]
fn nothing_stands_out_without_intervals_or_without_rivals() {
    let mut records = records();
    assert_eq!(marked(&records[..2]), [Vec::<String>::new(), Vec::new()], "RTN alone on its grid");
    for record in &mut records {
        let measurement = &mut done(record).measurements[0];
        measurement.samples.truncate(1);
        measurement.n_windows = 1;
    }
    assert_eq!(marked(&records), [Vec::<String>::new(), Vec::new()]);
    assert!(shown(&records, "RTN").contains("A single window has no interval."));
}

#[test]
fn the_last_column_compares_with_the_baseline_that_the_experiment_names() {
    let records = records();
    let newest = frame::newest(&records);
    let label = records[2].cell.method_label();
    let rows = frame::rows(&newest, &[], &label).unwrap();
    let rtn = rows.iter().find(|row| row.method == "RTN").unwrap();
    let awq = rows.iter().find(|row| row.method == label).unwrap();
    assert_eq!(rtn.baseline.as_deref(), Some(label.as_str()));
    assert_eq!(rtn.log_ratio_baseline, Some((rtn.value / awq.value).ln()));
    assert!(rtn.log_ratio_baseline_ci_low.unwrap() > 0.0, "worse than AWQ beyond doubt");
    assert_eq!((awq.baseline.as_deref(), awq.delta_baseline, awq.log_ratio_baseline), (None, None, None));
    assert!(shown(&records, &label).contains(&format!("ln ratio to {label} [95% CI]")));
    // A baseline that was not run has no column.
    let without: Vec<Record> = [&records[..2], &records[3..]].concat();
    assert!(!shown(&without, &label).contains(&format!("ln ratio to {label}")));
}

/// A calibration is part of what a baseline is: a cell is held against the baseline under its own.
#[test]
fn a_baseline_under_another_calibration_is_not_compared_with() {
    let mut records = records();
    for (record, name) in records[2..].iter_mut().zip(["few", "many"]) {
        record.cell.quantization.as_mut().unwrap().calibration_name = Some(name.to_owned());
    }
    let label = records[2].cell.method_label();
    let baselines = |records: &[Record]| -> Vec<Option<String>> {
        let rows = frame::rows(&frame::newest(records), &[], &label).unwrap();
        rows.into_iter().map(|row| row.baseline).collect()
    };
    assert_eq!(baselines(&records), vec![None; 4]);
    records[3].cell.quantization.as_mut().unwrap().calibration_name = Some("few".into());
    assert_eq!(baselines(&records).into_iter().flatten().collect::<Vec<_>>(), std::slice::from_ref(&label));
}

/// The same grid with other overrides is another grid.
#[test]
fn a_baseline_on_other_grids_of_some_linears_is_not_compared_with() {
    let mut records = records();
    let overrides = vec![GridOverride { linears: "*.down_proj".into(), grid: None }];
    records[1].cell.quantization.as_mut().unwrap().overrides = overrides.clone();
    let baselines = |records: &[Record]| -> Vec<Option<String>> {
        let rows = frame::rows(&frame::newest(records), &[], "RTN").unwrap();
        rows.into_iter().map(|row| row.baseline).collect()
    };
    assert_eq!(baselines(&records), vec![None; 4]);
    records[2].cell.quantization.as_mut().unwrap().overrides = overrides;
    assert_eq!(baselines(&records).into_iter().flatten().collect::<Vec<_>>(), ["RTN"]);
}

/// Records hold the standard error of independent windows; a report takes it from the windows themselves.
#[test]
fn the_standard_error_and_the_interval_know_how_windows_depend_on_each_other() {
    let mut records = vec![record(None, 0.0)];
    let measurement = &mut done(&mut records[0]).measurements[0];
    // Twelve windows high, twelve low, twice: 48 windows that are worth about 4.
    measurement.samples = (0..48).map(|window| 2.5 + 0.2 * f64::from((window / 12) % 2)).collect();
    measurement.value = Estimator::ExpOfMean.value(&measurement.samples);
    let independent = measurement.value * 0.1 / 47.0_f64.sqrt();
    measurement.standard_error = Some(independent);
    let rows = frame::rows(&frame::newest(&records), &[], "RTN").unwrap();
    let (error, low, high) = (rows[0].standard_error.unwrap(), rows[0].ci_low.unwrap(), rows[0].ci_high.unwrap());
    assert!(error > 2.0 * independent, "{error} against {independent}");
    assert!(rows[0].block_len.unwrap() > 2.0);
    assert!((high - low) / 2.0 > 1.96 * error, "an interval of few blocks is wider than of a known spread");
    let done_again = done(&mut records[0]);
    done_again.measurements[0].protocol = "llama-cpp".into();
    let rows = frame::rows(&frame::newest(&records), &[], "RTN").unwrap();
    assert_eq!(rows[0].standard_error, Some(independent), "as llama.cpp prints it");
    let caption = shown(&records, "RTN");
    assert!(caption.contains("± is the standard error over tokens taken as independent, as llama.cpp prints it."));
    assert!(caption.contains("stationary bootstrap of 12 windows in blocks of"), "{caption}");
}

#[test]
fn a_floor_is_stated_only_where_the_whole_text_was_scored() {
    let floor_of = |change: fn(&mut Measurement)| {
        let mut records = vec![record(None, 0.0)];
        let measurement = &mut done(&mut records[0]).measurements[0];
        (measurement.n_windows_total, measurement.floor) = (12, Some(11.25));
        change(measurement);
        let rows = frame::rows(&frame::newest(&records), &[], "RTN").unwrap();
        assert_eq!(shown(&records, "RTN").contains("perplexity of 11.250"), rows[0].floor.is_some());
        rows[0].floor
    };
    assert_eq!(floor_of(|_| ()), Some(11.25));
    assert_eq!(floor_of(|m| m.n_windows_total = 13), None);
    assert_eq!(floor_of(|m| m.protocol = "llama-cpp".into()), None);
}

#[test]
fn every_text_of_a_table_has_its_own_count_of_windows() {
    let limits = |totals: &[(&str, usize, usize)]| {
        let mut records = records();
        for record in &mut records {
            let done = done(record);
            let measurement = |&(dataset, n_windows, n_windows_total): &(&str, usize, usize)| Measurement {
                dataset: dataset.into(),
                n_windows,
                n_windows_total,
                ..done.measurements[0].clone()
            };
            done.measurements = totals.iter().map(measurement).collect();
        }
        let newest = frame::newest(&records);
        let (plan, rows) = (plan(&records, "RTN"), frame::rows(&newest, &[], "RTN").unwrap());
        let tables: Vec<Table> = paper_tables(&pivots(&plan, &rows, &newest)).collect();
        tables[0].caption.split("Two texts").next().unwrap().trim_end().to_owned()
    };
    assert_eq!(
        limits(&[("sotu-test", 12, 2083), ("wikitext2-test", 12, 595)]),
        "LIMITED RUN: first 12 of 2,083 windows of sotu-test, of 595 of wikitext2-test."
    );
    assert_eq!(
        limits(&[("sotu-test", 12, 2083), ("wikitext2-test", 30, 595)]),
        "LIMITED RUN: first 12 of 2,083 windows of sotu-test, first 30 of 595 of wikitext2-test."
    );
    assert_eq!(
        limits(&[("sotu-test", 12, 12), ("wikitext2-test", 12, 595)]),
        "LIMITED RUN: first 12 of 595 windows of wikitext2-test."
    );
    assert_eq!(limits(&[("sotu-test", 12, 12), ("wikitext2-test", 12, 12)]), "");
}

#[test]
fn what_stands_out_is_explained_where_something_does() {
    let records = records();
    assert!(shown(&records, "RTN").contains("*: not worse than the best on its grid"));
    // A method alone on its grid has no rivals.
    assert!(!shown(&records[..2], "RTN").contains("*:"), "{}", shown(&records[..2], "RTN"));
}
