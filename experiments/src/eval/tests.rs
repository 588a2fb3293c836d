//! What every registered metric owes, and one scoring pass for several of them on tiny decoders. A new registry line does not
//! compile here until [`by_hand`] has an example of it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::sync::{Arc, OnceLock};

use awq_core::arithmetic::Arithmetic;
use awq_core::backend::float_vec;
use awq_core::driver::{Job, quantize_model};
use awq_core::grid::{Bits, Granularity, Grid};
use awq_core::load::Checkpoint;
use awq_core::model::tiny::{self, TinySpec};
use awq_core::model::{Decoder, NoTap, wiring_of};
use awq_core::rule::GridRule;
use burn::backend::Flex;
use burn::tensor::Tensor;

use super::metric::{Direction, Metric, Needs, OfItem, Per, Scored, Unit};
use super::registry::MetricKey;
use super::score::score;
use super::scores::{Scores, Writings};
use super::windows::{Items, Windows};
use super::{BaseModel, ScoringArithmetic};
use crate::registry::MethodSpec;
use crate::stats::Estimator;
use crate::tasks::TaskName;
use crate::tasks::fixtures::{fixtures, problems};

/// Logits of two rows over three tokens: probabilities 1/2, 1/4, 1/4 and 1/8, 1/8, 3/4.
const OWN: [[f32; 3]; 2] = [[4.0, 2.0, 2.0], [1.0, 1.0, 6.0]];
/// Probabilities 1/4, 1/2, 1/4 and 1/8, 1/8, 3/4.
const BASE: [[f32; 3]; 2] = [[2.0, 4.0, 2.0], [1.0, 1.0, 6.0]];
const TARGETS: [u32; 2] = [0, 1];

/// What a metric must give on each row above, of which the tables hold `exp` of the logits.
fn by_hand(metric: MetricKey) -> [f64; 2] {
    match metric {
        // See `each_metric_of_texts_gives_what_a_hand_gives`.
        MetricKey::StrictMatch
        | MetricKey::FlexibleExtract
        | MetricKey::PassAt1
        | MetricKey::PassAt10
        | MetricKey::PassAt100 => [f64::NAN; 2],
        MetricKey::Perplexity
        | MetricKey::WordPerplexity
        | MetricKey::BytePerplexity
        | MetricKey::Accuracy
        | MetricKey::NormalizedAccuracy
        | MetricKey::TargetNll
        | MetricKey::TargetPerplexity => [2.0_f64.ln(), 8.0_f64.ln()],
        MetricKey::BitsPerByte => [1.0, 3.0],
        // 1/4 ln(1/4 : 1/2) + 1/2 ln(1/2 : 1/4) + 1/4 ln 1 is 1/4 ln 2; the second rows are the same.
        MetricKey::KlDivergence | MetricKey::KlMedian | MetricKey::KlP90 | MetricKey::KlP99 | MetricKey::KlMax => {
            [0.25 * 2.0_f64.ln(), 0.0]
        }
        // 1/2 in place of 1/4; 1/8 in both.
        MetricKey::RmsProbabilityChange => [1.0 / 16.0, 0.0],
        // Token 0 is the likeliest of the first row, token 1 is not of the second.
        MetricKey::NextTokenAccuracy => [1.0, 0.0],
        // What greedy decoding misses.
        MetricKey::GreedyAccuracy => [0.0, 1.0],
        // Token 0 against token 1; token 2 in both.
        MetricKey::TopTokenAgreement => [0.0, 1.0],
    }
}

/// Rows as logits, with what `needs` asks for and nothing else.
struct Example {
    targets: Vec<u32>,
    nll: Vec<f32>,
    vocab: usize,
    logits: Vec<f32>,
    base_logits: Vec<f32>,
}

impl Example {
    fn new(own: &[Vec<f32>], base: &[Vec<f32>], targets: &[u32], needs: Needs) -> Self {
        let nll = own.iter().zip(targets).map(|(row, &target)| {
            let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            (total.ln() - f64::from(row[target as usize])) as f32
        });
        let (with_own, with_base) = (needs >= Needs::Logits, needs >= Needs::BaseLogits);
        Self {
            targets: targets.to_vec(),
            nll: nll.collect(),
            vocab: own[0].len(),
            logits: if with_own { own.concat() } else { Vec::new() },
            base_logits: if with_base { base.concat() } else { Vec::new() },
        }
    }

