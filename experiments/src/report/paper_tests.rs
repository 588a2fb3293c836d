//! Tables laid out as published ones, and the figures of calibration, from synthetic records.

#![allow(clippy::unwrap_used)]

use std::num::NonZeroUsize;

use awq_core::driver::Propagation;
use awq_core::log::{LinearLog, StepChange};

use super::tests::{AWQ, QUESTION, RTN, done, grid, record};
use super::*;
use crate::config::{
    BundledSplit, BundledText, CalibrationSpec, DatasetSpec, EvaluationSpec, GptqProtocol, LinesX, ProtocolSpec,
    RandomCrops, SamplingSpec, ScoredText, Sotu, SotuSplit, TableAxis, TableSpec, TableValue,
};
use crate::eval::registry::MetricKey;
use crate::plan::ModelPlan;
use crate::report::matrix::Loss;

const SCALED: &str = r#"{"fixed_scale": {"fraction": 0.01, "scale": 2.0}}"#;

/// In the order of a plan: full precision, then RTN and AWQ at 4 and at 3 bits.
fn records() -> Vec<Record> {
    vec![
        record(None, 0.0),
        record(Some((RTN, grid(4, 128))), 0.05),
        record(Some((AWQ, grid(4, 128))), 0.03),
        record(Some((RTN, grid(3, 64))), 0.3),
        record(Some((AWQ, grid(3, 64))), 0.12),
    ]
}

fn reference(model: &str, method: &str, grid: Option<&str>, perplexity: f64) -> ReferenceValue {
    ReferenceValue {
        model: model.into(),
        method: method.into(),
        grid: grid.map(str::to_owned),
        calibration: None,
        dataset: Some("wikitext2-test".into()),
        protocol: Some("gptq".into()),
        seq_len: NonZeroUsize::new(256),
        perplexity: Some(perplexity),
        metric: None,
        value: None,
        changed_steps: None,
        step_ratio: None,
        step_ratio_over_scale: None,
        source: "A paper, table 4".into(),
        note: None,
    }
}

fn table(rows: &[TableAxis], columns: &[TableAxis], values: &[TableValue]) -> TableSpec {
    TableSpec {
        title: "Table 4 of a paper".into(),
        rows: rows.to_vec(),
        columns: columns.to_vec(),
        values: values.to_vec(),
    }
}

fn plan(records: &[Record], references: Vec<ReferenceValue>, table: TableSpec) -> Plan {
    let cells: Vec<Cell> = records.iter().map(|record| record.cell.clone()).collect();
    let model = cells[0].model.clone();
    Plan {
        question: QUESTION.into(),
        models: vec![ModelPlan { model, cells }],
        export: None,
        references,
        baseline: "RTN".into(),
        table: Some(table),
        figure: None,
        published_speed: Vec::new(),
    }
}

fn rows(plan: &Plan, records: &[Record]) -> Vec<Row> {
    frame::rows(&frame::newest(records), &plan.references, &plan.baseline).unwrap()
}

/// Cells of a table's text, row by row, without headings.
fn texts(plan: &Plan, records: &[Record]) -> Vec<Vec<String>> {
    let rows = rows(plan, records);
    let tables: Vec<Table> = paper_tables(&pivots(plan, &rows, &frame::newest(records))).collect();
    assert_eq!(tables.len(), 1);
    tables[0].rows.iter().map(|row| row.cells.clone()).collect()
}

/// A cell under a named calibration of so many sequences.
pub(super) fn calibrated(method: &str, name: &str, n_sequences: usize, nll: f64) -> Record {
    let mut record = record(Some((method, grid(3, 64))), nll);
    let quantization = record.cell.quantization.as_mut().unwrap();
    let n = NonZeroUsize::new(n_sequences).unwrap();
    quantization.calibration = Some(CalibrationSpec {
        dataset: DatasetSpec::Bundled(BundledText {
            split: BundledSplit::Calibration,
            n_documents: 9.try_into().unwrap(),
            topic: None,
        }),
        sampling: SamplingSpec::RandomCrops(RandomCrops { n_sequences: n, seed: 0, first_token: 0 }),
        seq_len: NonZeroUsize::new(64).unwrap(),
        propagation: Propagation::FullPrecision,
    });
    quantization.calibration_name = Some(name.to_owned());
    record.cell_id = record.cell.id();
    done(&mut record).quantization.as_mut().unwrap().n_calibration_sequences = n_sequences;
    record
}

/// Full precision, RTN, and AWQ under two calibrations.
fn robustness() -> Vec<Record> {
    vec![
        record(None, 0.0),
        record(Some((RTN, grid(3, 64))), 0.3),
        calibrated(AWQ, "few", 2, 0.2),
        calibrated(AWQ, "many", 32, 0.12),
    ]
}

