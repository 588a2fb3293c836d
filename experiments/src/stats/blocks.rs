//! [`Blocks`]: how far the windows of one series depend on each other, and what that costs in certainty.
//!
//! # Mean length of a block
//!
//! With autocovariances `R(k)`, `g = R(0) + 2 Σ R(k)` and `G = 2 Σ k R(k)`, the mean of `n` windows has a variance of `g / n`,
//! and the stationary bootstrap estimates it best with blocks of `b = (G/g)^(2/3) n^(1/3)` windows on average (Politis & White
//! 2004, "Automatic Block-Length Selection for the Dependent Bootstrap", with the constant of the correction by Patton,
//! Politis & White 2009). `G/g` is estimated twice, and the longer block is taken:
//!
//! 1. as they do: sums over lags up to `2m` under a flat-top window, where after lag `m` five autocorrelations in a row are
//!    below `2 sqrt(log10(n) / n)`. This sees any kind of dependence, but at 40 windows no correlation below 0.4.
//! 2. as of a first-order autoregression (Andrews 1991): `2φ / (1 - φ²)`, with the correlation `φ` of neighbours freed of the
//!    bias that comes of the unknown mean: `φ = (n r + 1) / (n - 3)` (Marriott & Pope 1954, Kendall 1954).
//!
//! A block has one window where neighbours look independent, and also where they look *less* alike than chance: windows of a
//! text have no reason to, and the interval stays on the safe side. It has at most `3 sqrt(n)` and `n / 3` windows.
//!
//! # What the bootstrap leaves out
//!
//! Three things make a plain bootstrap interval too narrow; all follow from `n`, `b` and `G/g`, nothing is fitted:
//!
//! 1. deviations are taken from the sample's own mean, which costs `(2b - 1) / n` of the variance (`1/n` at `b = 1`: the
//!    familiar `n - 1`);
//! 2. what lies across the ends of blocks is lost: `(G/g) / b` of the variance, to first order (Politis & White 2004); that is
//!    `sqrt(b / n)` at the length above;
//! 3. the spread itself is uncertain, as if it came from few independent values: Student's t with `n / Σ q^(2|k|) - 1` degrees
//!    of freedom, where `q = 1 - 1/b` (Priestley 1981, "Spectral Analysis and Time Series", 6.2.4); `n - 1` at `b = 1`.

/// Autocorrelations in a row that must be small (`K_N` of Politis & White; larger only above 10^25 windows).
const SMALL_IN_A_ROW: usize = 5;

/// The fewest windows whose correlation can be told at all: [`autoregressive`] divides by `n - 3`.
const FEWEST: usize = 4;

/// Beyond it `G/g` has no use: blocks are at their longest.
const HIGHEST_CORRELATION: f64 = 0.97;

/// The dependence of a series of windows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Blocks {
    /// Mean length of a block of the stationary bootstrap, in windows; 1 where windows are taken as independent.
    pub mean_len: f64,
    /// What the bootstrap's variance is divided by: the share of the variance that it sees.
    pub share_seen: f64,
    /// Degrees of freedom of the spread.
    pub degrees: f64,
}

impl Blocks {
    /// By the rule above; `series` holds one value a window, in the order of the text.
    pub fn of(series: &[f64]) -> Self {
        let n = series.len() as f64;
        let deviations = deviations(series);
        let ratio = if series.len() < FEWEST { 0.0 } else { flat_top(&deviations).max(autoregressive(&deviations)) };
        let longest = (3.0 * n.sqrt()).min(n / 3.0).max(1.0);
        // Rounded, so that a last bit of a platform's mathematics cannot change what is drawn.
        let mean_len = ((ratio * ratio * n).cbrt().clamp(1.0, longest) * 100.0).round() / 100.0;
        // Where the length is at its bound, the first-order term is no longer small.
        let lost_at_ends = (ratio / mean_len).min((mean_len / n).sqrt());
        let q = 1.0 - 1.0 / mean_len;
        Self {
            mean_len,
            share_seen: (1.0 - (2.0 * mean_len - 1.0) / n) * (1.0 - lost_at_ends),
            degrees: n * (1.0 - q * q) / (1.0 + q * q) - 1.0,
        }
    }

    /// Standard error of the mean of `series`: what the stationary bootstrap gives with infinitely many resamples (Politis &
    /// Romano 1994, "The Stationary Bootstrap", lemma 1), over the share that it sees.
    pub fn standard_error_of_mean(&self, series: &[f64]) -> f64 {
        let n = series.len() as f64;
        let deviations = deviations(series);
        let q = 1.0 - 1.0 / self.mean_len;
        let mut variance = circular_covariance(&deviations, 0);
        let mut in_one_block = q;
        for lag in 1..series.len() {
            if in_one_block < 1e-9 {
                break;
            }
            variance += 2.0 * (1.0 - lag as f64 / n) * in_one_block * circular_covariance(&deviations, lag);
            in_one_block *= q;
        }
        // A variance of nothing but rounding may come out below zero.
        (variance.max(0.0) / self.share_seen / n).sqrt()
    }
}

fn deviations(series: &[f64]) -> Vec<f64> {
    let mean = super::mean(series);
    series.iter().map(|value| value - mean).collect()
}