    /// What a metric gives on rows `range`.
    fn score(&self, metric: &dyn Metric, range: std::ops::Range<usize>) -> Vec<f32> {
        let of_rows = |logits: &'_ [f32]| match logits {
            [] => Vec::new(),
            logits => logits[range.start * self.vocab..range.end * self.vocab].to_vec(),
        };
        let (logits, base_logits) = (of_rows(&self.logits), of_rows(&self.base_logits));
        metric.score(&Scored {
            targets: &self.targets[range.clone()],
            nll: &self.nll[range.clone()],
            vocab: self.vocab,
            logits: &logits,
            base_logits: &base_logits,
            divergences: OnceLock::new(),
        })
    }
}

fn logs(table: &[[f32; 3]]) -> Vec<Vec<f32>> {
    table.iter().map(|row| row.iter().map(|x| x.ln()).collect()).collect()
}

fn all() -> impl Iterator<Item = (MetricKey, &'static dyn Metric)> {
    MetricKey::ALL.iter().map(|key| (*key, key.metric()))
}

/// Those that score tokens.
fn of_tokens() -> impl Iterator<Item = (MetricKey, &'static dyn Metric)> {
    all().filter(|(_, metric)| metric.needs() != Needs::Nothing)
}

/// What a metric makes of 100 texts on one problem: its first `n_right` texts are right, in the form of the examples if `is_strict`.
fn of_texts(metric: &dyn Metric, n_right: usize, is_strict: bool) -> f64 {
    let mut row = serde_json::Map::new();
    row.insert("question".into(), "1 + 1?".into());
    row.insert("answer".into(), "It is 2.\n#### 2".into());
    let problems = problems(TaskName::Gsm8k, &[row]);
    let right = if is_strict { "so\n#### 2" } else { "it is 2" };
    let texts = (0..100).map(|index| if index < n_right { right } else { "#### 3" }.to_owned()).collect();
    let passes = (0..100).map(|index| index < n_right).collect();
    let writings = Writings { texts: vec![texts], passes: vec![passes], n_tokens: 7 };
    let (of_item, estimator) = (metric.of_item(), metric.quantity().estimator);
    let scores = Scores::of_writings(&writings, &Items::Problems(problems), of_item, estimator).unwrap();
    assert_eq!((scores.samples.len(), scores.n_tokens), (1, 7));
    scores.value()
}

#[test]
fn names_tell_metrics_apart_and_find_them_again() {
    let unique = |names: Vec<&str>| names.iter().collect::<BTreeSet<_>>().len() == MetricKey::ALL.len();
    assert!(unique(all().map(|(key, _)| key.key()).collect()));
    assert!(unique(all().map(|(_, metric)| metric.quantity().name).collect()));
    assert!(unique(all().map(|(_, metric)| metric.quantity().label).collect()));
    for (key, metric) in all() {
        assert_eq!(MetricKey::of_record(metric.quantity().name).unwrap(), key);
        assert_eq!(serde_json::to_string(&key).unwrap(), format!("\"{}\"", key.key()));
    }
    let unknown = MetricKey::of_record("bleu").unwrap_err().to_string();
    assert!(unknown.starts_with("metric bleu is none that this program knows (token_perplexity, "), "{unknown}");
}

#[test]
fn each_metric_gives_what_a_hand_gives() {
    for (key, metric) in of_tokens() {
        let example = Example::new(&logs(&OWN), &logs(&BASE), &TARGETS, metric.needs());
        for (found, expected) in example.score(metric, 0..2).iter().zip(by_hand(key)) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{key:?}: {found}, by hand {expected}");
        }
    }
}

#[test]
fn each_metric_of_texts_gives_what_a_hand_gives() {
    for (key, metric) in all().filter(|(_, metric)| metric.needs() == Needs::Nothing) {
        let expected = match key {
            // C(99, 10) : C(100, 10) is 90 : 100.
            MetricKey::PassAt10 => [0.0, 0.1, 1.0],
            MetricKey::PassAt100 => [0.0, 1.0, 1.0],
            _ => [0.0, 0.01, 1.0],
        };
        for (n_right, expected) in [0, 1, 100].into_iter().zip(expected) {
            let found = of_texts(metric, n_right, true);
            assert!((found - expected).abs() < 1e-12, "{key:?}: {found} of {n_right}, by hand {expected}");
        }
        let is_right = |written: f64| written == 1.0;
        assert_eq!(is_right(of_texts(metric, 100, false)), key != MetricKey::StrictMatch, "{key:?}");
        assert_eq!(metric.quantity().unit, Unit::FractionOfQuestions);
        let windows = Scores::of_windows(vec![vec![1.0]], &Items::Windows, metric.of_item(), Estimator::Mean);
        assert!(windows.unwrap_err().to_string().ends_with("use protocol lm-eval-generation"), "{key:?}");
    }
}

