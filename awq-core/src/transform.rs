//! [`WeightTransform`]: what lies between dequantized codes and the weight that a model multiplies with.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::grid::Grid;
use crate::rotation::Rotation;

/// What is done to `(code - zero_point) * scale` to get a weight. Checkpoint formats and fused kernels know the identity.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightTransform {
    /// Nothing: the codes are the weight.
    Identity,
    /// Column `j` of the codes is input channel `order[j]`, and groups are runs of `j` (GPTQ's activation order with groups
    /// formed in that order).
    PermutedInputs(Vec<u32>),
    /// Some input channels are stored beside the codes.
    KeptInputs(KeptInputs),
    /// The codes stand for a rotated weight.
    Rotated(Box<RotatedWeight>),
}

/// Input channels in (nearly) full precision: their codes are ignored.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptInputs {
    /// The channels.
    pub channels: Vec<u32>,
    /// Their weights, row-major `[n_out, n_kept]`, stored in the grid's scale type.
    pub values: Vec<f32>,
}

/// The codes stand for `U W diag(input_scale) V^T`; `W` is restored by undoing all three (QuIP, section 4).
#[derive(Clone, Debug, PartialEq)]
pub struct RotatedWeight {
    /// `U`, on the output channels.
    pub output: Rotation,
    /// `V`, on the input channels.
    pub input: Rotation,
    /// One factor an input channel, stored in the grid's scale type.
    pub input_scale: Vec<f32>,
}

impl WeightTransform {
    /// The weight, from the dequantized codes; both row-major `[n_out, n_in]`.
    pub(crate) fn apply(&self, mut weight: Vec<f32>, n_in: usize) -> Vec<f32> {
        match self {
            Self::Identity => {}
            Self::PermutedInputs(order) => weight.par_chunks_mut(n_in).for_each(|row| {
                let permuted = row.to_vec();
                for (&channel, value) in order.iter().zip(permuted) {
                    row[channel as usize] = value;
                }
            }),
            Self::KeptInputs(KeptInputs { channels, values }) => {
                let rows = weight.par_chunks_mut(n_in).zip(values.par_chunks(channels.len().max(1)));
                rows.for_each(|(row, kept)| {
                    for (&channel, &value) in channels.iter().zip(kept) {
                        row[channel as usize] = value;
                    }
                });
            }
            Self::Rotated(rotated) => {
                rotated.input.undo_rows(&mut weight);
                weight = rotated.output.undo_columns(&weight, n_in);
                weight.par_chunks_mut(n_in).for_each(|row| {
                    for (w, scale) in row.iter_mut().zip(&rotated.input_scale) {
                        *w /= scale;
                    }
                });
            }
        }
        weight
    }

    /// Bits stored beside codes, scales and zero points. A rotation is stored as its seed.
    pub(crate) fn stored_bits(&self, grid: &Grid) -> u64 {
        let value_bits = u64::from(grid.scale_dtype.bits());
        let index_bits = u64::from(u32::BITS);
        match self {
            Self::Identity => 0,
            Self::PermutedInputs(order) => order.len() as u64 * index_bits,
            Self::KeptInputs(kept) => kept.channels.len() as u64 * index_bits + kept.values.len() as u64 * value_bits,
            Self::Rotated(rotated) => rotated.input_scale.len() as u64 * value_bits + 2 * u64::from(u64::BITS),
        }
    }

