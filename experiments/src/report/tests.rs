//! Reports of a handful of synthetic records: snapshots of what people read, and round trips of what programs read.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroU16;

use awq_core::driver::FullPrecisionShare;
use awq_core::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use awq_core::log::BlockLog;
use awq_core::model::{Storage, StoredShare};
use polars::prelude::*;

use super::*;
use crate::config::{Bundled, ModelSource, ModelSpec};
use crate::eval::registry::MetricKey;
use crate::plan::{Cell, ModelPlan, Plan, QuantizationCell};
use crate::provenance::Provenance;
use crate::record::{Cost, Done, Failed, Measurement, Outcome, Quantization, SCHEMA_VERSION, Stage};
use crate::registry::MethodSpec;
use crate::stats::Estimator;

pub(crate) fn write_report<C>(
    folder: &Path,
    plan: &Plan,
    records: &[Record<C>],
    speed: &[SpeedLine],
) -> anyhow::Result<ReportFiles> {
    with_report(plan, records, speed, |report| report.write(folder))
}

pub(crate) fn terminal_table<C>(plan: &Plan, records: &[Record<C>], speed: &[SpeedLine]) -> anyhow::Result<String> {
    with_report(plan, records, speed, |report| Ok(report.terminal()))
}

pub(super) const QUESTION: &str = "Does AWQ beat RTN at 3 bit?";

pub(super) const RTN: &str = r#"{"rtn": {}}"#;

pub(super) const AWQ: &str = r#"{"awq": {
    "scale": {"search": {"formula": "activation", "n_ratios": 20}},
    "clip": {"search": {"n_steps": 20, "max_shrink": 0.5, "n_tokens": 512}}
}}"#;

pub(super) fn grid(bits: u8, group_size: u16) -> Grid {
    Grid {
        bits: Bits::new(bits).unwrap(),
        granularity: Granularity::PerGroup(NonZeroU16::new(group_size).unwrap()),
        symmetry: Symmetry::Asymmetric,
        range_includes_zero: false,
        scale_dtype: ScaleDtype::F16,
        values: None,
    }
}

/// A file whose linears are all of one type.
pub(super) fn storage(name: &str, bits_per_weight: f64, group_size: Option<usize>) -> Storage {
    let share = StoredShare { name: name.into(), n_weights: 1 << 20, bits_per_weight, group_size };
    Storage { types: vec![share], bits_per_weight }
}

/// A finished cell of 12 windows; `nll` is added to what every cell loses on a window.
pub(super) fn record(method: Option<(&str, Grid)>, nll: f64) -> Record {
    // A scale of 16 bits and a zero point a group.
    let bits_per_weight = method.map(|(_, grid)| {
        let (bits, n_groups) = (f64::from(grid.bits.get()), grid.granularity.n_groups(1024) as f64);
        bits + n_groups * (16.0 + bits) / 1024.0
    });
    let quantization = method.map(|(json, grid)| {
        let method: MethodSpec = serde_json::from_str(json).unwrap();
        QuantizationCell { method, grid, overrides: Vec::new(), calibration: None, calibration_name: None, draw: None }
    });
    let model = ModelSpec { name: "Tiny_1M".into(), source: ModelSource::Bundled(Bundled {}) };
    let cell = Cell { model, quantization, checkpoint: None, evaluations: Vec::new(), precision: Default::default() };
    // Windows differ much more from each other than cells do, as in real text.
    let wobble = |window: usize| 0.25 * (1.7 * window as f64).sin() + nll * (1.0 + 0.2 * (2.9 * window as f64).cos());
    let samples: Vec<f64> = (0..12).map(|window| 2.5 + wobble(window)).collect();
    let block = |block_idx: usize| BlockLog {
        block_idx,
        output_mse: Some(0.02 * nll * (1.0 + block_idx as f64)),
        output_mean_square: Some(1.5),
        ..BlockLog::default()
    };
    let measurement = Measurement {
        metric: "token_perplexity".into(),
        dataset: "wikitext2-test".into(),
        protocol: "gptq".into(),
        seq_len: 256,
        arithmetic: Default::default(),
        weights: Vec::new(),
        value: Estimator::ExpOfMean.value(&samples),
        standard_error: None,
        n_windows: 12,
        n_windows_total: 1292,
        n_tokens: 12 * 255,
        samples,
        floor: None,
        calibration_overlap_tokens: None,
        text_sha256: "t".repeat(64),
        written: Vec::new(),
        ran_with: None,
        tokenizer_sha256: "k".repeat(64),
        seconds: 4.0,
    };
    let done = Done {
        measurements: vec![measurement],
        quantization: bits_per_weight.map(|bits_per_weight| Quantization {
            method_version: None,
            calibration_text_sha256: None,
            bits_per_weight,
            full_precision: None,
            codes_sha256: "c".repeat(64),
            n_calibration_sequences: 16,
            calibration_overlap_tokens: 0,
            blocks: (0..6).map(block).collect(),
            blocks_sha256: None,
        }),
        checkpoint: None,
        packed: None,
        storage: Some(storage("BF16", 16.0, None)),
        cost: Cost {
            quantize_seconds: 1.5,
            shared_capture_seconds: 0.5,
            codes_from_store: false,
            evaluate_seconds: 4.0,
            peak_resident_bytes: 1 << 28,
        },
    };
    Record {
        schema: SCHEMA_VERSION,
        cell_id: cell.id(),
        labels: None,
        cell,
        outcome: Outcome::Done(Box::new(done)),
        provenance: Provenance {
            commit: "0123456789abcdef".into(),
            dirty: Some(true),
            lock_sha256: "l".repeat(64),
            version: "0.1.0".into(),
            profile: "release".into(),
            build: None,
            device: "flex".into(),
            gpu: None,
            threads: 2,
            cpu: "A <fast> CPU".into(),
            memory_bytes: None,
            command: Vec::new(),
            platform: "linux x86_64".into(),
            unix_time: 0,
            assets: BTreeMap::from([("model".to_owned(), "a".repeat(64))]),
        },
    }
}