#[test]
fn a_metric_of_many_texts_refuses_few() {
    let writings = Writings { texts: vec![vec![String::new()]], passes: vec![vec![false]], n_tokens: 0 };
    let problems = Items::Problems(problems(TaskName::Mbpp, &fixtures().mbpp.rows[..1]));
    let metric = MetricKey::PassAt10.metric();
    let error = Scores::of_writings(&writings, &problems, metric.of_item(), Estimator::Mean).unwrap_err();
    assert_eq!(error.to_string(), "this metric takes 10 texts on a problem, and there are 1");
    let perplexity = MetricKey::Perplexity.metric().of_item();
    assert!(Scores::of_writings(&writings, &problems, perplexity, Estimator::Mean).is_err());
}

/// A model that is surer of what came, and nearer to the base model, is better by every metric.
#[test]
fn each_metric_is_better_in_its_direction() {
    let rows = |first: f32| -> Vec<Vec<f32>> { vec![vec![first, 0.0, 0.5], vec![0.2, 0.1, first]] };
    let targets = [0, 2];
    let value = |metric: &dyn Metric, first: f32| {
        let example = Example::new(&rows(first), &rows(3.0), &targets, metric.needs());
        let values = example.score(metric, 0..2);
        let (values, items) = match metric.of_item() {
            OfItem::Sum(Per::Token) | OfItem::Quantile(_) | OfItem::Largest => (vec![values], Items::Windows),
            OfItem::Sum(_) => {
                (vec![values], Items::Documents { n_windows: vec![1], n_words: vec![1], n_bytes: vec![6] })
            }
            // A wrong answer stands before the right one.
            OfItem::Question(_) => {
                (vec![vec![1.5], values], Items::Questions { n_chars: vec![vec![3, 3]], targets: vec![1] })
            }
            OfItem::Written { .. } => return of_texts(metric, if first > 0.0 { 60 } else { 0 }, true),
        };
        let scores = Scores::of_windows(values, &items, metric.of_item(), metric.quantity().estimator);
        scores.unwrap().value()
    };
    for (key, metric) in all() {
        let (better, worse) = (value(metric, 2.5), value(metric, -1.0));
        assert!(metric.quantity().direction.worse_by(worse - better) > 0.0, "{key:?}: {better} against {worse}");
    }
}

#[test]
fn each_metric_has_a_unit_that_goes_with_its_estimator() {
    for (key, metric) in all() {
        let quantity = metric.quantity();
        let expected = match quantity.unit {
            Unit::PerToken | Unit::PerWord | Unit::PerByte | Unit::PerAnswer => Estimator::ExpOfMean,
            Unit::NatsAtToken if matches!(metric.of_item(), OfItem::Largest) => Estimator::Largest,
            Unit::Probability => Estimator::RootOfMean,
            Unit::NatsPerToken
            | Unit::NatsAtToken
            | Unit::Fraction
            | Unit::FractionOfQuestions
            | Unit::BitsPerByte
            | Unit::NatsPerAnswer => Estimator::Mean,
        };
        assert_eq!(quantity.estimator, expected, "{key:?}");
        assert!(quantity.words().starts_with(quantity.label), "{key:?}");
    }
    assert_eq!(MetricKey::NextTokenAccuracy.quantity().direction, Direction::HigherIsBetter);
    assert_eq!(MetricKey::KlDivergence.quantity().direction, Direction::LowerIsBetter);
}

#[test]
fn no_metric_sees_how_rows_are_batched() {
    let wave = |row: usize, id: usize, phase: f64| (3.0 * ((7 * row + 3 * id) as f64 + phase).sin()) as f32;
    let rows =
        |phase: f64| -> Vec<Vec<f32>> { (0..13).map(|row| (0..11).map(|id| wave(row, id, phase)).collect()).collect() };
    let targets: Vec<u32> = (0..13).map(|row| (row * 5) % 11).collect();
    for (key, metric) in of_tokens() {
        let example = Example::new(&rows(0.0), &rows(0.3), &targets, metric.needs());
        let together = example.score(metric, 0..13);
        for len in [1, 4] {
            let starts = (0..13).step_by(len);
            let apart: Vec<f32> = starts.flat_map(|at| example.score(metric, at..(at + len).min(13))).collect();
            assert_eq!(apart, together, "{key:?} in parts of {len}");
        }
    }
}

