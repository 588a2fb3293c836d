//! [`FittedGrid`]: a grid on a matrix. It differs from the grid only where scales are over one scale of the matrix.

use super::{Grid, GroupParams, ScaleDtype};
use crate::codebook::Codebook;

/// The largest number of e4m3.
const LARGEST: f32 = 448.0;
/// What is stored for a group of zeros (compressed-tensors 0.20).
const OF_ZEROS: f32 = 0.125;

/// A grid on a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FittedGrid {
    /// The grid.
    pub grid: Grid,
    /// What scales are multiplied by before they are stored: 1 but for e4m3.
    pub over: f32,
}

impl FittedGrid {
    /// Scale and zero point of a group whose weights span `min ..= max`. The scale is what codes are multiplied by.
    #[inline(always)]
    pub fn group_params(&self, min: f32, max: f32) -> GroupParams {
        self.grid.group_params_over(min, max, self.over)
    }

    /// The same from a group's own minimum and maximum.
    pub fn group_params_of(&self, group: &[f32]) -> GroupParams {
        super::group_params(group, self)
    }
}

/// With it the scale of the largest magnitude of a matrix is the largest of e4m3.
pub(super) fn over(grid: &Grid, matrix: &[f32]) -> f32 {
    let (ScaleDtype::E4m3, Some(values)) = (grid.scale_dtype, grid.values) else { return 1.0 };
    let largest = matrix.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
    let over = LARGEST * values.largest() / largest.max(f32::MIN_POSITIVE);
    if over.is_finite() { over } else { 1.0 }
}

/// The scale with which the largest magnitude of a group becomes the largest value, rounded as it is stored.
pub(super) fn e4m3_scale(values: Codebook, amax: f32, over: f32) -> f32 {
    let stored = ScaleDtype::E4m3.round(over * (amax / values.largest()));
    (if stored == 0.0 { OF_ZEROS } else { stored }) / over
}
