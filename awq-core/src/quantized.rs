//! [`QuantizedWeight`]: codes, scales and zero points of one linear, in host memory.
//!
//! Host memory is the store (a 70B model is quantized block by block), so this type knows no backend: it is made from a
//! tensor and turned back into one where it is needed.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::grid::{Granularity, Grid, GroupParams, Symmetry};
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

/// What a method's quantized weights may consist of, known before the work: codes and scales, and this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredParts {
    /// Zero points are [`ZeroPoints::Real`].
    pub has_real_zero_points: bool,
    /// Some have [`WeightTransform::PermutedInputs`].
    pub has_input_order: bool,
    /// Any other [`WeightTransform`], in words: `rotations`.
    pub beside: Option<&'static str>,
    /// Scales may be folded into activations, where a family has no other place for them.
    pub scales_activations: bool,
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
    /// What lies between what codes stand for and the weight; the identity for RTN and AWQ.
    pub transform: WeightTransform,
}

impl QuantizedWeight {
    /// The weights that the codes stand for, row-major `[n_out, n_in]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut weight = vec![0.0; self.codes.len()];
        let groups = self.grid.granularity.groups(self.n_out, self.n_in);
        let rows = weight.par_chunks_mut(self.n_in).zip(self.codes.par_chunks(self.n_in));
        rows.enumerate().for_each(|(row, (weight, codes))| {
            let parts = weight.chunks_mut(groups.len).zip(codes.chunks(groups.len));
            for (part, (weight, codes)) in parts.enumerate() {
                let index = groups.group_of(row * self.n_in + part * groups.len);
                let params = GroupParams { scale: self.scale[index], zero_point: self.zero_point.get(index) };
                self.grid.restore_group(codes, &params, weight);
            }
        });
        self.transform.apply(weight, self.n_in)
    }

    /// [`Self::dequantize`] as a `[n_out, n_in]` tensor.
    pub fn to_tensor<B: Backend>(&self, device: &B::Device) -> Tensor<B, 2> {
        Tensor::from_data(TensorData::new(self.dequantize(), [self.n_out, self.n_in]), device)
    }

    /// Some of its rows; `None` where one scale is that of all of them, or outputs are rotated together.
    pub fn rows(&self, rows: impl Iterator<Item = usize>) -> Option<Self> {
        let of_each = match &self.transform {
            WeightTransform::Identity | WeightTransform::PermutedInputs(_) => {
                self.grid.granularity != Granularity::PerTensor
            }
            WeightTransform::KeptInputs(_) | WeightTransform::Rotated(_) => false,
        };
        let rows: Vec<usize> = rows.collect();
        if !of_each || rows.iter().any(|&row| row >= self.n_out) {
            return None;
        }
        let n_groups = self.scale.len() / self.n_out;
        fn taken<T: Copy>(rows: &[usize], values: &[T], len: usize) -> Vec<T> {
            rows.iter().flat_map(|row| &values[row * len..][..len]).copied().collect()
        }
        Some(Self {
            n_out: rows.len(),
            n_in: self.n_in,
            grid: self.grid,
            codes: taken(&rows, &self.codes, self.n_in),
            scale: taken(&rows, &self.scale, n_groups),
            zero_point: match &self.zero_point {
                ZeroPoints::Codes(codes) => ZeroPoints::Codes(taken(&rows, codes, n_groups)),
                ZeroPoints::Real(values) => ZeroPoints::Real(taken(&rows, values, n_groups)),
            },
            transform: self.transform.clone(),
        })
    }

    /// The same weights as `n_out` rows of `n_in`, of each of which several rows of this matrix are the groups; `None` where they do not
    /// fill its rows, or have groups of their own.
    pub fn regrouped(self, [n_out, n_in]: [usize; 2]) -> Option<Self> {
        let is_whole = self.n_in > 0 && n_in.is_multiple_of(self.n_in) && n_out.checked_mul(n_in)? == self.codes.len();
        let is_by_row = self.grid.granularity == Granularity::PerChannel && self.transform == WeightTransform::Identity;
        if !is_whole || !is_by_row {
            return None;
        }
        let granularity = match n_in == self.n_in {
            true => Granularity::PerChannel,
            false => Granularity::PerGroup(u16::try_from(self.n_in).ok()?.try_into().ok()?),
        };
        Some(Self { n_out, n_in, grid: Grid { granularity, ..self.grid }, ..self })
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
        let of_matrix = u64::from(self.grid.scale_dtype.bits_of_matrix());
        let of_groups = self.scale.len() as u64 * (scale_bits + zero_bits);
        code_bits + of_groups + of_matrix + self.transform.stored_bits(&self.grid)
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
