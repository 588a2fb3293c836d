//! Quantiles of the values of all tokens as means of samples, so that they have intervals and paired differences as means have.
//!
//! To first order in the deviations, a quantile is the mean over tokens of `q + (F(q) - 1{x <= q}) / f(q)`: its influence function
//! (van der Vaart, Asymptotic Statistics, section 21.2), with the share `F(q)` of the tokens at `q` or below and the density `f(q)`. The
//! samples of items are the means over their tokens. Their mean is `q` itself, and how they vary is how the quantile does.
//! The density is the difference quotient of the quantiles on both sides, within a share of the tokens (`HALF_WIDTH`).

/// How far to both sides the density is taken, as a share of the tokens, at most; half as far as the nearer end of 0 and 1 at most.
const HALF_WIDTH: f64 = 0.02;

/// A sample of each item, the mean over whose tokens is the quantile `share` of all tokens: of the sorted values the one at
/// `share * (n - 1)`, between two of them in proportion.
pub fn samples(per_item: &[Vec<f32>], share: f64) -> Vec<f64> {
    let mut sorted: Vec<f32> = per_item.iter().flatten().copied().collect();
    sorted.sort_by(f32::total_cmp);
    if sorted.is_empty() {
        return vec![f64::NAN; per_item.len()];
    }
    let quantile = at(&sorted, share);
    let half = HALF_WIDTH.min(share / 2.0).min((1.0 - share) / 2.0);
    let per_density = (at(&sorted, share + half) - at(&sorted, share - half)) / (2.0 * half);
    let is_below = |value: &f32| if f64::from(*value) <= quantile { 1.0 } else { 0.0 };
    let n_below = sorted.partition_point(|value| f64::from(*value) <= quantile) as f64;
    let share_below = n_below / sorted.len() as f64;
    let sample = |values: &Vec<f32>| {
        let own = values.iter().map(is_below).sum::<f64>() / values.len() as f64;
        quantile + (share_below - own) * per_density
    };
    per_item.iter().map(sample).collect()
}

/// The quantile of sorted values.
fn at(sorted: &[f32], share: f64) -> f64 {
    let position = share * (sorted.len() - 1) as f64;
    let (below, above) = (position.floor() as usize, position.ceil() as usize);
    let (low, high) = (f64::from(sorted[below]), f64::from(sorted[above]));
    low + (high - low) * (position - below as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::stats::{Bootstrap, Estimator, estimate};

    #[test]
    fn their_mean_is_the_quantile() {
        let items = [vec![4.0, 1.0, 3.0], vec![2.0, 5.0, 9.0]];
        // Sorted 1 2 3 4 5 9; numpy's percentile gives these.
        for (share, expected) in [(0.5, 3.5), (0.9, 7.0), (0.25, 2.25)] {
            let found = samples(&items, share);
            let mean = found.iter().sum::<f64>() / 2.0;
            assert!((mean - expected).abs() < 1e-12, "{share}: {mean}");
        }
        // Two of three are at 3.5 or below in the first item, one in the second: it is the one with larger values.
        let median = samples(&items, 0.5);
        assert!(median[0] < 3.5 && median[1] > 3.5, "{median:?}");
        assert_eq!(samples(&[vec![0.0; 4], vec![0.0; 4]], 0.99), [0.0, 0.0]);
    }

    /// Texts of windows whose tokens have a level in common, as divergences do; how often the interval holds the quantile.
    #[test]
    fn an_interval_of_a_quantile_covers_it() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut token = |level: f64| -> f32 { (level * -(1.0 - rng.random::<f64>()).ln()) as f32 };
        let levels: Vec<f64> = (0..100).map(|window| 0.5 + f64::from(window * 37 % 100) / 100.0).collect();
        // Levels are uniform in 0.5 to 1.5: the truth of a text of very many tokens.
        let mut many: Vec<f32> = (0..400_000).map(|index| token(levels[index % 100])).collect();
        many.sort_by(f32::total_cmp);
        for share in [0.5, 0.9, 0.99] {
            let truth = at(&many, share);
            let n_texts = 300;
            let mut holds = |seed: u64| {
                let windows: Vec<Vec<f32>> =
                    levels.iter().map(|&level| (0..200).map(|_| token(level)).collect()).collect();
                let samples = samples(&windows, share);
                let interval = estimate(&samples, Estimator::Mean, Bootstrap { n: 400, seed }).unwrap().interval;
                interval.low <= truth && truth <= interval.high
            };
            let covered = (0..n_texts).filter(|&seed| holds(seed)).count() as f64 / n_texts as f64;
            // Windows of fixed levels vary less than drawn ones would: an interval over windows is not too narrow for them.
            assert!(covered > 0.92, "{share}: {covered}");
        }
    }
}
