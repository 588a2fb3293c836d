//! Quantization onto a [`Grid`] in one pass over each group while it is in the first-level cache.

use rayon::prelude::*;

use crate::grid::{FittedGrid, Granularity, Grid, ScaleDtype, group_params};
use crate::quantized::{QuantizedWeight, ZeroPoints};
use crate::transform::WeightTransform;

/// Rounds a row-major `[n_out, n_in]` weight onto `grid`.
pub fn quantize(weight: &[f32], n_out: usize, n_in: usize, grid: &Grid) -> QuantizedWeight {
    let fitted = grid.fitted(weight);
    let groups = grid.granularity.groups(n_out, n_in);
    let mut codes = vec![0_u8; weight.len()];
    let mut scale = vec![0.0_f32; groups.n_groups()];
    let mut zero_point = vec![0_u8; groups.n_groups()];
    let rows = weight.par_chunks(groups.row_len).zip(codes.par_chunks_mut(groups.row_len));
    let params = scale.par_chunks_mut(groups.per_row).zip(zero_point.par_chunks_mut(groups.per_row));
    rows.zip(params).for_each(|((row, codes), (scale, zero_point))| {
        quantize_row(row, codes, scale, zero_point, groups.len, &fitted);
    });
    let (zero_point, transform) = (ZeroPoints::Codes(zero_point), WeightTransform::Identity);
    QuantizedWeight { n_out, n_in, grid: *grid, codes, scale, zero_point, transform }
}

/// Replaces a row-major `[n_out, n_in]` weight by its quantized values.
pub fn fake_quant(weight: &mut [f32], n_out: usize, n_in: usize, grid: &Grid) {
    fake_quant_fitted(weight, n_out, n_in, &grid.fitted(weight));
}

/// The same of a part of a matrix that the grid is fitted to.
pub(crate) fn fake_quant_fitted(weight: &mut [f32], n_out: usize, n_in: usize, grid: &FittedGrid) {
    let groups = grid.grid.granularity.groups(n_out, n_in);
    weight.par_chunks_mut(groups.row_len).with_min_len(8).for_each(|row| fake_quant_row(row, groups.len, grid));
}

/// Whether how a row is rounded depends on that row alone.
pub fn rounds_rows_alone(grid: &Grid) -> bool {
    grid.granularity != Granularity::PerTensor && grid.scale_dtype != ScaleDtype::E4m3
}

/// Replaces rows of a weight by what is added to them when they are multiplied by `scale: [in]`, quantized, and divided by it again. For a grid
/// that [`rounds_rows_alone`].
pub fn replace_by_changes(rows: &mut [f32], scale: &[f32], grid: &Grid) {
    let n_in = scale.len();
    let (groups, grid) = (grid.granularity.groups(rows.len() / n_in, n_in), grid.fitted(rows));
    let mut weight = vec![0.0; n_in];
    for row in rows.chunks_exact_mut(n_in) {
        weight.copy_from_slice(row);
        replace_by_change(row, &weight, scale, groups.len, &grid);
    }
}

vectorized! {
    fn replace_by_change<'a>(row: &'a mut [f32], weight: &'a [f32], scale: &'a [f32], len: usize, grid: &'a FittedGrid) -> () {
        for (value, scale) in row.iter_mut().zip(scale) {
            *value *= scale;
        }
        fake_quant_groups(row, len, grid);
        for ((value, scale), weight) in row.iter_mut().zip(scale).zip(weight) {
            *value = *value / scale - weight;
        }
    }

    fn quantize_row<'a>(row: &'a [f32], codes: &'a mut [u8], scale: &'a mut [f32], zero_point: &'a mut [u8], len: usize, grid: &'a FittedGrid) -> () {
        let groups = row.chunks(len).zip(codes.chunks_mut(len));
        for (((group, codes), stored_scale), stored_zero) in groups.zip(scale).zip(zero_point) {
            let params = group_params(group, grid);
            (*stored_scale, *stored_zero) = (params.scale, params.zero_point as u8);
            grid.grid.round_group(group, &params, codes);
        }
    }

    fn fake_quant_row<'a>(row: &'a mut [f32], len: usize, grid: &'a FittedGrid) -> () {
        fake_quant_groups(row, len, grid);
    }
}

#[inline(always)]
fn fake_quant_groups(row: &mut [f32], len: usize, grid: &FittedGrid) {
    for group in row.chunks_mut(len) {
        let params = group_params(group, grid);
        grid.grid.fake_quant_group(group, &params);
    }
}
