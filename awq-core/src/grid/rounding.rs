//! From weights to codes and back: the one place where weights are rounded.

use super::{Grid, GroupParams};

/// Adding and subtracting 1.5 * 2^23 rounds half to even; exact for magnitudes below 2^22.
const ROUND: f32 = 12_582_912.0;
/// Bound applied before [`ROUND`]: far outside every code range, far inside its exact range.
const ROUND_BOUND: f32 = 1e6;

impl Grid {
    /// The code nearest to a weight, as plain rounding picks it; the zero point is a code.
    #[inline]
    pub fn nearest_code(&self, weight: f32, params: &GroupParams) -> u8 {
        match self.values {
            None => {
                let (low, high) = self.code_range();
                code(weight, params.scale, params.zero_point, low, high) as u8
            }
            Some(values) => values.nearest(weight, params.scale),
        }
    }

    /// The code nearest to a weight on evenly spaced codes with a zero point that may lie between two (HQQ, QuIP): it is added
    /// before rounding.
    #[inline]
    pub fn nearest_code_of_real_zero(&self, weight: f32, params: &GroupParams) -> u8 {
        let (low, high) = self.code_range();
        (weight / params.scale + params.zero_point).round_ties_even().clamp(low, high) as u8
    }

    /// The weight that a code stands for.
    #[inline]
    pub fn weight(&self, code: u8, params: &GroupParams) -> f32 {
        match self.values {
            None => (f32::from(code) - params.zero_point) * params.scale,
            Some(values) => values.value(code) * params.scale,
        }
    }

    /// Smallest and largest code in use.
    #[inline]
    pub fn code_range(&self) -> (f32, f32) {
        (f32::from(self.min_code()), f32::from(self.bits.max_code()))
    }

    /// [`Self::nearest_code`] of one column: a weight, a scale and a zero point of each row. Gives the codes and the weights that
    /// they stand for. The caller's instruction set is that of the loops.
    #[inline(always)]
    pub fn round_rows<const N: usize>(
        &self,
        weights: &[f32; N],
        scale: &[f32; N],
        zero_point: &[f32; N],
        codes: &mut [u8; N],
        rounded: &mut [f32; N],
    ) {
        match self.values {
            None => {
                let (low, high) = self.code_range();
                for row in 0..N {
                    codes[row] = code(weights[row], scale[row], zero_point[row], low, high) as u8;
                    rounded[row] = (f32::from(codes[row]) - zero_point[row]) * scale[row];
                }
            }
            Some(values) => {
                for row in 0..N {
                    codes[row] = values.nearest(weights[row], scale[row]);
                    rounded[row] = values.value(codes[row]) * scale[row];
                }
            }
        }
    }

    /// The codes of one group.
    #[inline(always)]
    pub(crate) fn round_group(&self, group: &[f32], params: &GroupParams, codes: &mut [u8]) {
        let GroupParams { scale, zero_point } = *params;
        match self.values {
            None => {
                let (low, high) = self.code_range();
                for (q, &w) in codes.iter_mut().zip(group) {
                    *q = code(w, scale, zero_point, low, high) as u8;
                }
            }
            Some(values) => {
                for (q, &w) in codes.iter_mut().zip(group) {
                    *q = values.nearest(w, scale);
                }
            }
        }
    }

    /// Replaces the weights of one group by those that their codes stand for.
    #[inline(always)]
    pub(crate) fn fake_quant_group(&self, group: &mut [f32], params: &GroupParams) {
        let GroupParams { scale, zero_point } = *params;
        match self.values {
            None => {
                let (low, high) = self.code_range();
                for w in group {
                    *w = (code(*w, scale, zero_point, low, high) - zero_point) * scale;
                }
            }
            Some(values) => {
                for w in group {
                    *w = values.value(values.nearest(*w, scale)) * scale;
                }
            }
        }
    }

    /// The weights of one group from their codes, which may have a zero point that is none.
    #[inline(always)]
    pub(crate) fn restore_group(&self, codes: &[u8], params: &GroupParams, weights: &mut [f32]) {
        let GroupParams { scale, zero_point } = *params;
        match self.values {
            None => {
                for (w, &q) in weights.iter_mut().zip(codes) {
                    *w = (f32::from(q) - zero_point) * scale;
                }
            }
            Some(values) => {
                for (w, &q) in weights.iter_mut().zip(codes) {
                    *w = values.value(q) * scale;
                }
            }
        }
    }
}

/// The code of one weight, as a float.
#[inline(always)]
fn code(w: f32, scale: f32, zero_point: f32, low: f32, high: f32) -> f32 {
    let steps = (w / scale).clamp(-ROUND_BOUND, ROUND_BOUND);
    let rounded = (steps + ROUND) - ROUND;
    (rounded + zero_point).clamp(low, high)
}
