//! Intervals: how sure a perplexity, and a difference of two perplexities, is. Pure.
//!
//! The sample is the mean negative log-likelihood of each window; the perplexity is `exp(mean of window means)`. Windows
//! of one text are taken as independent draws. Two cells scored on the same windows are compared *paired*: how hard a
//! window is hits both alike and cancels, which narrows the interval by an order of magnitude or more.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

/// Two-sided confidence of every interval here.
pub const CONFIDENCE: f64 = 0.95;

/// 97.5% quantile of the normal distribution: half of `1 - CONFIDENCE` lies above it.
const NORMAL_QUANTILE: f64 = 1.959_963_984_540_054;

/// How an interval is resampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// Resamples; 2,000 or more for the tails of a 95% interval.
    pub n: usize,
    /// Seed of the resampling: same seed, same interval.
    pub seed: u64,
}

/// A value between its 95% bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The value on all windows.
    pub point: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// A perplexity with its uncertainty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The perplexity.
    pub value: f64,
    /// Its standard error by the delta method: perplexity times the standard error of the mean.
    pub standard_error: f64,
    /// Its 95% bootstrap interval.
    pub interval: Interval,
}

/// How much worse cell `a` is than cell `b` on the same windows; positive is worse.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairedDifference {
    /// `perplexity(a) - perplexity(b)`.
    pub perplexity: Interval,
    /// `ln(perplexity(a) / perplexity(b))`, in nats per token: comparable across models.
    pub log_ratio: Interval,
}

/// Why there is no interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StatsError {
    /// A spread needs two windows.
    #[error("{0} window(s) have no spread; score at least 2 windows")]
    TooFewWindows(usize),
    /// The cells were not scored on the same windows.
    #[error("cannot pair {a} windows with {b}; score both cells on the same windows")]
    Unpaired {
        /// Windows of the first cell.
        a: usize,
        /// Windows of the second cell.
        b: usize,
    },
    /// A window without a finite likelihood.
    #[error("window {0} has no finite likelihood; the model's output overflowed or holds NaN")]
    NotFinite(usize),
}

/// Perplexity of mean negative log-likelihoods (nats per token) of equally long windows: `exp` of their mean.
pub fn perplexity(nll_per_window: &[f64]) -> f64 {
    mean(nll_per_window).exp()
}

/// Standard error of the perplexity by the delta method: the perplexity times the standard error of the mean over windows.
/// `None` for fewer than two windows, which have no spread.
pub fn standard_error(nll_per_window: &[f64]) -> Option<f64> {
    if nll_per_window.len() < 2 {
        return None;
    }
    let (n, center) = (nll_per_window.len() as f64, mean(nll_per_window));
    let variance = nll_per_window.iter().map(|nll| (nll - center).powi(2)).sum::<f64>() / (n - 1.0);
    Some(center.exp() * (variance / n).sqrt())
}

/// Perplexity with standard error and bootstrap interval; `nll_per_window` in nats per token, one value a window.
///
/// # Errors
/// Fewer than two windows, or one that is not finite.
pub fn estimate(nll_per_window: &[f64], bootstrap: Bootstrap) -> Result<Estimate, StatsError> {
    check_windows(nll_per_window)?;
    let standard_error = standard_error(nll_per_window).ok_or(StatsError::TooFewWindows(nll_per_window.len()))?;
    let value = perplexity(nll_per_window);
    let resampled = resampled_means([nll_per_window], bootstrap).map(|[mean]| mean).collect();
    // Bounds are taken of the mean and then carried through `exp`, so that they stay positive.
    let bounds = interval(mean(nll_per_window), resampled, nll_per_window.len());
    let interval = Interval { point: value, low: bounds.low.exp(), high: bounds.high.exp() };
    Ok(Estimate { value, standard_error, interval })
}

/// Difference of two perplexities on the same windows, `a` minus `b`, resampling windows for both at once.
///
/// # Errors
/// Different numbers of windows, fewer than two, or one that is not finite.
pub fn paired_difference(a_nll: &[f64], b_nll: &[f64], bootstrap: Bootstrap) -> Result<PairedDifference, StatsError> {
    if a_nll.len() != b_nll.len() {
        return Err(StatsError::Unpaired { a: a_nll.len(), b: b_nll.len() });
    }
    check_windows(a_nll)?;
    check_windows(b_nll)?;
    let (mut differences, mut log_ratios) = (Vec::with_capacity(bootstrap.n), Vec::with_capacity(bootstrap.n));
    for [a, b] in resampled_means([a_nll, b_nll], bootstrap) {
        differences.push(a.exp() - b.exp());
        log_ratios.push(a - b);
    }
    Ok(PairedDifference {
        perplexity: interval(perplexity(a_nll) - perplexity(b_nll), differences, a_nll.len()),
        log_ratio: interval(mean(a_nll) - mean(b_nll), log_ratios, a_nll.len()),
    })
}

