//! The stationary bootstrap (Politis & Romano 1994): resamples made of blocks of windows, each block starting anywhere, its
//! length geometric, the text's start following its end.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::blocks::Blocks;
use super::{CONFIDENCE, Interval};

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

impl Bootstrap {
    /// Means of `N` samples over the same resampled windows, `self.n` times, in blocks of `mean_len` windows on average.
    pub fn means<const N: usize>(self, samples: [&[f64]; N], mean_len: f64) -> impl Iterator<Item = [f64; N]> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let n_windows = samples[0].len();
        // A block goes on after draws above this: never, where blocks have one window.
        let ends = (f64::from(u32::MAX) / mean_len) as u32;
        (0..self.n).map(move |_| {
            let (mut sums, mut place) = ([0.0; N], 0);
            while place < n_windows {
                let start = any_of(n_windows, rng.next_u32());
                let mut len = 1;
                while place + len < n_windows && rng.next_u32() > ends {
                    len += 1;
                }
                for (sum, sample) in sums.iter_mut().zip(samples) {
                    *sum += circular_sum(sample, start, len);
                }
                place += len;
            }
            sums.map(|sum| sum / n_windows as f64)
        })
    }
}

/// Sum of `len` windows from `start` on; after the last comes the first.
#[inline]
fn circular_sum(sample: &[f64], start: usize, len: usize) -> f64 {
    // Most blocks are one window, and few go around.
    match sample.get(start..start + len) {
        Some([one]) => *one,
        Some(part) => part.iter().sum(),
        None => {
            let (tail, n_more) = (&sample[start..], len - (sample.len() - start));
            tail.iter().sum::<f64>() + sample[..n_more].iter().sum::<f64>()
        }
    }
}

/// One of `n` windows: a u32 is drawn alike on every platform.
#[inline]
fn any_of(n: usize, draw: u32) -> usize {
    ((u64::from(draw) * n as u64) >> 32) as usize
}

/// Percentile interval of `resampled` about `point`, stretched by what the bootstrap leaves out ([`Blocks`]).
///
/// The stretch of independent windows is `t / z * sqrt(n / (n - 1))` (Hesterberg 2015, "What Teachers Should Know About the
/// Bootstrap"): without it 8 windows cover 88% where they say 95%.
pub fn interval(point: f64, mut resampled: Vec<f64>, blocks: &Blocks) -> Interval {
    resampled.sort_by(f64::total_cmp);
    let stretch = student_quantile(blocks.degrees) / NORMAL_QUANTILE / blocks.share_seen.sqrt();
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
    use super::*;

    #[test]
    fn student_quantiles_match_tables() {
        for (degrees, table) in [(5.0, 2.5706), (10.0, 2.2281), (30.0, 2.0423), (1000.0, 1.9623)] {
            assert!((student_quantile(degrees) - table).abs() < 5e-3, "{degrees}: {}", student_quantile(degrees));
        }
    }

    #[test]
    fn every_window_is_drawn_alike_and_none_beside_them() {
        let counts = (0..=u32::MAX).step_by(1 << 12).fold([0_u32; 7], |mut counts, draw| {
            counts[any_of(7, draw)] += 1;
            counts
        });
        assert_eq!(any_of(7, u32::MAX), 6);
        assert!(counts.iter().all(|count| count.abs_diff((1 << 20) / 7) <= 1), "{counts:?}");
    }

    #[test]
    fn resamples_vary_as_the_closed_form_says() {
        // One slow wave: the longer the blocks, the more the means of resamples differ.
        let n = 50;
        let bootstrap = Bootstrap { n: 4000, seed: 3 };
        let series: Vec<f64> = (0..n).map(|i| (std::f64::consts::TAU * f64::from(i) / f64::from(n)).cos()).collect();
        for mean_len in [1.0, 2.5, 8.0] {
            let means: Vec<f64> = bootstrap.means([&series], mean_len).map(|[mean]| mean).collect();
            let variance = means.iter().map(|mean| mean * mean).sum::<f64>() / means.len() as f64;
            let blocks = Blocks { mean_len, share_seen: 1.0, degrees: 1.0 };
            let exact = blocks.standard_error_of_mean(&series).powi(2);
            // 4,000 resamples: the standard error of their variance is 2.2%.
            assert!((variance / exact - 1.0).abs() < 0.09, "{mean_len}: {variance} against {exact}");
        }
    }
}
