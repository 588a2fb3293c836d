//! Several metrics of the same cells in tables and figures: each has its own, by its direction and estimator.

#![allow(clippy::unwrap_used)]

use super::tests::{AWQ, RTN, done, grid, plan, record, references};
use super::*;
use crate::config::{TableAxis, TableSpec, TableValue};
use crate::eval::registry::MetricKey;
use crate::record::Measurement;
use crate::stats::{self, Estimator};

/// A record that also holds a KL divergence and an accuracy, about which its windows swing.
fn measured(mut record: Record, divergence: f64, accuracy: f64) -> Record {
    let measurements = &mut done(&mut record).measurements;
    for (metric, level) in [(MetricKey::NextTokenAccuracy, accuracy), (MetricKey::KlDivergence, divergence)] {
        let samples: Vec<f64> =
            (0..12).map(|window| level * (1.0 + 0.1 * (1.3 * f64::from(window) + level).sin())).collect();
        let metric = metric.quantity().name.to_owned();
        let value = Estimator::Mean.value(&samples);
        measurements.push(Measurement { metric, value, samples, ..measurements[0].clone() });
    }
    record
}

fn records() -> Vec<Record> {
    vec![
        measured(record(None, 0.0), 0.0, 0.45),
        measured(record(Some((RTN, grid(3, 64))), 0.3), 0.25, 0.36),
        measured(record(Some((AWQ, grid(3, 64))), 0.12), 0.1, 0.42),
    ]
}

fn rows(records: &[Record]) -> Vec<Row> {
    super::tests::rows(records, &[])
}

fn of_metric(rows: &[Row], metric: MetricKey) -> Vec<&Row> {
    rows.iter().filter(|row| row.metric == metric).collect()
}