/// `R(lag)`, with what the end lacks left out.
fn covariance(deviations: &[f64], lag: usize) -> f64 {
    let products = deviations.iter().zip(&deviations[lag..]).map(|(a, b)| a * b);
    products.sum::<f64>() / deviations.len() as f64
}

/// The same with the start following the end, as in resamples.
fn circular_covariance(deviations: &[f64], lag: usize) -> f64 {
    let (head, tail) = deviations.split_at(lag);
    let shifted = tail.iter().chain(head);
    deviations.iter().zip(shifted).map(|(a, b)| a * b).sum::<f64>() / deviations.len() as f64
}

/// `G/g` by the flat-top window; 0 where it is not positive.
fn flat_top(deviations: &[f64]) -> f64 {
    let n = deviations.len() as f64;
    let last_lag = (n.sqrt().ceil() as usize + SMALL_IN_A_ROW).min(deviations.len() - 1);
    let covariances: Vec<f64> = (0..=last_lag).map(|lag| covariance(deviations, lag)).collect();
    let bound = 2.0 * (n.log10() / n).sqrt() * covariances[0];
    let is_small = |lag: usize| covariances.get(lag).is_none_or(|covariance| covariance.abs() < bound);
    let all_small_after = |m: &usize| (1..=SMALL_IN_A_ROW).all(|k| is_small(m + k));
    // Lag 1 always counts.
    let m = (0..=last_lag).find(all_small_after).unwrap_or(last_lag).max(1);
    let width = (2 * m).min(last_lag);
    let (mut g, mut weighted) = (covariances[0], 0.0);
    for (lag, covariance) in covariances.iter().enumerate().take(width + 1).skip(1) {
        let place = lag as f64 / width as f64;
        let flat_top = (2.0 * (1.0 - place)).clamp(0.0, 1.0);
        g += 2.0 * flat_top * covariance;
        weighted += 2.0 * flat_top * lag as f64 * covariance;
    }
    if g > 0.0 && weighted > 0.0 { weighted / g } else { 0.0 }
}

/// `G/g` of a first-order autoregression with the correlation of neighbours; 0 where it is not positive.
fn autoregressive(deviations: &[f64]) -> f64 {
    let n = deviations.len() as f64;
    let neighbours = covariance(deviations, 1) / covariance(deviations, 0);
    // A series of one value has no correlation: NaN, which is above nothing.
    let phi = (n * neighbours + 1.0) / (n - 3.0);
    let phi = if phi > HIGHEST_CORRELATION { HIGHEST_CORRELATION } else { phi };
    if phi > 0.0 { 2.0 * phi / (1.0 - phi * phi) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sequence without pattern: fractions of multiples of the square root of 2, in an order that hides the step.
    fn scrambled(n: usize) -> Vec<f64> {
        (0..n).map(|i| (((i * i + 7 * i) as f64) * std::f64::consts::SQRT_2).fract()).collect()
    }

    #[test]
    fn independent_windows_are_blocks_of_one_and_have_the_familiar_standard_error() {
        // Mean 2, sample variance 1, n = 3: 1/sqrt(3), with 2 degrees of freedom.
        let blocks = Blocks::of(&[1.0, 2.0, 3.0]);
        assert_eq!((blocks.mean_len, blocks.degrees), (1.0, 2.0));
        assert!((blocks.standard_error_of_mean(&[1.0, 2.0, 3.0]) - 1.0 / 3.0_f64.sqrt()).abs() < 1e-12);
        // Neighbours that differ more than chance.
        let alternating: Vec<f64> = (0..40).map(|i| f64::from(i % 2)).collect();
        assert_eq!(Blocks::of(&alternating).mean_len, 1.0);
        assert!(Blocks::of(&scrambled(200)).mean_len < 2.0);
    }

    #[test]
    fn a_series_that_never_moves_is_certain() {
        let blocks = Blocks::of(&[0.25; 30]);
        assert_eq!((blocks.mean_len, blocks.standard_error_of_mean(&[0.25; 30])), (1.0, 0.0));
    }

    #[test]
    fn dependent_windows_are_long_blocks_and_count_for_fewer() {
        // Each value stands five times in a row: 200 windows that hold 40 independent values.
        let values = scrambled(40);
        let held: Vec<f64> = (0..200).map(|i| values[i / 5]).collect();
        let blocks = Blocks::of(&held);
        assert!((5.0..25.0).contains(&blocks.mean_len), "{blocks:?}");
        assert!((7.0..60.0).contains(&blocks.degrees), "{blocks:?}");
        let ratio = blocks.standard_error_of_mean(&held) / Blocks::of(&values).standard_error_of_mean(&values);
        assert!((0.75..1.5).contains(&ratio), "as uncertain as the 40 values themselves: {ratio}");
    }

    #[test]
    fn the_rule_gives_the_length_of_a_known_autoregression() {
        // Covariances that are exactly those of phi = 0.5 cannot be had from a short series; their ratio can.
        let (phi, n) = (0.5_f64, 1000.0_f64);
        let expected = (2.0 * phi / (1.0 - phi * phi)).powf(2.0 / 3.0) * n.cbrt();
        let noise = scrambled(1000);
        let mut value = 0.0;
        let series: Vec<f64> = noise
            .iter()
            .map(|step| {
                value = phi * value + step - 0.5;
                value
            })
            .collect();
        let found = Blocks::of(&series).mean_len;
        assert!((0.7..1.6).contains(&(found / expected)), "{found} against {expected}");
    }
}
