//! [`Number`]: one measurement of a cell in two folders, and whether its difference is beyond noise.

use anyhow::Context;
use serde::Serialize;

use crate::eval::metric::Direction;
use crate::eval::registry::MetricKey;
use crate::record::Measurement;
use crate::report::frame::{BOOTSTRAP, same_windows};
use crate::stats::{self, Estimator, Interval};
use crate::verify::Finished;

/// How many standard errors are 95% of a normal distribution.
const NORMAL_95: f64 = 1.96;

/// A number of a cell, in both folders.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Number {
    /// What the cell is called.
    pub cell: String,
    /// Name of the metric in records.
    pub metric: String,
    /// The text.
    pub dataset: String,
    /// The protocol.
    pub protocol: String,
    /// Tokens of a window.
    pub seq_len: usize,
    /// In the first folder.
    pub first: f64,
    /// In the second.
    pub second: f64,
    /// The second against the first: `ln` of the ratio of perplexities, else the difference.
    pub change: f64,
    /// Its 95% interval, where there is one.
    pub change_interval: Option<[f64; 2]>,
    /// Whether the interval is paired: both were scored on the same windows.
    pub is_paired: bool,
    /// Whether both have the same codes; absent of full precision.
    pub same_codes: Option<bool>,
    /// What to make of it.
    pub verdict: Verdict,
}

/// What to make of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Bit for bit the same, of every window.
    Same,
    /// The interval holds zero.
    WithinNoise,
    /// The second is better beyond the interval.
    Better,
    /// The second is worse beyond the interval.
    Worse,
    /// There is no interval: a single window, or a largest value.
    Unknown,
}

impl Verdict {
    /// Whether the numbers differ beyond their interval.
    pub fn is_beyond_noise(self) -> bool {
        matches!(self, Self::Better | Self::Worse)
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Same => "the same",
            Self::WithinNoise => "within noise",
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Unknown => "no interval",
        }
    }
}

/// The numbers that both have of what is called `cell`.
///
/// # Errors
/// A metric that this program does not know.
pub(super) fn of_cell(cell: &str, first: &Finished<'_>, second: &Finished<'_>) -> anyhow::Result<Vec<Number>> {
    let codes = |finished: &Finished<'_>| finished.done.quantization.as_ref().map(|made| made.codes_sha256.clone());
    let same_codes = codes(first).zip(codes(second)).map(|(first, second)| first == second);
    let mut numbers = Vec::new();
    for (one, other) in pairs(&first.done.measurements, &second.done.measurements) {
        numbers.push(number(cell, one, other, same_codes)?);
    }
    Ok(numbers)
}

/// Those of the same question, and then those of one that differs in arithmetic alone, where both have it in one other alone.
fn pairs<'a>(first: &'a [Measurement], second: &'a [Measurement]) -> Vec<(&'a Measurement, &'a Measurement)> {
    let matching = |one: &Measurement| second.iter().find(|other| is_same_question(one, other));
    let has_none = |one: &&Measurement, others: &[Measurement]| !others.iter().any(|it| is_same_question(one, it));
    let alone: Vec<&Measurement> = second.iter().filter(|other| has_none(other, first)).collect();
    let only = |one: &Measurement| {
        let mut others = alone.iter().filter(|other| is_same_apart_from_arithmetic(one, other));
        let n_own = first.iter().filter(|own| has_none(own, second) && is_same_apart_from_arithmetic(one, own)).count();
        others.next().copied().filter(|_| others.next().is_none() && n_own == 1)
    };
    first.iter().filter_map(|one| Some((one, matching(one).or_else(|| only(one))?))).collect()
}

/// Whether both are of one metric, text, protocol and arithmetic; how much of the text was scored may differ.
fn is_same_question(a: &Measurement, b: &Measurement) -> bool {
    a.arithmetic == b.arithmetic && is_same_apart_from_arithmetic(a, b)
}

fn is_same_apart_from_arithmetic(a: &Measurement, b: &Measurement) -> bool {
    let question = |m: &Measurement| (m.metric.clone(), m.dataset.clone(), m.protocol.clone(), m.seq_len);
    question(a) == question(b)
}

fn number(cell: &str, one: &Measurement, other: &Measurement, same_codes: Option<bool>) -> anyhow::Result<Number> {
    let metric = MetricKey::of_record(&one.metric).with_context(|| format!("cell {cell}"))?;
    let (estimator, direction) = (metric.quantity().estimator, metric.quantity().direction);
    // The windows are the same whatever products are computed in.
    let is_paired = same_windows(one, &Measurement { arithmetic: one.arithmetic, ..other.clone() });
    let change = estimator.mean_of(other.value) - estimator.mean_of(one.value);
    let interval = match is_paired {
        _ if estimator == Estimator::Largest => None,
        true => stats::difference_of_means(other.weighted_samples(), one.weighted_samples(), BOOTSTRAP)
            .ok()
            .map(|paired| paired.interval),
        false => unpaired(one, other, estimator),
    };
    let is_same = is_paired && one.samples == other.samples && one.value == other.value;
    Ok(Number {
        cell: cell.to_owned(),
        metric: one.metric.clone(),
        dataset: one.dataset.clone(),
        protocol: one.protocol.clone(),
        seq_len: one.seq_len,
        first: one.value,
        second: other.value,
        change,
        change_interval: interval.map(|interval| [interval.low, interval.high]),
        is_paired,
        same_codes,
        verdict: if is_same { Verdict::Same } else { verdict(interval, direction) },
    })
}