    /// Feeds the transform to a hash. The identity adds nothing.
    pub(crate) fn hash_into(&self, hasher: &mut Sha256) {
        let mut floats = |values: &[f32]| values.iter().for_each(|value| hasher.update(value.to_le_bytes()));
        match self {
            Self::Identity => {}
            Self::PermutedInputs(order) => order.iter().for_each(|channel| hasher.update(channel.to_le_bytes())),
            Self::KeptInputs(kept) => {
                floats(&kept.values);
                kept.channels.iter().for_each(|channel| hasher.update(channel.to_le_bytes()));
            }
            Self::Rotated(rotated) => {
                floats(&rotated.input_scale);
                rotated.output.hash_into(hasher);
                rotated.input.hash_into(hasher);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::grid::{Bits, Granularity, ScaleDtype, Symmetry};
    use crate::quantized::{QuantizedWeight, ZeroPoints};
    use crate::rotation::RotationKind;

    fn grid() -> Grid {
        Grid {
            bits: Bits::new(4).unwrap(),
            granularity: Granularity::PerChannel,
            symmetry: Symmetry::Asymmetric,
            range_includes_zero: true,
            scale_dtype: ScaleDtype::F16,
            values: None,
        }
    }

    /// Two rows of four weights that are their own codes.
    fn weight(transform: WeightTransform) -> QuantizedWeight {
        QuantizedWeight {
            n_out: 2,
            n_in: 4,
            grid: grid(),
            codes: vec![0, 1, 2, 3, 4, 5, 6, 7],
            scale: vec![1.0; 2],
            zero_point: ZeroPoints::Codes(vec![0; 2]),
            transform,
        }
    }

    #[test]
    fn permuted_inputs_go_back_to_their_channels() {
        let permuted = weight(WeightTransform::PermutedInputs(vec![2, 0, 3, 1]));
        assert_eq!(permuted.dequantize(), [1.0, 3.0, 0.0, 2.0, 5.0, 7.0, 4.0, 6.0]);
        assert_eq!(permuted.stored_bits(), 8 * 4 + 2 * (16 + 4) + 4 * 32);
    }

    #[test]
    fn kept_inputs_replace_their_codes_and_are_counted() {
        let kept = KeptInputs { channels: vec![3, 1], values: vec![0.5, -1.5, 9.0, 8.0] };
        let kept = weight(WeightTransform::KeptInputs(kept));
        assert_eq!(kept.dequantize(), [0.0, -1.5, 2.0, 0.5, 4.0, 8.0, 6.0, 9.0]);
        assert_eq!(kept.stored_bits(), 8 * 4 + 2 * (16 + 4) + 2 * 32 + 4 * 16);
        let nothing = weight(WeightTransform::KeptInputs(KeptInputs { channels: vec![], values: vec![] }));
        assert_eq!(nothing.dequantize(), weight(WeightTransform::Identity).dequantize());
    }

    #[test]
    fn rotation_and_scale_are_undone() {
        let rotated = RotatedWeight {
            output: Rotation::new(RotationKind::Hadamard, 2, 1),
            input: Rotation::new(RotationKind::Kronecker, 4, 2),
            input_scale: vec![1.0, 2.0, 4.0, 0.5],
        };
        let original: Vec<f32> = vec![1.0, -2.0, 0.5, 3.0, -1.0, 0.25, 2.0, 0.0];
        let mut forward: Vec<f32> =
            original.chunks(4).flat_map(|row| row.iter().zip(&rotated.input_scale).map(|(w, s)| w * s)).collect();
        rotated.input.apply_rows(&mut forward);
        let forward = rotated.output.apply_columns(&forward, 4);
        assert!(forward.iter().zip(&original).any(|(a, b)| (a - b).abs() > 0.1), "the rotation did nothing");
        let restored = WeightTransform::Rotated(Box::new(rotated)).apply(forward, 4);
        for (a, b) in restored.iter().zip(&original) {
            assert!((a - b).abs() < 1e-6, "{restored:?} is not {original:?}");
        }
    }

    #[test]
    fn what_differs_hashes_differently() {
        let hash = |transform| {
            let mut hasher = Sha256::new();
            weight(transform).hash_into(&mut hasher);
            hasher.finalize()
        };
        let swapped = hash(WeightTransform::PermutedInputs(vec![1, 0, 2, 3]));
        assert_ne!(swapped, hash(WeightTransform::PermutedInputs(vec![0, 1, 2, 3])));
        assert_ne!(swapped, hash(WeightTransform::Identity));
    }
}