pub(super) fn done(record: &mut Record) -> &mut Done {
    match &mut record.outcome {
        Outcome::Done(done) => done,
        Outcome::Failed(failed) => unreachable!("{failed:?}"),
    }
}

fn failed(mut record: Record) -> Record {
    record.outcome =
        Outcome::Failed(Failed { stage: Stage::Quantize, error: "block 3, self_attn.q_proj: NaN | retry".into() });
    record
}

/// Full precision, RTN and AWQ at 4 and 3 bit, one 2-bit failure.
pub(crate) fn records() -> Vec<Record> {
    vec![
        record(Some((AWQ, grid(3, 64))), 0.12),
        record(None, 0.0),
        record(Some((RTN, grid(4, 128))), 0.05),
        record(Some((AWQ, grid(4, 128))), 0.03),
        record(Some((RTN, grid(3, 64))), 0.3),
        failed(record(Some((RTN, grid(2, 64))), 0.0)),
    ]
}

pub(super) fn references() -> Vec<ReferenceValue> {
    let reference = |method: &str, grid: Option<&str>, perplexity| ReferenceValue {
        model: "Tiny_1M".into(),
        method: method.into(),
        grid: grid.map(str::to_owned),
        calibration: None,
        dataset: None,
        protocol: None,
        seq_len: None,
        perplexity: Some(perplexity),
        metric: None,
        value: None,
        changed_steps: None,
        step_ratio: None,
        step_ratio_over_scale: None,
        source: "A paper, table 4".into(),
        note: None,
    };
    vec![reference("FP16", None, 12.0), reference("AWQ", Some("W3 g64"), 14.5), reference("QuIP", Some("W2 g64"), 20.0)]
}

/// The experiment that asked for the cells of `records`.
pub(super) fn plan(records: &[Record], references: Vec<ReferenceValue>) -> Plan {
    let mut cells: Vec<Cell> = Vec::new();
    for record in records {
        if !cells.contains(&record.cell) {
            cells.push(record.cell.clone());
        }
    }
    let model = cells[0].model.clone();
    Plan {
        question: QUESTION.into(),
        models: vec![ModelPlan { model, cells }],
        export: None,
        references,
        baseline: "RTN".into(),
        table: None,
        figure: None,
        published_speed: Vec::new(),
    }
}

pub(super) fn rows(records: &[Record], references: &[ReferenceValue]) -> Vec<Row> {
    frame::rows(&frame::newest(records), references, "RTN").unwrap()
}

