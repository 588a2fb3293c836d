//! Several quantized weights as one, so that a kernel is called once for all that read one input.

use crate::grid::{Granularity, Grid};
use crate::quantized::{QuantizedWeight, ZeroPoints};
use crate::transform::WeightTransform;

/// The rows of `weights` one after the other. `None` where they have a transform or a codebook that no kernel takes, or do
/// not share input channels and their order, bits, groups and the kind of zero points.
pub(super) fn stack(weights: Vec<QuantizedWeight>) -> Option<QuantizedWeight> {
    let mut weights = weights.into_iter().map(with_own_scales);
    let mut stacked = weights.next()??;
    for weight in weights {
        let weight = weight?;
        let same = |a: &QuantizedWeight, b: &QuantizedWeight| {
            let of_grid = |weight: &QuantizedWeight| (weight.n_in, weight.grid.bits, weight.grid.granularity);
            of_grid(a) == of_grid(b) && a.transform == b.transform
        };
        if !same(&stacked, &weight) {
            return None;
        }
        stacked.n_out += weight.n_out;
        stacked.codes.extend(weight.codes);
        stacked.scale.extend(weight.scale);
        match (&mut stacked.zero_point, weight.zero_point) {
            (ZeroPoints::Codes(all), ZeroPoints::Codes(more)) => all.extend(more),
            (ZeroPoints::Real(all), ZeroPoints::Real(more)) => all.extend(more),
            _ => return None,
        }
    }
    Some(stacked)
}

/// Whether kernels take the codes of a weight: nothing but an order of inputs lies between codes and weights, and codes are spaced
/// evenly.
pub(super) fn has_kernel(weight: &QuantizedWeight) -> bool {
    let is_plain = matches!(weight.transform, WeightTransform::Identity | WeightTransform::PermutedInputs(_));
    is_plain && weight.grid.values.is_none()
}

/// A weight that has a kernel; one scale for the whole matrix becomes the same scale for every row.
fn with_own_scales(weight: QuantizedWeight) -> Option<QuantizedWeight> {
    if !has_kernel(&weight) {
        return None;
    }
    if weight.grid.granularity != Granularity::PerTensor {
        return Some(weight);
    }
    let n = weight.n_out;
    Some(QuantizedWeight {
        grid: Grid { granularity: Granularity::PerChannel, ..weight.grid },
        scale: vec![weight.scale[0]; n],
        zero_point: match &weight.zero_point {
            ZeroPoints::Codes(codes) => ZeroPoints::Codes(vec![codes[0]; n]),
            ZeroPoints::Real(values) => ZeroPoints::Real(vec![values[0]; n]),
        },
        ..weight
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::num::NonZeroU16;

    use super::*;
    use crate::grid::{Bits, ScaleDtype, Symmetry};
    use crate::transform::KeptInputs;

    fn quantized(n_out: usize, bits: u8, granularity: Granularity) -> QuantizedWeight {
        let grid = Grid {
            bits: Bits::new(bits).unwrap(),
            granularity,
            symmetry: Symmetry::Asymmetric,
            range_includes_zero: true,
            scale_dtype: ScaleDtype::F16,
            values: None,
        };
        let weight: Vec<f32> = (0..n_out * 10).map(|i| ((i * 37 + n_out) % 101) as f32 / 50.0 - 0.9).collect();
        crate::host::grid::quantize(&weight, n_out, 10, &grid)
    }

    #[test]
    fn stacked_rows_dequantize_as_they_did() {
        let per_group = Granularity::PerGroup(NonZeroU16::new(4).unwrap());
        for granularity in [per_group, Granularity::PerChannel, Granularity::PerTensor] {
            let parts = vec![quantized(3, 4, granularity), quantized(5, 4, granularity)];
            let expected: Vec<f32> = parts.iter().flat_map(QuantizedWeight::dequantize).collect();
            let stacked = stack(parts).unwrap();
            assert_eq!((stacked.n_out, stacked.n_in), (8, 10));
            assert_eq!(stacked.dequantize(), expected, "{granularity:?}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_not_stacked() {
        let (a, b) = (quantized(3, 4, Granularity::PerChannel), quantized(3, 3, Granularity::PerChannel));
        assert!(stack(vec![a.clone(), b]).is_none());
        let kept = WeightTransform::KeptInputs(KeptInputs { channels: vec![], values: vec![] });
        assert!(stack(vec![QuantizedWeight { transform: kept, ..a.clone() }]).is_none());
        let real = QuantizedWeight { zero_point: ZeroPoints::Real(vec![0.5; 3]), ..a.clone() };
        assert!(stack(vec![a, real]).is_none());
        assert!(stack(vec![]).is_none());
    }
}