fn check_windows(nll: &[f64]) -> Result<(), StatsError> {
    if let Some(window) = nll.iter().position(|value| !value.is_finite()) {
        return Err(StatsError::NotFinite(window));
    }
    if nll.len() < 2 { Err(StatsError::TooFewWindows(nll.len())) } else { Ok(()) }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Means of `N` samples over the same resampled windows, `bootstrap.n` times.
fn resampled_means<const N: usize>(samples: [&[f64]; N], bootstrap: Bootstrap) -> impl Iterator<Item = [f64; N]> {
    let mut rng = ChaCha8Rng::seed_from_u64(bootstrap.seed);
    let n_windows = samples[0].len();
    (0..bootstrap.n).map(move |_| {
        let mut sums = [0.0; N];
        for _ in 0..n_windows {
            // A u32 is drawn alike on every platform; a usize need not be.
            let window = rng.random_range(0..n_windows as u32) as usize;
            for (sum, sample) in sums.iter_mut().zip(samples) {
                *sum += sample[window];
            }
        }
        sums.map(|sum| sum / n_windows as f64)
    })
}

/// Percentile interval of `resampled` about `point`, widened for few windows.
///
/// Resampling n windows understates the spread by `sqrt((n-1)/n)` and knows nothing of the spread's own uncertainty, so
/// that a plain percentile interval of 8 windows covers 88% where it says 95%. Stretching it by `t / z * sqrt(n/(n-1))`
/// repairs both (Hesterberg 2015, "What Teachers Should Know About the Bootstrap") and does nothing for hundreds of windows.
fn interval(point: f64, mut resampled: Vec<f64>, n_windows: usize) -> Interval {
    resampled.sort_by(f64::total_cmp);
    let n = n_windows as f64;
    let stretch = student_quantile(n - 1.0) / NORMAL_QUANTILE * (n / (n - 1.0)).sqrt();
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let bound = |p| point + stretch * (quantile(&resampled, p) - point);
    Interval { point, low: bound(tail), high: bound(1.0 - tail) }
}

/// Quantile of sorted values, linear between neighbours.
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let position = p * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (position - below as f64) * (sorted[above] - sorted[below])
}