fn find<'a>(rows: &'a [Row], method: &str, grid: Option<&str>) -> &'a Row {
    rows.iter().find(|row| row.method == method && row.grid.as_deref() == grid).unwrap()
}

#[test]
fn rows_are_sorted_for_reading() {
    let rows = rows(&records(), &[]);
    let order: Vec<_> =
        rows.iter().map(|row| format!("{} {}", row.method, row.grid.as_deref().unwrap_or("-"))).collect();
    assert_eq!(order, ["FP -", "RTN W4 g128", "AWQ W4 g128", "RTN W3 g64", "AWQ W3 g64"]);
}

#[test]
fn differences_are_paired_with_full_precision_and_with_rtn_on_the_same_grid() {
    let rows = rows(&records(), &[]);
    let (fp, rtn, awq) =
        (find(&rows, "FP", None), find(&rows, "RTN", Some("W3 g64")), find(&rows, "AWQ", Some("W3 g64")));
    assert_eq!((fp.delta_fp, fp.delta_baseline, rtn.delta_baseline), (None, None, None));
    assert_eq!(awq.delta_fp, Some(awq.value - fp.value));
    assert_eq!(awq.delta_baseline, Some(awq.value - rtn.value));
    assert!(awq.delta_baseline_ci_high.unwrap() < 0.0, "better than RTN beyond doubt");
    assert!(awq.delta_fp_ci_low.unwrap() > 0.0, "worse than full precision beyond doubt");
    let width = |low: Option<f64>, high: Option<f64>| high.unwrap() - low.unwrap();
    assert!(width(awq.delta_fp_ci_low, awq.delta_fp_ci_high) < width(awq.ci_low, awq.ci_high) / 3.0);
}

#[test]
fn only_equal_windows_are_paired() {
    let changes: [fn(&mut Measurement); 3] =
        [|m| m.text_sha256 = "other".into(), |m| m.tokenizer_sha256 = "other".into(), |m| m.seq_len = 512];
    for change in changes {
        let mut records = records();
        change(&mut done(&mut records[1]).measurements[0]);
        let rows = rows(&records, &[]);
        assert!(rows.iter().all(|row| row.delta_fp.is_none()));
        assert!(find(&rows, "AWQ", Some("W4 g128")).delta_baseline.is_some(), "RTN still has the same windows");
    }
}

#[test]
fn the_newest_record_of_a_cell_counts() {
    let (older, newer) = (record(None, 0.5), record(None, 0.0));
    let expected = Estimator::ExpOfMean.value(&done(&mut newer.clone()).measurements[0].samples);
    let recovered = rows(&[failed(older.clone()), older.clone(), newer], &[]);
    assert_eq!(recovered.iter().map(|row| row.value).collect::<Vec<_>>(), [expected]);

    let relapsed = [older.clone(), failed(older)];
    let newest = frame::newest(&relapsed);
    assert_eq!((newest.len(), frame::failures(&newest).len()), (1, 1));
    assert_eq!(frame::rows(&newest, &[], "RTN").unwrap(), []);
}

#[test]
fn an_unknown_metric_is_an_error() {
    let mut strange = record(None, 0.0);
    done(&mut strange).measurements[0].metric = "agreement_with_the_moon".into();
    let error = frame::rows(&[&strange], &[], "RTN").unwrap_err();
    let known: Vec<&str> = MetricKey::ALL.iter().map(|metric| metric.quantity().name).collect();
    assert_eq!(
        format!("{error:#}"),
        format!(
            "cell Tiny_1M FP: metric agreement_with_the_moon is none that this program knows ({}); use the program that measured it",
            known.join(", ")
        )
    );
}

#[test]
fn a_single_window_has_numbers_without_intervals() {
    let mut records = records();
    for record in &mut records[..5] {
        let measurement = &mut done(record).measurements[0];
        measurement.samples.truncate(1);
        measurement.n_windows = 1;
    }
    let rows = rows(&records, &[]);
    let awq = find(&rows, "AWQ", Some("W4 g128"));
    assert_eq!((awq.standard_error, awq.ci_low, awq.delta_fp_ci_low), (None, None, None));
    assert!(awq.delta_fp.is_some());
}

