//! Codes of libraries that are spaced evenly, as this program's kernels multiply with them: nothing is rounded but their sums, where a
//! library rounds each weight to 16 bits.

use crate::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use crate::quantized::{QuantizedWeight, ZeroPoints};
use crate::transform::WeightTransform;

/// A matrix of codes, groups of which have a scale and a zero point, `(code - zero point) * scale`.
pub(super) struct Even {
    /// `[n_out, n_in]`.
    pub(super) shape: [usize; 2],
    /// Of a code, at most 8.
    pub(super) bits: usize,
    /// Inputs of a group.
    pub(super) group: usize,
    /// Row-major.
    pub(super) codes: Vec<u8>,
    /// One a group, row-major.
    pub(super) scales: Vec<f32>,
    /// As many, real numbers.
    pub(super) zeros: Vec<f32>,
}

impl Even {
    /// `None` where groups do not fill rows or are too long for a grid, and where a scale or a zero point is not finite.
    pub(super) fn into_weight(self) -> Option<QuantizedWeight> {
        let [n_out, n_in] = self.shape;
        if n_out * n_in == 0 || self.group == 0 || !n_in.is_multiple_of(self.group) {
            return None;
        }
        let n_groups = n_out * (n_in / self.group);
        let is_whole = [self.scales.len(), self.zeros.len()] == [n_groups; 2] && self.codes.len() == n_out * n_in;
        if !is_whole || !self.scales.iter().chain(&self.zeros).all(|value| value.is_finite()) {
            return None;
        }
        // A grid has two bits at least.
        let bits = Bits::new(u8::try_from(self.bits.max(2)).ok()?)?;
        let granularity = match self.group == n_in {
            true => Granularity::PerChannel,
            false => Granularity::PerGroup(u16::try_from(self.group).ok()?.try_into().ok()?),
        };
        let is_code = |zero: &f32| zero.fract() == 0.0 && (0.0..=f32::from(bits.max_code())).contains(zero);
        let zero_point = match self.zeros.iter().all(is_code) {
            true => ZeroPoints::Codes(self.zeros.iter().map(|zero| *zero as u8).collect()),
            false => ZeroPoints::Real(self.zeros),
        };
        let grid = Grid {
            bits,
            granularity,
            symmetry: Symmetry::Asymmetric,
            range_includes_zero: false,
            scale_dtype: ScaleDtype::F32,
            values: None,
        };
        let (codes, scale, transform) = (self.codes, self.scales, WeightTransform::Identity);
        Some(QuantizedWeight { n_out, n_in, grid, codes, scale, zero_point, transform })
    }
}

/// Signed bytes as codes of 8 bits: 128 more.
pub(super) fn of_signed(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|byte| byte ^ 0x80).collect()
}

/// The code of 0 among [`of_signed`] ones.
pub(super) const SIGNED_ZERO: f32 = 128.0;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn even(shape: [usize; 2], group: usize, zeros: &[f32]) -> Even {
        let codes = (0..shape[0] * shape[1]).map(|index| (index % 4) as u8).collect();
        Even { shape, bits: 2, group, codes, scales: vec![0.5; zeros.len()], zeros: zeros.to_vec() }
    }

    #[test]
    fn zero_points_that_are_codes_are_kept_as_codes() {
        let weight = even([2, 4], 2, &[0.0, 1.0, 2.0, 3.0]).into_weight().unwrap();
        assert_eq!(weight.zero_point, ZeroPoints::Codes(vec![0, 1, 2, 3]));
        assert_eq!(weight.dequantize(), [0.0, 0.5, 0.5, 1.0, -1.0, -0.5, -0.5, 0.0]);
        for zero in [0.5, -1.0, 4.0] {
            let weight = even([2, 4], 2, &[0.0, zero, 2.0, 3.0]).into_weight().unwrap();
            assert_eq!(weight.zero_point, ZeroPoints::Real(vec![0.0, zero, 2.0, 3.0]));
            assert_eq!(weight.dequantize()[2], (2.0 - zero) * 0.5);
        }
    }

    #[test]
    fn groups_that_no_grid_has_are_left_alone() {
        assert!(even([2, 4], 4, &[0.0; 2]).into_weight().is_some());
        assert!(even([2, 4], 3, &[0.0; 2]).into_weight().is_none());
        assert!(even([2, 4], 8, &[0.0; 1]).into_weight().is_none(), "a group of two rows");
        assert!(even([2, 4], 2, &[0.0; 3]).into_weight().is_none());
        assert!(even([2, 4], 2, &[0.0, f32::NAN, 0.0, 0.0]).into_weight().is_none());
        assert!(even([0, 4], 2, &[]).into_weight().is_none());
        assert!(even([1, 140_000], 70_000, &[0.0; 2]).into_weight().is_none(), "longer than a grid says");
    }
}