fn decoder(seed: u64) -> Box<dyn Decoder<Flex>> {
    tiny::decoder(&TinySpec::GQA, seed, &Default::default()).unwrap()
}

/// Windows of 24 tokens, of which the second half is scored.
fn windows(n: usize) -> Windows {
    Windows {
        windows: tiny::sequences(&TinySpec::GQA, n, 24, 3),
        n_total: n,
        first_targets: vec![13; n],
        items: Items::Windows,
    }
}

/// Whether a metric is one of windows.
fn of_windows(of_item: OfItem) -> bool {
    matches!(of_item, OfItem::Sum(Per::Token) | OfItem::Quantile(_) | OfItem::Largest)
}

fn metrics() -> Vec<&'static dyn Metric> {
    all().map(|(_, metric)| metric).filter(|metric| of_windows(metric.of_item())).collect()
}

fn scored(own: &dyn Decoder<Flex>, base: &mut BaseModel<'_, Flex>, n: usize, metrics: &[&dyn Metric]) -> Vec<Scores> {
    score(own, &windows(n), ScoringArithmetic::F32, metrics, base, &mut |_| {}).unwrap()
}

/// Probabilities in f64 behind each position of each window, by running the model here.
fn probabilities(decoder: &dyn Decoder<Flex>, windows: &Windows) -> Vec<Vec<f64>> {
    let mut states: Tensor<Flex, 3> = decoder.embedding().unwrap().embed(&windows.windows);
    for block_idx in 0..decoder.config().n_blocks {
        states = decoder.block(block_idx).unwrap().forward(states, &mut NoTap);
    }
    let [n, len, width] = states.dims();
    let logits =
        float_vec(decoder.head(Arithmetic::F32).unwrap().logits(decoder.final_norm(states).reshape([n * len, width])));
    let softmax = |row: &[f32]| {
        let weights: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / total).collect()
    };
    logits.chunks(decoder.config().vocab_size).map(softmax).collect()
}

#[test]
fn divergences_are_those_of_an_independent_computation() {
    let (own, base, windows) = (decoder(7), decoder(8), windows(3));
    let (q, p) = (probabilities(own.as_ref(), &windows), probabilities(base.as_ref(), &windows));
    let metric: &dyn Metric = &super::kl_divergence::KlDivergence;
    let found = &scored(own.as_ref(), &mut BaseModel::new(base.as_ref(), ScoringArithmetic::F32), 3, &[metric])[0];
    let mut all = Vec::new();
    for window in 0..3 {
        // The token at position t is predicted at t - 1.
        for position in windows.first_targets[window]..24 {
            let row = window * 24 + position - 1;
            let cross: f64 = p[row].iter().zip(&q[row]).map(|(p, q)| -p * q.ln()).sum();
            let entropy: f64 = p[row].iter().map(|p| -p * p.ln()).sum();
            let value = f64::from(found.per_item[window][position - windows.first_targets[window]]);
            assert!((value - (cross - entropy)).abs() < 1e-6 * (1.0 + value), "{value} {}", cross - entropy);
            all.push(value);
        }
    }
    assert!((found.value() - all.iter().sum::<f64>() / 33.0).abs() < 1e-12);
    assert!(found.value() > 0.01, "the two models differ: {}", found.value());
    // Of 33 tokens the 17th is the median; those next to the other quantiles are at 28.8 and 31.68.
    all.sort_by(f64::total_cmp);
    let of_sorted = [
        (MetricKey::KlMedian, all[16]),
        (MetricKey::KlP90, 0.2 * all[28] + 0.8 * all[29]),
        (MetricKey::KlP99, 0.32 * all[31] + 0.68 * all[32]),
        (MetricKey::KlMax, all[32]),
    ];
    for (key, expected) in of_sorted {
        let found =
            &scored(own.as_ref(), &mut BaseModel::new(base.as_ref(), ScoringArithmetic::F32), 3, &[key.metric()])[0];
        assert!((found.value() - expected).abs() < 1e-9 * (1.0 + expected), "{key:?}: {} {expected}", found.value());
    }
}

