//! Quantization onto a [`Grid`] in one pass over each group while it is in the first-level cache.

use rayon::prelude::*;

use crate::grid::{Granularity, Grid, GroupParams, code, group_params};
use crate::quantized::{QuantizedWeight, ZeroPoints};
use crate::transform::WeightTransform;

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