#[test]
fn three_metrics_are_three_tables() {
    let table = terminal_table(&plan(&records(), vec![]), &records(), &[]).unwrap();
    insta::assert_snapshot!(table, @r"
    Does AWQ beat RTN at 3 bit?

    ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
    method  grid    bits/w        perplexity   ln ratio to FP [95% CI]    ln ratio to RTN [95% CI]
    ──────────────────────────────────────────────────────────────────────────────────────────────
    FP      -        16.00  12.165 ± 0.621                           -                           -
    ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌
    RTN     W3 g64    3.30  16.501 ± 0.861    +0.3049 [0.2783, 0.3314]                           -
    AWQ     W3 g64    3.30  13.742 ± 0.703 *  +0.1219 [0.1113, 0.1326]  -0.1829 [-0.1988, -0.1670]
    ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
    LIMITED RUN: first 12 of 1,292 windows of wikitext2-test. Tiny_1M on wikitext2-test: perplexity per token,
    protocol gptq (non-overlapping windows of 256 tokens, all but the first token of each scored); 12 windows,
    3,060 tokens scored. ± is the standard error. Brackets are 95% intervals, ratios paired over windows:
    stationary bootstrap of 12 windows in blocks of 1.0 on average (length by Politis and White). An ln ratio is
    ln of the perplexity over that of full precision (FP) or RTN, in nats per token: 0.01 is about 1%. The base
    model is stored in BF16. Bits per weight count scales and zero points. Commit 0123456 (dirty). *: not worse
    than the best on its grid, beyond the paired 95% interval.

    ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
    method  grid    bits/w        KL divergence    difference to FP [95% CI]     difference to RTN [95% CI]
    ───────────────────────────────────────────────────────────────────────────────────────────────────────
    FP      -        16.00  0.00000 ± 0.00000                              -                              -
    ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌
    RTN     W3 g64    3.30  0.25309 ± 0.00808    +0.25309 [0.23122, 0.27546]                              -
    AWQ     W3 g64    3.30  0.10113 ± 0.00310 *  +0.10113 [0.09265, 0.10947]  -0.15196 [-0.16639, -0.13798]
    ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
    LIMITED RUN: first 12 of 1,292 windows of wikitext2-test. Tiny_1M on wikitext2-test: KL divergence in nats per
    token, protocol gptq (non-overlapping windows of 256 tokens, all but the first token of each scored); 12
    windows, 3,060 tokens scored. ± is the standard error. Brackets are 95% intervals, differences paired over
    windows: stationary bootstrap of 12 windows in blocks of 1.0 to 2.9 on average (length by Politis and White).
    A difference is the KL divergence minus that of full precision (FP) or RTN; lower is better. The base model is
    stored in BF16. Bits per weight count scales and zero points. Commit 0123456 (dirty). *: not worse than the
    best on its grid, beyond the paired 95% interval.

    ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
    method  grid    bits/w  next-token accuracy   difference to FP [95% CI]  difference to RTN [95% CI]
    ───────────────────────────────────────────────────────────────────────────────────────────────────
    FP      -        16.00    0.4560 ± 0.0152                             -                           -
    ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌
    RTN     W3 g64    3.30    0.3647 ± 0.0119    -0.0913 [-0.1015, -0.0816]                           -
    AWQ     W3 g64    3.30    0.4255 ± 0.0141 *  -0.0304 [-0.0338, -0.0271]    +0.0609 [0.0544, 0.0676]
    ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
    LIMITED RUN: first 12 of 1,292 windows of wikitext2-test. Tiny_1M on wikitext2-test: next-token accuracy, a
    fraction of the tokens, protocol gptq (non-overlapping windows of 256 tokens, all but the first token of each
    scored); 12 windows, 3,060 tokens scored. ± is the standard error. Brackets are 95% intervals, differences
    paired over windows: stationary bootstrap of 12 windows in blocks of 2.9 to 3.1 on average (length by Politis
    and White). A difference is the next-token accuracy minus that of full precision (FP) or RTN; higher is
    better. The base model is stored in BF16. Bits per weight count scales and zero points. Commit 0123456
    (dirty). *: not worse than the best on its grid, beyond the paired 95% interval.
    ");
}

#[test]
fn the_row_of_the_base_model_is_said_to_be_the_noise_floor() {
    let mut records = records();
    records[0] = measured(record(None, 0.0), 2e-4, 0.45);
    let table = terminal_table(&plan(&records, vec![]), &records, &[]).unwrap();
    let words = table.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = "The row of FP is its products in bf16 against those in f32: the noise floor.";
    assert_eq!(words.matches(said).count(), 1, "under the table of divergences alone: {table}");
}

#[test]
fn numbers_of_a_plain_mean_are_compared_by_differences() {
    let records = records();
    let rows = rows(&records);
    let accuracies = of_metric(&rows, MetricKey::NextTokenAccuracy);
    let (fp, rtn, awq) = (accuracies[0], accuracies[1], accuracies[2]);
    assert_eq!((awq.delta_fp, awq.log_ratio_fp), (Some(awq.value - fp.value), None));
    assert_eq!(awq.delta_baseline, Some(awq.value - rtn.value));
    let samples = |record: usize| match &records[record].outcome {
        crate::record::Outcome::Done(done) => &done.measurements[1].samples,
        crate::record::Outcome::Failed(failed) => unreachable!("{failed:?}"),
    };
    let paired = stats::difference_of_means(samples(2), samples(0), frame::BOOTSTRAP).unwrap();
    let found = [awq.delta_fp_ci_low.unwrap(), awq.delta_fp_ci_high.unwrap()];
    let expected = [paired.interval.low, paired.interval.high];
    assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12), "{found:?}");
    assert!(awq.delta_fp_ci_high.unwrap() < 0.0, "less accurate than full precision beyond doubt");
}

#[test]
fn the_best_is_the_highest_where_higher_is_better() {
    let records = records();
    let newest = frame::newest(&records);
    let standings = Standings::new(&newest);
    let rows = rows(&records);
    for metric in [MetricKey::Perplexity, MetricKey::KlDivergence, MetricKey::NextTokenAccuracy] {
        let rivals = of_metric(&rows, metric)[1..].to_vec();
        let is_best: Vec<bool> = rivals.iter().map(|row| standings.is_among_best(row, &rivals)).collect();
        assert_eq!(is_best, [false, true], "AWQ is better than RTN by {metric:?}");
    }
}

