//! [`QuantizedWeight`]: codes, scales and zero points of one linear, in host memory.
//!
//! Host memory is the store (a 70B model is quantized block by block), so this type knows no backend: it is made from a
//! tensor and turned back into one where it is needed.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::backend::{QuantBackend, float_vec};
use crate::grid::{Granularity, Grid, RANGE_FLOOR, Symmetry};
use crate::transform::WeightTransform;

/// The codes that mean zero, one a group, shaped as the scales.
#[derive(Clone, Debug, PartialEq)]
pub enum ZeroPoints {
    /// Codes: what checkpoint formats and kernels know.
    Codes(Vec<u8>),
    /// Real numbers, stored like scales (HQQ; QuIP, whose zero lies between two codes).
    Real(Vec<f32>),
}

impl ZeroPoints {
    /// The zero point of one group.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Self::Codes(codes) => f32::from(codes[index]),
            Self::Real(values) => values[index],
        }
    }
}

/// One quantized `[n_out, n_in]` matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedWeight {
    /// Output channels.
    pub n_out: usize,
    /// Input channels.
    pub n_in: usize,
    /// The grid it lies on.
    pub grid: Grid,
    /// One code a weight, row-major `[n_out, n_in]`.
    pub codes: Vec<u8>,
    /// One scale a group, row-major `[n_out, n_groups]` (`[1]` for a per-tensor grid).
    pub scale: Vec<f32>,
    /// One zero point a group, shaped as `scale`.
    pub zero_point: ZeroPoints,
    /// What lies between `(code - zero_point) * scale` and the weight; the identity for RTN and AWQ.
    pub transform: WeightTransform,
}

impl QuantizedWeight {
    /// The weights that the codes stand for, row-major `[n_out, n_in]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut weight = vec![0.0; self.codes.len()];
        let group_len = self.group_len();
        let n_groups = self.n_in.div_ceil(group_len).max(1);
        let per_tensor = self.grid.granularity == Granularity::PerTensor;
        weight.par_chunks_mut(self.n_in).zip(self.codes.par_chunks(self.n_in)).enumerate().for_each(
            |(row, (weight, codes))| {
                for (group, (weight, codes)) in weight.chunks_mut(group_len).zip(codes.chunks(group_len)).enumerate() {
                    let index = if per_tensor { 0 } else { row * n_groups + group };
                    let (scale, zero_point) = (self.scale[index], self.zero_point.get(index));
                    for (w, &q) in weight.iter_mut().zip(codes) {
                        *w = (f32::from(q) - zero_point) * scale;
                    }
                }
            },
        );
        self.transform.apply(weight, self.n_in)
    }

    /// [`Self::dequantize`] as a `[n_out, n_in]` tensor.
    pub fn to_tensor<B: Backend>(&self, device: &B::Device) -> Tensor<B, 2> {
        Tensor::from_data(TensorData::new(self.dequantize(), [self.n_out, self.n_in]), device)
    }

    /// Input channels of one group.
    pub fn group_len(&self) -> usize {
        self.grid.granularity.group_len(self.n_in)
    }

    /// Stored bits of the matrix: codes, scales, zero points and what the transform needs.
    pub fn stored_bits(&self) -> u64 {
        let scale_bits = u64::from(self.grid.scale_dtype.bits());
        let zero_bits = match (&self.zero_point, self.grid.symmetry) {
            (ZeroPoints::Real(_), _) => scale_bits,
            (ZeroPoints::Codes(_), Symmetry::Asymmetric) => u64::from(self.grid.bits.get()),
            (ZeroPoints::Codes(_), Symmetry::SymmetricFullRange | Symmetry::SymmetricRestricted) => 0,
        };
        // Not from the length of `codes`: a packed weight keeps them elsewhere.
        let code_bits = (self.n_out * self.n_in) as u64 * u64::from(self.grid.bits.get());
        code_bits + self.scale.len() as u64 * (scale_bits + zero_bits) + self.transform.stored_bits(&self.grid)
    }

    /// Feeds codes, scales, zero points and transform to a hash: equal hashes mean the same quantized weight, bit for bit.
    pub fn hash_into(&self, hasher: &mut Sha256) {
        hasher.update((self.n_out as u64).to_le_bytes());
        hasher.update((self.n_in as u64).to_le_bytes());
        hasher.update(&self.codes);
        for scale in &self.scale {
            hasher.update(scale.to_le_bytes());
        }
        match &self.zero_point {
            ZeroPoints::Codes(codes) => hasher.update(codes),
            ZeroPoints::Real(values) => values.iter().for_each(|value| hasher.update(value.to_le_bytes())),
        }
        self.transform.hash_into(hasher);
    }
}

/// The definition of quantization in tensor operations, for any backend; in f32, whatever the weight is.
pub(crate) fn quantize_tensor<B: QuantBackend>(weight: Tensor<B, 2>, grid: &Grid) -> QuantizedWeight {
    let weight = B::in_f32(weight);
    let [n_out, n_in] = weight.dims();
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

/// See [`quantize_tensor`]; f32, too.
pub(crate) fn fake_quant_tensor<B: QuantBackend>(weight: Tensor<B, 2>, grid: &Grid) -> Tensor<B, 2> {
    let weight = B::in_f32(weight);
    let [n_out, n_in] = weight.dims();
    let restore = |segment: Tensor<B, 3>| {
        let [rows, groups, len] = segment.dims();
        let params = group_params(segment.clone(), grid);
        let codes = codes(segment, &params, grid);
        ((codes - params.zero_point) * params.scale).reshape([rows, groups * len])
    };
    Tensor::cat(segments(weight, grid).into_iter().map(restore).collect(), 1).reshape([n_out, n_in])
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
fn group_params<B: Backend>(segment: Tensor<B, 3>, grid: &Grid) -> TensorParams<B> {
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

/// Rounds scales to their storage type on the host: not every backend has f16, and there are few of them.
fn round_scales<B: Backend>(scale: Tensor<B, 3>, grid: &Grid) -> Tensor<B, 3> {
    if grid.scale_dtype == crate::grid::ScaleDtype::F32 {
        return scale;
    }
    let (dims, device) = (scale.dims(), scale.device());
    let rounded: Vec<f32> = float_vec(scale).into_iter().map(|s| grid.scale_dtype.round(s)).collect();
    Tensor::from_data(TensorData::new(rounded, dims), (&device, DType::F32))
}

fn codes<B: Backend>(segment: Tensor<B, 3>, params: &TensorParams<B>, grid: &Grid) -> Tensor<B, 3> {
    let steps = (segment / params.scale.clone()).round() + params.zero_point.clone();
    steps.clamp(f64::from(grid.min_code()), f64::from(grid.bits.max_code()))
}
