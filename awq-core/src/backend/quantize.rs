//! Rounding onto a grid in plain tensor operations: the definition that [`crate::host::grid`] is tested against, and what GPU
//! backends run.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};

use super::{QuantBackend, float_vec};
use crate::grid::{FittedGrid, Granularity, Grid, RANGE_FLOOR, ScaleDtype, Symmetry};
use crate::quantized::{QuantizedWeight, ZeroPoints};
use crate::transform::WeightTransform;

/// The definition of quantization in tensor operations, for any backend; in f32, whatever the weight is. A codebook is looked
/// up on the host.
pub(super) fn quantize<B: QuantBackend>(weight: Tensor<B, 2>, grid: &Grid) -> QuantizedWeight {
    let weight = B::in_f32(weight);
    let [n_out, n_in] = weight.dims();
    if grid.values.is_some() {
        return crate::host::grid::quantize(&float_vec(weight), n_out, n_in, grid);
    }
    let (mut all_codes, mut scales, mut zero_points) = (Vec::new(), Vec::new(), Vec::new());
    for segment in segments(weight, grid) {
        let params = group_params(segment.clone(), grid);
        all_codes.push(codes(segment, &params, grid));
        scales.push(params.scale);
        zero_points.push(params.zero_point);
    }
    let rows = |parts: Vec<Tensor<B, 3>>| {
        let flat = |part: Tensor<B, 3>| {
            let [rows, groups, len] = part.dims();
            part.reshape([rows, groups * len])
        };
        float_vec(Tensor::cat(parts.into_iter().map(flat).collect(), 1))
    };
    let to_u8 = |values: Vec<f32>| values.into_iter().map(|value| value as u8).collect();
    QuantizedWeight {
        n_out,
        n_in,
        grid: *grid,
        codes: to_u8(rows(all_codes)),
        scale: rows(scales),
        zero_point: ZeroPoints::Codes(to_u8(rows(zero_points))),
        transform: WeightTransform::Identity,
    }
}

/// [`QuantBackend::bf16_change`] by way of whole matrices.
pub(super) fn bf16_change<B: QuantBackend>(weight: Tensor<B, 2>, scale: Tensor<B, 1>, grid: &Grid) -> B::Bf16Weight {
    B::bf16_weight(B::fake_quant_scaled(weight.clone(), scale, grid) - weight)
}

/// See [`quantize`]; f32, too.
pub(super) fn fake_quant<B: QuantBackend>(weight: Tensor<B, 2>, grid: &Grid) -> Tensor<B, 2> {
    let weight = B::in_f32(weight);
    let [n_out, n_in] = weight.dims();
    if grid.values.is_some() {
        let fitted = grid.fitted(&float_vec(weight.clone()));
        return fake_quant_fitted(weight, &fitted);
    }
    let restore = |segment: Tensor<B, 3>| {
        let [rows, groups, len] = segment.dims();
        let params = group_params(segment.clone(), grid);
        let codes = codes(segment, &params, grid);
        ((codes - params.zero_point) * params.scale).reshape([rows, groups * len])
    };
    Tensor::cat(segments(weight, grid).into_iter().map(restore).collect(), 1).reshape([n_out, n_in])
}

/// The values of a codebook, on the host; `weight` is a part of the matrix that the grid is fitted to.
pub(super) fn fake_quant_fitted<B: QuantBackend>(weight: Tensor<B, 2>, grid: &FittedGrid) -> Tensor<B, 2> {
    let ([n_out, n_in], device) = (weight.dims(), weight.device());
    let mut values = float_vec(weight);
    crate::host::grid::fake_quant_fitted(&mut values, n_out, n_in, grid);
    Tensor::from_data(TensorData::new(values, [n_out, n_in]), (&device, DType::F32))
}

/// `[rows, n_groups, len]` views: the whole groups, then the ragged last group if there is one.
fn segments<B: Backend>(weight: Tensor<B, 2>, grid: &Grid) -> Vec<Tensor<B, 3>> {
    let [n_out, n_in] = weight.dims();
    if grid.granularity == Granularity::PerTensor {
        return vec![weight.reshape([1, 1, n_out * n_in])];
    }
    let len = grid.granularity.group_len(n_in);
    let n_whole = n_in / len;
    let whole = weight.clone().narrow(1, 0, n_whole * len).reshape([n_out, n_whole, len]);
    let tail = n_in - n_whole * len;
    if tail == 0 {
        return vec![whole];
    }
    vec![whole, weight.narrow(1, n_whole * len, tail).reshape([n_out, 1, tail])]
}

struct TensorParams<B: Backend> {
    /// `[rows, n_groups, 1]`.
    scale: Tensor<B, 3>,
    /// `[rows, n_groups, 1]`.
    zero_point: Tensor<B, 3>,
}

/// [`Grid::group_params`] for every group of a segment.
fn group_params<B: QuantBackend>(segment: Tensor<B, 3>, grid: &Grid) -> TensorParams<B> {
    let (mut min, mut max) = (segment.clone().min_dim(2), segment.max_dim(2));
    if grid.range_includes_zero {
        (min, max) = (min.clamp_max(0.0), max.clamp_min(0.0));
    }
    let max_code = f64::from(grid.bits.max_code());
    let middle = f64::from(grid.bits.max_code() / 2 + 1);
    let amax = || min.clone().abs().max_pair(max.clone().abs());
    let scale = match grid.symmetry {
        Symmetry::Asymmetric => (max.clone() - min.clone()).clamp_min(RANGE_FLOOR) / max_code,
        Symmetry::SymmetricFullRange => (amax() * 2.0).clamp_min(RANGE_FLOOR) / max_code,
        Symmetry::SymmetricRestricted => amax().clamp_min(RANGE_FLOOR) / (middle - 1.0),
    };
    let scale = round_scales(scale, grid);
    let zero_point = match grid.symmetry {
        Symmetry::Asymmetric => (min.neg() / scale.clone()).round().clamp(0.0, max_code),
        _ => scale.zeros_like() + middle,
    };
    TensorParams { scale, zero_point }
}

/// Rounds scales to their storage type.
fn round_scales<B: QuantBackend>(scale: Tensor<B, 3>, grid: &Grid) -> Tensor<B, 3> {
    if grid.scale_dtype == ScaleDtype::F32 { scale } else { B::round_scales(scale, grid.scale_dtype) }
}

fn codes<B: Backend>(segment: Tensor<B, 3>, params: &TensorParams<B>, grid: &Grid) -> Tensor<B, 3> {
    let steps = (segment / params.scale.clone()).round() + params.zero_point.clone();
    steps.clamp(f64::from(grid.min_code()), f64::from(grid.bits.max_code()))
}
