//! How often a 95% interval holds the truth, on synthetic texts whose truth is known.

#![allow(clippy::unwrap_used)]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Bootstrap, Estimator, Interval, difference_of_means, estimate};

/// Texts of one kind; the standard error of a share of 95% is 0.7%.
const N_TEXTS: u64 = 1000;

/// Few, for speed: the noise of their quantiles costs 0.3% of coverage.
const N_RESAMPLES: usize = 400;

/// Sum of 12 uniforms, less 6: mean 0, variance 1, near enough to a normal for coverage.
pub(super) fn normal(rng: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}

pub(super) fn normals(n: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    (0..n).map(|_| normal(rng)).collect()
}

/// `n` values of a first-order autoregression about 0, of variance 1.
fn autoregression(n: usize, phi: f64, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let step = (1.0 - phi * phi).sqrt();
    let mut value = normal(rng);
    (0..n)
        .map(|_| {
            value = phi * value + step * normal(rng);
            value
        })
        .collect()
}

/// The share of texts of `n` windows, whose neighbours have a correlation of `phi`, for which `interval` holds `truth`.
fn coverage(n: usize, phi: f64, truth: f64, interval: impl Fn(&[f64], Bootstrap, &mut ChaCha8Rng) -> Interval) -> f64 {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let holds = |seed: &u64| {
        let series = autoregression(n, phi, &mut rng);
        let Interval { low, high, .. } = interval(&series, Bootstrap { n: N_RESAMPLES, seed: *seed }, &mut rng);
        low <= truth && truth <= high
    };
    (0..N_TEXTS).filter(holds).count() as f64 / N_TEXTS as f64
}

fn of_perplexity(n: usize, phi: f64) -> f64 {
    coverage(n, phi, 2.5_f64.exp(), |series, bootstrap, _| {
        let nll: Vec<f64> = series.iter().map(|x| 2.5 + 0.3 * x).collect();
        estimate(&nll, Estimator::ExpOfMean, bootstrap).unwrap().interval
    })
}

/// What two models lose on a window differs by far less than windows do.
fn of_log_ratio(n: usize, phi: f64) -> f64 {
    coverage(n, phi, 0.02, |series, bootstrap, rng| {
        let base: Vec<f64> = normals(n, rng).iter().map(|x| 2.5 + 0.3 * x).collect();
        let quantized: Vec<f64> = base.iter().zip(series).map(|(nll, x)| nll + 0.02 + 0.01 * x).collect();
        difference_of_means(&quantized, &base, bootstrap).unwrap().interval
    })
}

fn check(kind: &str, coverage: fn(usize, f64) -> f64, cases: &[(usize, f64)], expected: std::ops::RangeInclusive<f64>) {
    for &(n, phi) in cases {
        let share = coverage(n, phi);
        println!("{kind}, {n} windows, correlation of neighbours {phi}: {:.1}%", 100.0 * share);
        assert!(expected.contains(&share), "{kind}, {n} windows, correlation of neighbours {phi}: {share}");
    }
}

#[test]
fn perplexities_of_independent_windows() {
    check("perplexity", of_perplexity, &[(8, 0.0), (20, 0.0), (40, 0.0)], 0.93..=0.975);
}

#[test]
fn perplexities_of_windows_like_their_neighbours() {
    check("perplexity", of_perplexity, &[(20, 0.25), (40, 0.25), (40, 0.5), (100, 0.5)], 0.92..=0.97);
}

#[test]
fn perplexities_of_many_windows_like_their_neighbours() {
    check("perplexity", of_perplexity, &[(100, 0.25), (148, 0.25), (148, 0.5)], 0.92..=0.97);
}

/// Twenty windows hold too little to see a correlation of a half in them; the documentation says how little.
#[test]
fn few_windows_much_like_their_neighbours() {
    check("perplexity", of_perplexity, &[(20, 0.5)], 0.89..=0.95);
}

/// The mean of differences, as the other is of likelihoods: fewer cases will do.
#[test]
fn log_ratios() {
    check("log ratio", of_log_ratio, &[(8, 0.0), (40, 0.0)], 0.93..=0.975);
    check("log ratio", of_log_ratio, &[(40, 0.25), (40, 0.5), (100, 0.25), (148, 0.5)], 0.92..=0.97);
}