/// Of numbers of different windows, taken as independent: their standard errors add up.
fn unpaired(one: &Measurement, other: &Measurement, estimator: Estimator) -> Option<Interval> {
    let of_mean = |measurement: &Measurement| {
        let estimate = stats::estimate(measurement.weighted_samples(), estimator, BOOTSTRAP).ok()?;
        Some((estimator.mean_of(estimate.value), estimate.standard_error / estimator.slope_at(estimate.value)))
    };
    let ((first, first_error), (second, second_error)) = (of_mean(one)?, of_mean(other)?);
    let (point, half) = (second - first, NORMAL_95 * first_error.hypot(second_error));
    Some(Interval { point, low: point - half, high: point + half })
}

fn verdict(interval: Option<Interval>, direction: Direction) -> Verdict {
    let Some(Interval { low, high, .. }) = interval else { return Verdict::Unknown };
    if low <= 0.0 && high >= 0.0 {
        return Verdict::WithinNoise;
    }
    if direction.worse_by(low) > 0.0 { Verdict::Worse } else { Verdict::Better }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::eval::ScoringArithmetic;

    fn measurement(samples: &[f64], text: &str) -> Measurement {
        let json = serde_json::json!({
            "metric": "token_perplexity", "dataset": "t", "protocol": "gptq", "seq_len": 8,
            "value": Estimator::ExpOfMean.value(samples), "standard_error": null, "n_windows": samples.len(),
            "n_windows_total": samples.len(), "n_tokens": 8, "samples": samples, "floor": null,
            "text_sha256": text, "tokenizer_sha256": "k", "seconds": 0.0,
        });
        serde_json::from_value(json).unwrap()
    }

    fn samples(offset: f64, noise: f64) -> Vec<f64> {
        let value = |index: usize| 3.0 + (index % 7) as f64 / 7.0 + offset + noise * ((index * 5 % 11) as f64 - 5.0);
        (0..60).map(value).collect()
    }

    fn compared(one: &Measurement, other: &Measurement) -> Number {
        number("c", one, other, None).unwrap()
    }

    #[test]
    fn a_small_shift_is_beyond_noise_where_windows_are_the_same() {
        let base = measurement(&samples(0.0, 0.0), "t");
        let shifted = |text| measurement(&samples(0.01, 0.0001), text);
        let paired = compared(&base, &shifted("t"));
        assert_eq!((paired.verdict, paired.is_paired), (Verdict::Worse, true));
        assert!((paired.change - 0.01).abs() < 1e-3, "{}", paired.change);
        assert_eq!(compared(&shifted("t"), &base).verdict, Verdict::Better);
        // On other windows it drowns in how hard windows are.
        let unpaired = compared(&base, &shifted("u"));
        assert_eq!((unpaired.verdict, unpaired.is_paired), (Verdict::WithinNoise, false));
        let [low, high] = unpaired.change_interval.unwrap();
        let [narrow_low, narrow_high] = paired.change_interval.unwrap();
        assert!(high - low > 10.0 * (narrow_high - narrow_low));
    }

    #[test]
    fn two_arithmetics_are_held_against_each_other_where_there_is_no_doubt_which() {
        let base = measurement(&samples(0.0, 0.0), "t");
        let int16 = Measurement { arithmetic: ScoringArithmetic::Int16, ..base.clone() };
        let bf16 = Measurement { arithmetic: ScoringArithmetic::Bf16, ..base.clone() };
        let arithmetics =
            |first: &[Measurement], second: &[Measurement]| -> Vec<(ScoringArithmetic, ScoringArithmetic)> {
                pairs(first, second).iter().map(|(one, other)| (one.arithmetic, other.arithmetic)).collect()
            };
        use ScoringArithmetic::{Bf16, F32, Int16};
        let [one, two, three] = [base.clone(), int16.clone(), bf16];
        let of = std::slice::from_ref;
        assert_eq!(arithmetics(of(&one), of(&two)), [(F32, Int16)]);
        assert!(compared(&one, &two).is_paired);
        assert_eq!(arithmetics(&[one.clone(), two.clone()], of(&two)), [(Int16, Int16)]);
        assert_eq!(
            arithmetics(&[one.clone(), two.clone()], &[three.clone(), two.clone()]),
            [(F32, Bf16), (Int16, Int16)]
        );
        assert_eq!(arithmetics(of(&one), &[two, three]), []);
    }

    #[test]
    fn equal_numbers_are_the_same_and_noise_is_noise() {
        let base = measurement(&samples(0.0, 0.0), "t");
        assert_eq!(compared(&base, &base).verdict, Verdict::Same);
        let noisy = measurement(&samples(0.0, 0.01), "t");
        assert_eq!(compared(&base, &noisy).verdict, Verdict::WithinNoise);
        let single = measurement(&[3.0], "t");
        assert_eq!(compared(&single, &measurement(&[3.1], "t")).verdict, Verdict::Unknown);
    }
}