/// 97.5% quantile of Student's t: the Cornish-Fisher expansion about the normal quantile. Within 0.1% from 5 degrees of
/// freedom on; too small below 3, where no bootstrap is worth much.
fn student_quantile(degrees: f64) -> f64 {
    let z = NORMAL_QUANTILE;
    z + (z.powi(3) + z) / (4.0 * degrees)
        + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * degrees.powi(2))
        + (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / (384.0 * degrees.powi(3))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    // proptest's prelude has another version's `Rng`.
    use rand::Rng;

    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap { n: 2000, seed: 0 };

    /// Sum of 12 uniforms, less 6: mean 0, variance 1, near enough to a normal for coverage.
    fn normal(rng: &mut ChaCha8Rng) -> f64 {
        (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
    }

    fn normals(n: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
        (0..n).map(|_| normal(rng)).collect()
    }

    /// Share of 4,000 synthetic texts of `n_windows` whose interval holds the true perplexity.
    fn coverage(n_windows: usize) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let truth = 2.5_f64.exp();
        let covered = (0..4000).filter(|&seed| {
            let nll: Vec<f64> = normals(n_windows, &mut rng).iter().map(|x| 2.5 + 0.3 * x).collect();
            let interval = estimate(&nll, Bootstrap { n: 600, seed }).unwrap().interval;
            interval.low <= truth && truth <= interval.high
        });
        covered.count() as f64 / 4000.0
    }

    #[test]
    fn perplexity_of_known_windows() {
        // mean 2, sample variance 1, n = 3: standard error of the mean 1/sqrt(3).
        let estimate = estimate(&[1.0, 2.0, 3.0], BOOTSTRAP).unwrap();
        assert!((estimate.value - 2.0_f64.exp()).abs() < 1e-12);
        assert!((estimate.standard_error - 2.0_f64.exp() / 3.0_f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn intervals_cover_as_often_as_they_say() {
        for n_windows in [8, 40] {
            let coverage = coverage(n_windows);
            // 4,000 trials at 95%: the standard error of the share is 0.3%. Without the stretch, 8 windows cover 88%.
            assert!((0.93..=0.965).contains(&coverage), "{n_windows} windows: {coverage}");
        }
    }

    #[test]
    fn student_quantiles_match_tables() {
        for (degrees, table) in [(5.0, 2.5706), (10.0, 2.2281), (30.0, 2.0423), (1000.0, 1.9623)] {
            assert!((student_quantile(degrees) - table).abs() < 5e-3, "{degrees}: {}", student_quantile(degrees));
        }
    }

    #[test]
    fn bootstrap_spread_agrees_with_the_delta_method() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let nll: Vec<f64> = normals(200, &mut rng).iter().map(|x| 2.0 + 0.1 * x).collect();
        let estimate = estimate(&nll, BOOTSTRAP).unwrap();
        let half_width = (estimate.interval.high - estimate.interval.low) / 2.0;
        assert!((half_width / (NORMAL_QUANTILE * estimate.standard_error) - 1.0).abs() < 0.08);
    }

    #[test]
    fn pairing_narrows_the_interval_of_a_difference() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let fp: Vec<f64> = normals(60, &mut rng).iter().map(|x| 2.0 + 0.3 * x).collect();
        let quantized: Vec<f64> = fp.iter().map(|nll| nll + 0.05 + 0.01 * normal(&mut rng)).collect();
        let paired = paired_difference(&quantized, &fp, BOOTSTRAP).unwrap().perplexity;
        let own = |nll: &[f64]| estimate(nll, BOOTSTRAP).unwrap().interval;
        let unpaired = (own(&quantized).high - own(&quantized).low).hypot(own(&fp).high - own(&fp).low);
        assert!(paired.high - paired.low < unpaired / 5.0, "{paired:?} against {unpaired}");
        assert!(paired.low > 0.0, "a real difference is seen: {paired:?}");
    }

    #[test]
    fn what_cannot_be_estimated_is_an_error() {
        assert_eq!(estimate(&[], BOOTSTRAP), Err(StatsError::TooFewWindows(0)));
        assert_eq!(estimate(&[1.0], BOOTSTRAP), Err(StatsError::TooFewWindows(1)));
        assert_eq!(estimate(&[1.0, f64::NAN], BOOTSTRAP), Err(StatsError::NotFinite(1)));
        let unpaired = paired_difference(&[1.0, 2.0], &[1.0, 2.0, 3.0], BOOTSTRAP).unwrap_err();
        assert_eq!(unpaired.to_string(), "cannot pair 2 windows with 3; score both cells on the same windows");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn equal_cells_differ_by_exactly_nothing(nll in prop::collection::vec(0.0..12.0_f64, 2..40), seed in any::<u64>()) {
            let zero = Interval { point: 0.0, low: 0.0, high: 0.0 };
            let difference = paired_difference(&nll, &nll, Bootstrap { n: 100, seed }).unwrap();
            prop_assert_eq!(difference, PairedDifference { perplexity: zero, log_ratio: zero });
        }

        #[test]
        fn intervals_hold_their_point_and_repeat(nll in prop::collection::vec(0.0..6.0_f64, 2..40), seed in any::<u64>()) {
            let bootstrap = Bootstrap { n: 2000, seed };
            let first = estimate(&nll, bootstrap).unwrap();
            prop_assert_eq!(first, estimate(&nll, bootstrap).unwrap());
            prop_assert!(first.interval.low <= first.value && first.value <= first.interval.high);
        }

        #[test]
        fn swapping_cells_swaps_the_sign(pairs in prop::collection::vec((0.0..6.0_f64, 0.0..6.0_f64), 2..30)) {
            let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
            let bootstrap = Bootstrap { n: 101, seed: 5 };
            let forth = paired_difference(&a, &b, bootstrap).unwrap().log_ratio;
            let back = paired_difference(&b, &a, bootstrap).unwrap().log_ratio;
            prop_assert!((forth.point + back.point).abs() < 1e-12);
            prop_assert!((forth.low + back.high).abs() < 1e-9 && (forth.high + back.low).abs() < 1e-9);
        }
    }
}
