//! Quantization onto a [`Grid`] in one pass over each group while it is in the first-level cache.

use rayon::prelude::*;

use crate::grid::{Granularity, Grid, GroupParams};
use crate::quantized::{QuantizedWeight, ZeroPoints};
use crate::transform::WeightTransform;

/// Adding and subtracting 1.5 * 2^23 rounds half to even; exact for magnitudes below 2^22.
const ROUND: f32 = 12_582_912.0;
/// Bound applied before [`ROUND`]: far outside every code range, far inside its exact range.
const ROUND_BOUND: f32 = 1e6;

/// Rounds a row-major `[n_out, n_in]` weight onto `grid`.
pub fn quantize(weight: &[f32], n_out: usize, n_in: usize, grid: &Grid) -> QuantizedWeight {
    let groups = GroupLayout::new(n_out, n_in, grid);
    let mut codes = vec![0_u8; weight.len()];
    let mut scale = vec![0.0_f32; groups.n_scales()];
    let mut zero_point = vec![0_u8; groups.n_scales()];
    let rows = weight.par_chunks(groups.row_len).zip(codes.par_chunks_mut(groups.row_len));
    let params = scale.par_chunks_mut(groups.per_row).zip(zero_point.par_chunks_mut(groups.per_row));
    rows.zip(params).for_each(|((row, codes), (scale, zero_point))| {
        quantize_row(row, codes, scale, zero_point, groups.len, grid);
    });
    let (zero_point, transform) = (ZeroPoints::Codes(zero_point), WeightTransform::Identity);
    QuantizedWeight { n_out, n_in, grid: *grid, codes, scale, zero_point, transform }
}

/// Replaces a row-major `[n_out, n_in]` weight by its quantized values.
pub fn fake_quant(weight: &mut [f32], n_out: usize, n_in: usize, grid: &Grid) {
    let groups = GroupLayout::new(n_out, n_in, grid);
    weight.par_chunks_mut(groups.row_len).with_min_len(8).for_each(|row| fake_quant_row(row, groups.len, grid));
}

vectorized! {
    fn quantize_row<'a>(row: &'a [f32], codes: &'a mut [u8], scale: &'a mut [f32], zero_point: &'a mut [u8], len: usize, grid: &'a Grid) -> () {
        let (low, high) = (f32::from(grid.min_code()), f32::from(grid.bits.max_code()));
        let groups = row.chunks(len).zip(codes.chunks_mut(len));
        for (((group, codes), stored_scale), stored_zero) in groups.zip(scale).zip(zero_point) {
            let GroupParams { scale, zero_point } = group_params(group, grid);
            (*stored_scale, *stored_zero) = (scale, zero_point as u8);
            for (q, &w) in codes.iter_mut().zip(group) {
                *q = code(w, scale, zero_point, low, high) as u8;
            }
        }
    }

    fn fake_quant_row<'a>(row: &'a mut [f32], len: usize, grid: &'a Grid) -> () {
        let (low, high) = (f32::from(grid.min_code()), f32::from(grid.bits.max_code()));
        for group in row.chunks_mut(len) {
            let GroupParams { scale, zero_point } = group_params(group, grid);
            for w in group {
                *w = (code(*w, scale, zero_point, low, high) - zero_point) * scale;
            }
        }
    }
}

/// The code of one weight, as a float.
#[inline(always)]
pub(crate) fn code(w: f32, scale: f32, zero_point: f32, low: f32, high: f32) -> f32 {
    let steps = (w / scale).clamp(-ROUND_BOUND, ROUND_BOUND);
    let rounded = (steps + ROUND) - ROUND;
    (rounded + zero_point).clamp(low, high)
}

/// Parameters of a group from its extrema.
#[inline(always)]
pub(crate) fn group_params(group: &[f32], grid: &Grid) -> GroupParams {
    let (min, max) = extrema(group);
    grid.group_params(min, max)
}

#[inline(always)]
fn extrema(values: &[f32]) -> (f32, f32) {
    const LANES: usize = 16;
    let (chunks, rest) = values.as_chunks::<LANES>();
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    for chunk in chunks {
        for lane in 0..LANES {
            low[lane] = if chunk[lane] < low[lane] { chunk[lane] } else { low[lane] };
            high[lane] = if chunk[lane] > high[lane] { chunk[lane] } else { high[lane] };
        }
    }
    let min = low.iter().chain(rest).fold(f32::INFINITY, |a, &b| a.min(b));
    let max = high.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    (min, max)
}

/// How a matrix falls into groups. A per-tensor grid sees the matrix as one long row.
struct GroupLayout {
    row_len: usize,
    len: usize,
    per_row: usize,
    n_rows: usize,
}

impl GroupLayout {
    fn new(n_out: usize, n_in: usize, grid: &Grid) -> Self {
        let (n_rows, row_len) = match grid.granularity {
            Granularity::PerTensor => (1, n_out * n_in),
            Granularity::PerChannel | Granularity::PerGroup(_) => (n_out, n_in),
        };
        Self { row_len, len: grid.granularity.group_len(row_len), per_row: grid.granularity.n_groups(row_len), n_rows }
    }

    fn n_scales(&self) -> usize {
        self.n_rows * self.per_row
    }
}