#[test]
fn full_runs_and_settings_apart_are_said_so() {
    let mut records = records();
    for record in &mut records[..5] {
        let done = done(record);
        done.measurements[0].n_windows_total = 12;
        done.measurements[0].floor = Some(11.25);
    }
    // The same method and grid with other settings: another cell id, the same labels.
    let mut twin = records[0].clone();
    let coarser = AWQ.replace("\"n_ratios\": 20", "\"n_ratios\": 10");
    twin.cell.quantization.as_mut().unwrap().method = serde_json::from_str(&coarser).unwrap();
    twin.cell_id = twin.cell.id();
    let head: String = twin.cell_id.0.chars().take(6).collect();
    done(&mut twin).quantization.as_mut().unwrap().calibration_overlap_tokens = 1234;
    records.push(twin);
    let table = terminal_table(&plan(&records, vec![]), &records, &[])
        .unwrap()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    assert!(!table.contains("LIMITED"), "{table}");
    assert!(table.contains("has a perplexity of 11.250: no model is expected to be lower."), "{table}");
    assert!(table.contains(&format!("AWQ ({head}) W3 g64")), "{table}");
    assert!(table.contains("AWQ W3 g64: 1,234 calibration tokens also occur in scored windows"), "{table}");
}

/// Calibrated on the one of two texts: only the numbers on that one are optimistic.
#[test]
fn overlap_is_noted_under_the_text_that_it_concerns() {
    let mut records = records();
    let cell = done(&mut records[0]);
    cell.quantization.as_mut().unwrap().calibration_overlap_tokens = 1234;
    cell.measurements[0].calibration_overlap_tokens = Some(0);
    let other = Measurement { dataset: "other".into(), ..cell.measurements[0].clone() };
    cell.measurements.push(Measurement { calibration_overlap_tokens: Some(1234), ..other });
    let rows = rows(&records, &[]);
    let overlaps = |dataset: &str| -> Vec<u64> {
        rows.iter().filter(|row| row.dataset == dataset).filter_map(|row| row.calibration_overlap_tokens).collect()
    };
    assert_eq!(overlaps("other"), [1234]);
    assert_eq!(overlaps("wikitext2-test"), [0, 0, 0, 0]);
}

/// What a report of `records` writes as CSV and Parquet is the frame that it is made of, which is returned.
#[track_caller]
fn frame_read_back(records: &[Record]) -> DataFrame {
    let folder = tempfile::tempdir().unwrap();
    let files = write_report(folder.path(), &plan(records, references()), records, &[]).unwrap();
    let written = frame_of(&rows(records, &references())).unwrap();
    let parquet = ParquetReader::new(File::open(&files.parquet).unwrap()).finish().unwrap();
    let csv = CsvReadOptions::default()
        .with_schema(Some(written.schema().clone()))
        .into_reader_with_file_handle(File::open(&files.csv).unwrap())
        .finish()
        .unwrap();
    assert!(parquet.equals_missing(&written), "{parquet}");
    assert!(csv.equals_missing(&written), "{csv}");
    parquet
}

#[test]
fn csv_and_parquet_read_back_as_the_same_frame() {
    let names = |frame: &DataFrame| -> Vec<String> {
        frame.get_column_names().into_iter().map(|name| name.to_string()).collect()
    };
    let mut records = records();
    let plain = names(&frame_read_back(&records));
    // One cell with linears in full precision, and answers to questions, give the columns that only these fill.
    let share = FullPrecisionShare { n_weights: 4096, bits_per_weight_of_all: 5.5 };
    done(&mut records[0]).quantization.as_mut().unwrap().full_precision = Some(share);
    for (record, right) in records[..2].iter_mut().zip([5, 8]) {
        let measurements = &mut done(record).measurements;
        let samples: Vec<f64> = (0..12).map(|question| if question < right { 1.0 } else { 0.0 }).collect();
        let metric = MetricKey::Accuracy.quantity().name.to_owned();
        let value = Estimator::Mean.value(&samples);
        measurements.push(Measurement { metric, value, samples, ..measurements[0].clone() });
    }
    let frame = frame_read_back(&records);
    assert_eq!(Row::from_frame(&frame).unwrap(), rows(&records, &references()));
    assert_eq!(names(&frame), Row::COLUMNS.iter().map(|column| column.0).collect::<Vec<_>>());
    let of_few = ["full_precision_weights", "bits_per_weight_of_all", "questions_lost", "questions_won", "mcnemar_p"];
    let of_all = |name: &&String| !of_few.contains(&name.as_str());
    assert_eq!(names(&frame).iter().filter(of_all).cloned().collect::<Vec<_>>(), plain);
    assert_eq!(plain.len() + of_few.len(), Row::COLUMNS.len());
}

