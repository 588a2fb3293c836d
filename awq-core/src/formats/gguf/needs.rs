//! [`Needs`]: what of a linear decides which types hold it.

use half::f16;
use rayon::prelude::*;

use super::types::GgmlType;
use super::zero_points;
use crate::codebook::Codebook;
use crate::formats::{in_order_of_inputs, n_groups};
use crate::quantized::QuantizedWeight;

/// What the codes of a linear ask of a type; of several linears in one tensor together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The lowest and the highest code as steps from zero.
    steps: (i16, i16),
    /// Codes as they are stored with a minimum.
    max_code: u8,
    /// Whether the product of each scale and zero point is a number of f16.
    has_exact_minima: bool,
    /// Inputs that share a scale, and all of a row, are multiples of this.
    run: usize,
    /// Codes of E2M1: `Some(false)` of no linear, `Some(true)` of all, `None` of some.
    is_e2m1: Option<bool>,
}

impl Needs {
    /// Of one linear.
    pub fn of(weight: &QuantizedWeight) -> Self {
        let (scales, zeros) = zero_points(weight);
        let (codes, _) = in_order_of_inputs(weight);
        let (len, n_groups) = (weight.group_len(), n_groups(weight));
        let extremes = codes.par_chunks(weight.n_in).enumerate().map(|(row, codes)| {
            codes.chunks(len).enumerate().fold((0, 0, 0), |(low, high, max), (group, codes)| {
                let zero = i16::from(zeros[row * n_groups + group]);
                let (least, most) =
                    codes.iter().fold((u8::MAX, 0), |(least, most), &code| (code.min(least), code.max(most)));
                (low.min(i16::from(least) - zero), high.max(i16::from(most) - zero), max.max(most))
            })
        });
        let (low, high, max_code) = extremes
            .reduce(|| (0, 0, 0), |a: (i16, i16, u8), b: (i16, i16, u8)| (a.0.min(b.0), a.1.max(b.1), a.2.max(b.2)));
        let is_exact = |(scale, zero): (&f32, &u8)| {
            let minimum = -scale * f32::from(*zero);
            f16::from_f32(minimum).to_f32().to_bits() == minimum.to_bits()
        };
        Self {
            steps: (low, high),
            max_code,
            has_exact_minima: scales.iter().zip(&zeros).all(is_exact),
            run: if n_groups == 1 { weight.n_in } else { gcd(len, weight.n_in) },
            is_e2m1: Some(weight.grid.values == Some(Codebook::E2m1)),
        }
    }

    /// Of two linears whose rows one tensor has.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            steps: (self.steps.0.min(other.steps.0), self.steps.1.max(other.steps.1)),
            max_code: self.max_code.max(other.max_code),
            has_exact_minima: self.has_exact_minima && other.has_exact_minima,
            run: gcd(self.run, other.run),
            is_e2m1: self.is_e2m1.filter(|_| self.is_e2m1 == other.is_e2m1),
        }
    }

    /// The type with the fewest bits that holds all codes; `None` where there is none.
    pub fn smallest(&self) -> Option<GgmlType> {
        [
            GgmlType::Tq2_0,
            GgmlType::Mxfp4,
            GgmlType::Q4_0,
            GgmlType::Q4_1,
            GgmlType::Q5_0,
            GgmlType::Q5_1,
            GgmlType::Q8_0,
        ]
        .into_iter()
        .find(|&ggml_type| self.are_met_by(ggml_type))
    }

    pub(super) fn are_met_by(&self, ggml_type: GgmlType) -> bool {
        let steps = |low, high| self.steps.0 >= low && self.steps.1 <= high;
        let is_stepped = self.is_e2m1 == Some(false);
        self.run.is_multiple_of(ggml_type.block_len())
            && match ggml_type {
                GgmlType::Mxfp4 => self.is_e2m1 == Some(true),
                GgmlType::Tq2_0 => is_stepped && steps(-1, 1),
                GgmlType::Q4_0 => is_stepped && steps(-8, 7),
                GgmlType::Q4_1 => is_stepped && self.has_exact_minima && self.max_code < 16,
                GgmlType::Q5_0 => is_stepped && steps(-16, 15),
                GgmlType::Q5_1 => is_stepped && self.has_exact_minima && self.max_code < 32,
                GgmlType::Q8_0 => is_stepped && steps(-128, 127),
                _ => false,
            }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