#[test]
fn paper_table_snapshot() {
    let records = records();
    let doubtful =
        ReferenceValue { note: Some("doubtful".into()), ..reference("Tiny_1M", "AWQ", Some("W3 g64"), 14.5) };
    let elsewhere =
        ReferenceValue { seq_len: NonZeroUsize::new(2048), ..reference("Tiny_1M", "RTN", Some("W3 g64"), 9.9) };
    let references = vec![
        reference("Tiny_1M", "FP16", None, 12.0),
        doubtful,
        elsewhere,
        reference("Big_7B", "AWQ", Some("W3 g64"), 6.24),
    ];
    let layout =
        table(&[TableAxis::Grid, TableAxis::Method], &[TableAxis::Model], &[TableValue::Metric(MetricKey::USUAL)]);
    let plan = plan(&records, references, layout);
    let folder = tempfile::tempdir().unwrap();
    let files = write_report(folder.path(), &plan, &records, &[]).unwrap();
    let names: Vec<_> = files.paper_tables.iter().map(|path| path.file_name().unwrap().to_string_lossy()).collect();
    let of_formats = TABLE_FORMATS.iter().map(|format| format.extension).chain(["csv"]);
    assert_eq!(names, of_formats.map(|extension| format!("paper-table.{extension}")).collect::<Vec<_>>());
    let read = |index: usize| std::fs::read_to_string(&files.paper_tables[index]).unwrap();
    insta::assert_snapshot!(read(0), @r#"
    # Does AWQ beat RTN at 3 bit?

    | grid | method | Tiny\_1M | Big\_7B |
    | :-- | :-- | --: | --: |
    | - | FP | 12.165 (12, +0.165) | - |
    | W4 g128 | RTN | 12.799 | - |
    | W4 g128 | AWQ | **12.541** | - |
    | W3 g64 | RTN | 16.501 | - |
    | W3 g64 | AWQ | **13.742 (14.5 [a], -0.758)** | - (6.24) |

    LIMITED RUN: first 12 of 1,292 windows of wikitext2-test. Table 4 of a paper. Perplexity per token on wikitext2-test, protocol gptq (non-overlapping windows of 256 tokens, all but the first token of each scored). The base model is stored in BF16. In parentheses: the published number, and ours minus it. Intervals are in table.csv: stationary bootstrap of 12 windows in blocks of 1.0 on average (length by Politis and White). Commit 0123456 (dirty). Bold: not worse than the best method on its model, grid, text and calibration, beyond the paired 95% interval.

    Published: A paper, table 4.

    [a] doubtful.
    "#);
    let latex = read(1);
    assert!(latex.contains("  W3 g64 & AWQ & \\textbf{13.742 (14.5 [a], $-$0.758)} & - (6.24) \\\\\n"), "{latex}");
    assert!(latex.contains("\\midrule\n  W3 g64 & RTN"), "a rule above each grid: {latex}");
    let csv = read(TABLE_FORMATS.len());
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(
        lines[0],
        "grid,method,number,Tiny_1M,\"Tiny_1M, published\",\"Tiny_1M, ours - published\",Big_7B,\"Big_7B, published\",\"Big_7B, ours - published\""
    );
    assert!(lines[5].starts_with("W3 g64,AWQ,perplexity,13.74") && lines[5].ends_with(",,6.24,"), "{csv}");
    assert!(lines[4].ends_with(",,,,,"), "the number of another window length is not printed: {csv}");
    let page = std::fs::read_to_string(&files.html).unwrap();
    assert!(page.contains("13.742 (14.5 [a], -0.758)"));
}

#[test]
fn a_published_number_stands_only_beside_the_same_measurement() {
    let records = robustness();
    let layout = || table(&[TableAxis::Method], &[TableAxis::Calibration], &[TableValue::Metric(MetricKey::USUAL)]);
    let shown = |change: &dyn Fn(&mut ReferenceValue)| {
        let mut published = reference("Tiny_1M", "AWQ", Some("W3 g64"), 14.5);
        change(&mut published);
        let plan = plan(&records, vec![published], layout());
        let rows = rows(&plan, &records);
        let unmatched = frame::unmatched_references(&rows, &plan.references);
        let beside: Vec<_> =
            rows.iter().filter(|row| row.reference.is_some()).map(|row| row.calibration.clone()).collect();
        assert_eq!(unmatched.is_empty(), !beside.is_empty(), "a number that is shown nowhere is listed");
        beside.into_iter().flatten().collect::<Vec<_>>()
    };
    assert_eq!(shown(&|_| ()), ["few", "many"]);
    assert_eq!(shown(&|r| r.calibration = Some("many".into())), ["many"]);
    assert_eq!(shown(&|r| (r.dataset, r.protocol, r.seq_len) = (None, None, None)), ["few", "many"]);
    let nowhere: [&dyn Fn(&mut ReferenceValue); 6] = [
        &|r| r.calibration = Some("more".into()),
        &|r| r.dataset = Some("c4".into()),
        &|r| r.protocol = Some("llama-cpp".into()),
        &|r| r.seq_len = NonZeroUsize::new(2048),
        &|r| r.grid = Some("W4 g64".into()),
        &|r| r.model = "Tiny".into(),
    ];
    for change in nowhere {
        assert_eq!(shown(change), [""; 0]);
    }
}

#[test]
fn what_needs_no_calibration_stands_under_each() {
    let records = robustness();
    let columns = table(&[TableAxis::Method], &[TableAxis::Calibration], &[TableValue::Metric(MetricKey::USUAL)]);
    let by_column = texts(&plan(&records, vec![], columns), &records);
    assert_eq!(by_column, [["FP", "12.165", "12.165"], ["RTN", "16.501", "16.501"], ["AWQ", "14.906", "13.742"]]);
    // Beside the method's own name it stands once.
    let rows = table(&[TableAxis::Method, TableAxis::Calibration], &[], &[TableValue::Metric(MetricKey::USUAL)]);
    let by_row = texts(&plan(&records, vec![], rows), &records);
    let headings: Vec<_> = by_row.iter().map(|cells| cells[..2].to_vec()).collect();
    assert_eq!(headings, [["FP", "-"], ["RTN", "-"], ["AWQ", "few"], ["AWQ", "many"]]);
}

#[test]
fn a_fixed_scale_shows_what_it_did_to_steps() {
    let mut scaled = record(Some((SCALED, grid(3, 64))), 0.1);
    let change = |n_groups, n_changed, mean_ratio| LinearLog {
        step_change: Some(StepChange { n_groups, n_changed, mean_ratio }),
        ..LinearLog::default()
    };
    let blocks = &mut done(&mut scaled).quantization.as_mut().unwrap().blocks;
    blocks[0].linears = vec![change(10, 1, 1.1), LinearLog::default()];
    blocks[1].linears = vec![change(30, 9, 1.2)];
    let records = [record(None, 0.0), scaled];
    let published = ReferenceValue {
        perplexity: None,
        metric: None,
        value: None,
        changed_steps: Some(0.082),
        step_ratio: Some(1.038),
        ..reference("Tiny_1M", "s=2 on 1%", Some("W3 g64"), 0.0)
    };
    let values = [
        TableValue::ChangedSteps,
        TableValue::StepRatio,
        TableValue::StepRatioOverScale,
        TableValue::Metric(MetricKey::USUAL),
    ];
    let plan = plan(&records, vec![published], table(&[], &[TableAxis::Method], &values));
    let shown = texts(&plan, &records);
    let numbers = |row: usize| [shown[row][0].as_str(), &shown[row][1], &shown[row][2]];
    assert_eq!(numbers(0), ["share of steps changed", "-", "25.0% (8.2%, +16.8%)"]);
    assert_eq!(numbers(1), ["mean step ratio", "-", "1.175 (1.038, +0.137)"]);
    assert_eq!(numbers(2), ["mean step ratio / s", "-", "0.588"]);
    assert_eq!(numbers(3)[..2], ["perplexity", "12.165"]);
}

#[test]
fn several_texts_are_several_tables_unless_they_are_an_axis() {
    let mut records = records();
    for record in &mut records {
        let mut other = done(record).measurements[0].clone();
        other.dataset = "another".into();
        done(record).measurements.push(other);
    }
    let newest = frame::newest(&records);
    let apart = plan(
        &records,
        vec![],
        table(&[TableAxis::Grid], &[TableAxis::Method], &[TableValue::Metric(MetricKey::USUAL)]),
    );
    let rows = rows(&apart, &records);
    assert_eq!(pivots(&apart, &rows, &newest).len(), 2);
    let axes = [TableAxis::Method, TableAxis::Dataset];
    let together = plan(&records, vec![], table(&[TableAxis::Grid], &axes, &[TableValue::Metric(MetricKey::USUAL)]));
    let pivots = pivots(&together, &rows, &newest);
    assert_eq!(pivots.len(), 1);
    // Texts stand in the order in which they are evaluated, not in that of their names.
    assert_eq!(pivots[0].columns[..2], [["FP", "wikitext2-test"], ["FP", "another"]]);
}

#[test]
fn calibration_lines_have_a_point_a_calibration_and_hollow_published_ones() {
    let records = robustness();
    let published =
        ReferenceValue { calibration: Some("few".into()), ..reference("Tiny_1M", "AWQ", Some("W3 g64"), 14.5) };
    let layout = table(&[TableAxis::Method], &[TableAxis::Calibration], &[TableValue::Metric(MetricKey::USUAL)]);
    let plan = plan(&records, vec![published], layout);
    let figures = lines::line_figures(&rows(&plan, &records), LinesX::CalibrationSequences);
    assert_eq!(figures.len(), 1);
    let panel = &figures[0].panels[0];
    let series: Vec<_> = panel.series.iter().map(|series| (series.name.as_str(), series.points.len())).collect();
    assert_eq!(series, [("AWQ", 2), ("AWQ, published", 1)]);
    let ours = &panel.series[0];
    assert_eq!(ours.points.iter().map(|point| point.x).collect::<Vec<_>>(), [2.0, 32.0]);
    assert!(ours.points.iter().all(|point| point.bar.is_some_and(|(low, high)| low < point.y && point.y < high)));
    assert_eq!((panel.series[1].look.filled, ours.look.filled), (false, true), "hollow and filled");
    assert_eq!(panel.series[1].look.color, ours.look.color);
    let x = &panel.x;
    assert_eq!(x.ticks.iter().map(|&tick| x.tick_label(tick)).collect::<Vec<_>>(), ["2", "32"]);
    let levels: Vec<(&str, bool)> =
        panel.levels.iter().map(|level| (level.name.as_str(), level.value < panel.series[0].points[0].y)).collect();
    assert_eq!(levels, [("full precision (12.16)", true), ("RTN W3 g64 (16.50)", false)]);
    let svg = Picture::Lines(figures[0].clone()).svg().unwrap();
    let corners =
        svg.split("points=\"").skip(1).filter_map(|rest| rest.split('"').next()).flat_map(str::split_whitespace);
    let xs: Vec<f64> = corners.filter_map(|corner| corner.split(',').next()?.parse().ok()).collect();
    assert!(xs.len() > 10 && xs.iter().all(|x| (0.0..=1000.0).contains(x)), "something is drawn outside: {xs:?}");
    let same_length = lines::line_figures(&rows(&plan, &records), LinesX::CalibrationSeqLen);
    assert!(same_length[0].panels[0].series[0].points.iter().all(|point| point.x == 64.0));
}

#[test]
fn a_matrix_shows_the_loss_against_the_calibration_on_the_same_text() {
    let mut records = robustness();
    let evaluation = EvaluationSpec::Perplexity(ScoredText {
        dataset: DatasetSpec::Sotu(Sotu { split: SotuSplit::Test }),
        protocol: ProtocolSpec::Gptq(GptqProtocol { seq_len: 256.try_into().unwrap() }),
        max_windows: None,
        arithmetic: Default::default(),
    });
    for record in &mut records {
        record.cell.evaluations = vec![evaluation.clone()];
        let quantization = record.cell.quantization.as_mut();
        let calibration = quantization.and_then(|q| q.calibration_name.clone().zip(q.calibration.as_mut()));
        if let Some((name, calibration)) = calibration {
            // The other stays on another text.
            if name == "few" {
                calibration.dataset = DatasetSpec::Sotu(Sotu { split: SotuSplit::Calibration });
            }
        }
        record.cell_id = record.cell.id();
    }
    let layout = table(
        &[TableAxis::Method, TableAxis::Calibration],
        &[TableAxis::Dataset],
        &[TableValue::Metric(MetricKey::USUAL)],
    );
    let plan = plan(&records, vec![reference("Tiny_1M", "RTN", Some("W3 g64"), 15.5)], layout);
    let rows = rows(&plan, &records);
    let newest = frame::newest(&records);
    let pivots = pivots(&plan, &rows, &newest);
    let matrix = Matrix::of(&pivots[0], "Caption.", &matrix::Kinds::of(&newest));
    let headings: Vec<&str> = matrix.rows.iter().map(|(heading, _)| heading.as_str()).collect();
    assert_eq!(headings, ["FP", "RTN", "AWQ, few", "AWQ, many"]);
    let cells: Vec<&matrix::MatrixCell> = matrix.rows.iter().map(|(_, cells)| cells[0].as_ref().unwrap()).collect();
    let difference = cells[3].value - cells[2].value;
    assert_eq!(
        cells.iter().map(|cell| cell.loss).collect::<Vec<_>>(),
        [Loss::Unknown, Loss::Unknown, Loss::Matched, Loss::AboveMatched(difference)]
    );
    let said = matrix::signed(difference);
    let svg = Picture::Matrix(matrix).svg().unwrap();
    for text in ["AWQ, few", "wikitext2-test", "16.501 (15.5)", "same text", said.as_str()] {
        assert!(svg.contains(&format!("aria-label=\"{text}\"")), "{text} is not drawn");
    }
}
