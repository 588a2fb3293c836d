//! The two loops over a group that an iteration of HQQ is, compiled for every instruction set and chosen at run time.
//!
//! Each weight's term is the same arithmetic in any of them, and terms are added by [`LANES`] running sums whose order depends on the length
//! alone: neither the processor nor the number of threads changes a bit.
#![allow(
    clippy::needless_range_loop,
    reason = "iterators may not be inlined into code for other instructions: indices stay"
)]

use pulp::NullaryFnOnce;

use super::power::power;

/// Running sums.
const LANES: usize = 8;

/// Weights that share a scale.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    pub(super) weights: &'a [f32],
    pub(super) scale: f32,
    /// Smallest and largest code.
    pub(super) codes: (f32, f32),
}

/// What an iteration does to errors: those below `(1 / beta)^(1 / (1 - power))` or so vanish, larger ones stay.
#[derive(Clone, Copy)]
pub(super) struct Shrink {
    /// `p - 1` of an `lp` norm.
    pub(super) power: f64,
    /// Weight of the splitting's penalty.
    pub(super) beta: f64,
}

impl Group<'_> {
    /// The sum of absolute errors with a zero point.
    pub(super) fn absolute_error(&self, zero_point: f32) -> f64 {
        pulp::Arch::new().dispatch(Sum { group: *self, zero_point, term: AbsoluteError })
    }

    /// The zero point that fits the codes of `zero_point` best, the shrunken error taken out of the weights.
    pub(super) fn next(&self, zero_point: f32, shrink: Shrink) -> f32 {
        let sum = pulp::Arch::new().dispatch(Sum { group: *self, zero_point, term: shrink });
        (sum / self.weights.len() as f64) as f32
    }
}

/// What is added up over a group.
trait Term: Copy {
    /// Of a weight, its code and the error that the code leaves.
    fn of(self, weight: f32, code: f32, error: f32, scale: f32) -> f64;
}

#[derive(Clone, Copy)]
struct AbsoluteError;

impl Term for AbsoluteError {
    #[inline(always)]
    fn of(self, _: f32, _: f32, error: f32, _: f32) -> f64 {
        f64::from(error.abs())
    }
}

impl Term for Shrink {
    #[inline(always)]
    fn of(self, weight: f32, code: f32, error: f32, scale: f32) -> f64 {
        let kept = self.shrink(f64::from(error));
        f64::from(code) - (f64::from(weight) - kept) / f64::from(scale)
    }
}

impl Shrink {
    /// The minimiser (approximate for `p < 1`) of `|e|^p + beta / 2 (e - x)^2`: small errors vanish, large ones stay.
    #[inline(always)]
    fn shrink(self, x: f64) -> f64 {
        let magnitude = x.abs();
        (magnitude - power(magnitude, self.power) / self.beta).max(0.0).copysign(x)
    }
}

struct Sum<'a, T> {
    group: Group<'a>,
    zero_point: f32,
    term: T,
}

impl<T: Term> NullaryFnOnce for Sum<'_, T> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let Self { group: Group { weights, scale, codes: (low, high) }, zero_point, term } = self;
        sum(weights, scale, low, high, zero_point, term)
    }
}

/// By values: through a reference the compiler would be unsure whether they overlap, and leave loops scalar.
#[inline(always)]
fn sum<T: Term>(weights: &[f32], scale: f32, low: f32, high: f32, zero_point: f32, term: T) -> f64 {
    let of = |weight: f32| {
        let code = (weight / scale + zero_point).round_ties_even().clamp(low, high);
        term.of(weight, code, weight - (code - zero_point) * scale, scale)
    };
    let (chunks, rest) = weights.as_chunks::<LANES>();
    let mut sums = [0.0_f64; LANES];
    for chunk in 0..chunks.len() {
        for lane in 0..LANES {
            sums[lane] += of(chunks[chunk][lane]);
        }
    }
    for lane in 0..rest.len() {
        sums[lane] += of(rest[lane]);
    }
    let mut sum = 0.0;
    for lane in 0..LANES {
        sum += sums[lane];
    }
    sum
}

#[cfg(test)]
mod tests {
    use awq_core::grid::GroupParams;

    use super::*;
    use crate::testing::grid;

    /// Against the same in plain words, of groups that fill no vector as well.
    #[test]
    fn sums_are_those_of_one_weight_after_the_other() {
        let grid = grid(4, 64);
        let params = GroupParams { scale: 0.07, zero_point: 6.4 };
        for n in [1, 7, 8, 64, 129] {
            let weights: Vec<f32> = (0..n).map(|i| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5).collect();
            let group = Group { weights: &weights, scale: params.scale, codes: grid.code_range() };
            let shrink = Shrink { power: -0.3, beta: 10.0 };
            let (mut error, mut target) = (0.0, 0.0);
            for &weight in &weights {
                let code = grid.nearest_code_of_real_zero(weight, &params);
                let left = weight - grid.weight(code, &params);
                error += f64::from(left.abs());
                let x = f64::from(left);
                let kept = x.signum() * (x.abs() - x.abs().powf(-0.3) / 10.0).max(0.0);
                target += f64::from(code) - (f64::from(weight) - kept) / f64::from(params.scale);
            }
            assert!((group.absolute_error(6.4) - error).abs() < 1e-12 * error, "{n}");
            let expected = (target / weights.len() as f64) as f32;
            assert!((group.next(6.4, shrink) - expected).abs() <= f32::EPSILON * expected.abs(), "{n}");
        }
    }
}