/// One thread passes batches one by one, two threads side by side.
#[test]
fn batches_side_by_side_change_no_bit() {
    let (own, base) = (decoder(7), decoder(8));
    for arithmetic in [ScoringArithmetic::F32, ScoringArithmetic::Bf16] {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut base = BaseModel::new(base.as_ref(), ScoringArithmetic::F32);
            let (windows, metrics) = (windows(400), metrics());
            pool.install(|| score(own.as_ref(), &windows, arithmetic, &metrics, &mut base, &mut |_| {}).unwrap())
        };
        let one_by_one = on(1);
        for threads in [2, 8] {
            assert_eq!(one_by_one, on(threads), "{arithmetic:?} on {threads} threads");
        }
    }
    assert!(windows(400).batches(super::score::tokens_per_batch(own.config().hidden_size)).len() > 8);
}

#[test]
fn one_pass_gives_each_metric_what_it_gets_alone() {
    let (own, base) = (decoder(7), decoder(8));
    let together = scored(own.as_ref(), &mut BaseModel::new(base.as_ref(), ScoringArithmetic::F32), 3, &metrics());
    for (metric, together) in metrics().into_iter().zip(&together) {
        let alone = scored(own.as_ref(), &mut BaseModel::new(base.as_ref(), ScoringArithmetic::F32), 3, &[metric]);
        assert_eq!(alone[0], *together, "{}", metric.quantity().name);
    }
    let of_perplexity = &together[0];
    assert_eq!((of_perplexity.n_tokens, of_perplexity.per_item.len()), (33, 3));
    // More windows change nothing of the first.
    let more = scored(own.as_ref(), &mut BaseModel::new(base.as_ref(), ScoringArithmetic::F32), 100, &metrics());
    for (more, few) in more.iter().zip(&together) {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
        assert!(more.per_item[..3].concat().iter().zip(&few.per_item.concat()).all(close));
    }
}

#[test]
fn the_base_model_runs_once_and_is_at_nothing_from_itself() {
    let (own, base) = (decoder(7), decoder(8));
    let mut held = BaseModel::new(base.as_ref(), ScoringArithmetic::F32);
    let accuracy: &dyn Metric = &super::next_token_accuracy::NextTokenAccuracy;
    scored(own.as_ref(), &mut held, 3, &[accuracy]);
    assert!(!held.is_kept(), "what needs no base model runs none");
    let first = scored(own.as_ref(), &mut held, 3, &metrics());
    assert!(held.is_kept());
    let mut n_tokens = 0;
    let again = score(own.as_ref(), &windows(3), ScoringArithmetic::F32, &metrics(), &mut held, &mut |n| n_tokens += n);
    assert_eq!(again.unwrap(), first);
    assert_eq!(n_tokens, 3 * 23 * 2, "the scored model alone passed through its two blocks");
    let itself = scored(base.as_ref(), &mut held, 3, &metrics());
    assert!(itself[1].per_item.iter().flatten().all(|&kl| kl == 0.0));
}

#[test]
fn a_model_in_bf16_is_a_little_away_from_itself_in_f32() {
    let (own, other) = (decoder(7), decoder(8));
    let metric: &dyn Metric = &super::kl_divergence::KlDivergence;
    let divergence = |arithmetic, base: &dyn Decoder<Flex>| {
        let mut base = BaseModel::new(base, ScoringArithmetic::F32);
        score(own.as_ref(), &windows(3), arithmetic, &[metric], &mut base, &mut |_| {}).unwrap()[0].value()
    };
    let floor = divergence(ScoringArithmetic::Bf16, own.as_ref());
    let between = divergence(ScoringArithmetic::F32, other.as_ref());
    assert!(floor > 0.0 && floor < 0.01 * between, "{floor} {between}");
}