#[test]
fn a_published_table_has_one_table_a_metric_it_names() {
    let records = records();
    let layout = TableSpec {
        title: "T".into(),
        rows: vec![TableAxis::Method],
        columns: vec![TableAxis::Model],
        values: vec![TableValue::Metric(MetricKey::Perplexity), TableValue::Metric(MetricKey::KlDivergence)],
    };
    let of_divergence = ReferenceValue {
        perplexity: None,
        metric: Some(MetricKey::KlDivergence),
        value: Some(0.09),
        ..references()[1].clone()
    };
    let published = vec![references()[1].clone(), of_divergence];
    let asking = Plan { table: Some(layout), ..plan(&records, published) };
    let folder = tempfile::tempdir().unwrap();
    let files = write_report(folder.path(), &asking, &records, &[]).unwrap();
    let text = std::fs::read_to_string(&files.paper_tables[0]).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("| AWQ ")).collect();
    assert_eq!(lines, ["| AWQ | **13.742 (14.5, -0.758)** |", "| AWQ | **0.10113 (0.09, +0.01113)** |"]);
    assert!(text.contains("KL divergence in nats per token on wikitext2-test"), "{text}");
    assert_eq!(
        files.paper_tables.len(),
        TABLE_FORMATS.len() + 2,
        "a file of commas for each: {:?}",
        files.paper_tables
    );
}

#[test]
fn each_metric_has_a_figure_and_only_a_perplexity_has_losses() {
    let folder = tempfile::tempdir().unwrap();
    let records = records();
    let files = write_report(folder.path(), &plan(&records, vec![]), &records, &[]).unwrap();
    let names: Vec<String> =
        files.figures.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    let slugs: Vec<&str> =
        names.iter().filter_map(|name| name.strip_suffix("-tiny-1m-wikitext2-test-gptq-256-first-12.svg")).collect();
    assert_eq!(slugs, ["perplexity", "perplexity-loss", "kl-divergence", "next-token-accuracy"]);
}

#[test]
fn questions_of_a_task_are_counted_against_the_base_model() {
    // The base model is right on the first 8 of 12; RTN loses four of these and wins one, AWQ loses one.
    let right = |questions: &[usize]| -> Vec<f64> {
        (0..12).map(|question| if questions.contains(&question) { 1.0 } else { 0.0 }).collect()
    };
    let answered = |mut record: Record, questions: &[usize]| {
        let measurements = &mut done(&mut record).measurements;
        let samples = right(questions);
        let metric = MetricKey::Accuracy.quantity().name.to_owned();
        let value = Estimator::Mean.value(&samples);
        *measurements = vec![Measurement { metric, value, samples, ..measurements[0].clone() }];
        record
    };
    let records = vec![
        answered(record(None, 0.0), &[0, 1, 2, 3, 4, 5, 6, 7]),
        answered(record(Some((RTN, grid(3, 64))), 0.3), &[0, 1, 2, 3, 8]),
        answered(record(Some((AWQ, grid(3, 64))), 0.12), &[0, 1, 2, 3, 4, 5, 6]),
    ];
    let counts: Vec<_> =
        rows(&records).iter().map(|row| (row.questions_lost, row.questions_won, row.mcnemar_p)).collect();
    assert_eq!(counts, [(None, None, None), (Some(4), Some(1), Some(0.375)), (Some(1), Some(0), Some(1.0))]);
    let table = terminal_table(&plan(&records, vec![]), &records, &[]).unwrap();
    assert!(table.contains("4 : 1, p 0.375") && table.contains("1 : 0, p 1.000"), "{table}");
    let words = table.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("p is McNemar's exact test"), "{table}");
}