#[test]
fn linears_in_full_precision_are_noted_below_a_table() {
    let mut records = records();
    let share = FullPrecisionShare { n_weights: 12_345, bits_per_weight_of_all: 5.5 };
    done(&mut records[0]).quantization.as_mut().unwrap().full_precision = Some(share);
    let folder = tempfile::tempdir().unwrap();
    let files = write_report(folder.path(), &plan(&records, Vec::new()), &records, &[]).unwrap();
    let table = std::fs::read_to_string(&files.tables[0]).unwrap();
    let note =
        "12,345 weights of linears stay in full precision, which bits/w leaves out; over all linears it is 5.50.";
    assert!(table.contains(note), "{table}");
}

#[test]
fn a_frame_of_another_shape_is_an_error() {
    let frame = Row::to_frame(&rows(&records(), &[])).unwrap();
    let missing = Row::from_frame(&frame.drop("delta_fp").unwrap()).unwrap_err().to_string();
    assert!(missing.contains("delta_fp"), "{missing}");
    let mut holed = frame.clone();
    holed.with_column(Column::full_null("model".into(), frame.height(), &DataType::String)).unwrap();
    let null = Row::from_frame(&holed).unwrap_err().to_string();
    assert!(null.contains("column model holds a null"), "{null}");
}

#[test]
fn the_same_records_give_the_same_files() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = write_report(first.path(), &plan(&records(), references()), &records(), &[]).unwrap();
    // A second report over an old one replaces it.
    write_report(second.path(), &plan(&records()[..3], vec![]), &records()[..3], &[]).unwrap();
    write_report(second.path(), &plan(&records(), references()), &records(), &[]).unwrap();
    let named = files.tables.into_iter().chain([files.csv, files.parquet, files.html]).chain(files.figures);
    let mut n_files = 0;
    for path in named {
        let twin = second.path().join(path.strip_prefix(first.path()).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(twin).unwrap(), "{}", path.display());
        n_files += 1;
    }
    assert_eq!(n_files, TABLE_FORMATS.len() + 3 + 6);
    let left_over = std::fs::read_dir(first.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".awq-partial-"));
    assert_eq!(left_over.count(), 0);
}

#[test]
fn the_page_is_whole_and_escaped() {
    let folder = tempfile::tempdir().unwrap();
    let asking = Plan { question: "Is 3 < 4 & why?".into(), ..plan(&records(), references()) };
    let files = write_report(folder.path(), &asking, &records(), &[]).unwrap();
    let page = std::fs::read_to_string(files.html).unwrap();
    assert!(page.contains("<h1>Is 3 &lt; 4 &amp; why?</h1>"));
    assert!(page.contains("A &lt;fast&gt; CPU"));
    assert_eq!(page.matches("<svg").count(), 3);
    assert!(!page.contains("<script") && !page.contains("src="));
    assert!(page.contains("Times and memory of each cell") && !page.contains("Settings"));
    std::fs::write(folder.path().join("experiment.toml"), "question = \"a < b\"").unwrap();
    let files = write_report(folder.path(), &asking, &records(), &[]).unwrap();
    let page = std::fs::read_to_string(files.html).unwrap();
    assert!(page.contains("<pre>question = &quot;a &lt; b&quot;</pre>"));
}

#[test]
fn failures_alone_make_a_report_without_figures() {
    let folder = tempfile::tempdir().unwrap();
    let files = write_report(folder.path(), &plan(&records()[5..], vec![]), &records()[5..], &[]).unwrap();
    assert_eq!(files.figures, Vec::<PathBuf>::new());
    let markdown = std::fs::read_to_string(&files.tables[0]).unwrap();
    assert!(
        markdown.contains("- Tiny\\_1M RTN W2 g64: quantize failed: block 3, self\\_attn.q\\_proj: NaN \\| retry"),
        "{markdown}"
    );
}

#[test]
fn an_unwritable_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, "").unwrap();
    let error = format!("{:#}", write_report(&blocked, &plan(&records(), vec![]), &records(), &[]).unwrap_err());
    assert!(error.contains("file/figures: cannot create the folder; choose a writable folder with --out"), "{error}");
}