/// Codes are multiplied as they are: nearer to f32 than bf16 is, and weights that are floats not moved at all.
#[test]
fn products_of_codes_with_int16_score_as_f32_does() {
    let own = decoder(7);
    let spec = TinySpec::GQA;
    let base: Arc<dyn Checkpoint> = Arc::new(tiny::checkpoint(&spec, 7));
    let wiring = wiring_of(&spec.config(), base.as_ref()).unwrap();
    let grid = Grid::awq(Bits::new(4).unwrap(), Granularity::PerGroup(NonZeroU16::new(32).unwrap()));
    let rtn = MethodSpec::presets("rtn").remove(0).1;
    let jobs = [Job { method: rtn.method::<Flex>(), grids: GridRule::from(grid).resolve(&wiring).unwrap() }];
    let pass = quantize_model(own.as_ref(), None, &jobs, &mut |_| {}).unwrap();
    let model = pass.models.into_iter().next().unwrap().unwrap();
    let quantized = own.over(Arc::new(model.into_checkpoint(&wiring, base))).unwrap();
    assert_eq!(quantized.codes(0).unwrap().len(), 7);

    let perplexity: &dyn Metric = &super::perplexity::Perplexity;
    let scored_on = |n, decoder: &dyn Decoder<Flex>, arithmetic| {
        let mut base = BaseModel::new(own.as_ref(), arithmetic);
        score(decoder, &windows(n), arithmetic, &[perplexity], &mut base, &mut |_| {}).unwrap().remove(0).value().ln()
    };
    let scored = |decoder: &dyn Decoder<Flex>, arithmetic| scored_on(3, decoder, arithmetic);
    let [f32, bf16, int16] = [ScoringArithmetic::F32, ScoringArithmetic::Bf16, ScoringArithmetic::Int16]
        .map(|arithmetic| scored(quantized.as_ref(), arithmetic));
    let (bf16, int16) = ((bf16 - f32).abs(), (int16 - f32).abs());
    assert!(int16 > 0.0 && int16 < 0.02 * bf16, "{int16} and in bf16 {bf16} away from {f32}");
    let of_floats = |arithmetic| scored(own.as_ref(), arithmetic);
    assert_eq!(of_floats(ScoringArithmetic::Int16), of_floats(ScoringArithmetic::F32));
    // So many rows that tiles multiply them, where the CPU has any.
    let of_many = |arithmetic| scored_on(100, own.as_ref(), arithmetic);
    let (f32, bf16x3) = (of_many(ScoringArithmetic::F32), of_many(ScoringArithmetic::Bf16x3));
    assert!((bf16x3 - f32).abs() < 1e-6, "{bf16x3} is not {f32}");
}

/// Answers to questions, which share their beginnings and differ in length, against each window scored by itself.
#[test]
fn answers_are_scored_as_windows_of_their_own() {
    let own = decoder(7);
    let long = tiny::sequences(&TinySpec::GQA, 3, 24, 5);
    // Two questions of three answers each; the last window has another beginning.
    let windows: Vec<Vec<u32>> = vec![
        long[0][..14].to_vec(),
        [&long[0][..10], &long[1][..8]].concat(),
        [&long[0][..10], &long[2][..3]].concat(),
        long[1][..6].to_vec(),
        [&long[1][..5], &long[2][..1]].concat(),
        long[2].clone(),
    ];
    let first_targets = vec![10, 10, 10, 5, 5, 20];
    let items = Items::Questions { n_chars: vec![vec![4, 8, 3], vec![1, 1, 4]], targets: vec![0, 2] };
    let questions = Windows { windows: windows.clone(), n_total: 2, first_targets: first_targets.clone(), items };
    let mut base = BaseModel::new(own.as_ref(), ScoringArithmetic::F32);
    let metrics: Vec<&dyn Metric> =
        all().map(|(_, metric)| metric).filter(|metric| matches!(metric.of_item(), OfItem::Question(_))).collect();
    let mut n_passed = 0;
    let found =
        score(own.as_ref(), &questions, ScoringArithmetic::F32, &metrics, &mut base, &mut |n| n_passed += n).unwrap();
    // What the first three share, all but their last tokens, passes once; so do the four that the next two share.
    let n_tokens = 13 + 7 + 2 + 5 + 23;
    assert_eq!((n_passed, super::score::n_tokens_fed(&questions, own.config().hidden_size)), (2 * n_tokens, n_tokens));
    let perplexity: &dyn Metric = &super::perplexity::Perplexity;
    let alone = |(window, first): (&Vec<u32>, &usize)| {
        let one =
            Windows { windows: vec![window.clone()], n_total: 1, first_targets: vec![*first], items: Items::Windows };
        score(
            own.as_ref(),
            &one,
            ScoringArithmetic::F32,
            &[perplexity],
            &mut BaseModel::new(own.as_ref(), ScoringArithmetic::F32),
            &mut |_| {},
        )
        .unwrap()
        .remove(0)
        .per_item
        .remove(0)
    };
    let expected: Vec<Vec<f32>> = windows.iter().zip(&first_targets).map(alone).collect();
    let of_likelihoods = metrics.iter().zip(&found).filter(|(metric, _)| metric.needs() == Needs::Likelihoods);
    for (metric, scores) in of_likelihoods {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
        let name = metric.quantity().name;
        assert_eq!(scores.per_item.len(), 6, "{name}");
        assert!(scores.per_item.concat().iter().zip(&expected.concat()).all(close), "{name}");
        assert_eq!(scores.samples.len(), 2, "{name}");
    }
}
