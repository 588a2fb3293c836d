//! [`Integers`]: a linear as integers, whoever wrote it.

use std::num::NonZeroU16;

use rayon::prelude::*;

use crate::grid::{Bits, Granularity, Grid, ScaleDtype, Symmetry};
use crate::numbers::Number;
use crate::quantized::{QuantizedWeight, ZeroPoints};
use crate::transform::WeightTransform;

/// Codes, scales and zero points of a linear; input channels belong to groups in any way.
#[derive(Clone, Debug, PartialEq)]
pub struct Integers {
    /// Output channels.
    pub n_out: usize,
    /// Input channels.
    pub n_in: usize,
    /// Bits of a code.
    pub bits: Bits,
    /// Row-major `[n_out, n_in]`.
    pub codes: Vec<u8>,
    /// Row-major `[n_out, n_groups]`; negative ones reverse the order of codes.
    pub scales: Vec<f32>,
    /// Shaped as `scales`.
    pub zero_points: Vec<u8>,
    /// The group of each input channel.
    pub group_of: Vec<u32>,
}

impl Integers {
    /// `(code - zero_point) * scale`, each product rounded to `products`, row-major `[n_out, n_in]`.
    pub fn restore(&self, products: Number) -> Vec<f32> {
        let n_groups = self.scales.len() / self.n_out.max(1);
        let mut weight = vec![0.0; self.codes.len()];
        let rows = weight.par_chunks_mut(self.n_in.max(1)).zip(self.codes.par_chunks(self.n_in.max(1)));
        rows.enumerate().for_each(|(row, (weight, codes))| {
            let scales = &self.scales[row * n_groups..][..n_groups];
            let zero_points = &self.zero_points[row * n_groups..][..n_groups];
            for ((w, &code), &group) in weight.iter_mut().zip(codes).zip(&self.group_of) {
                let (scale, zero_point) = (scales[group as usize], zero_points[group as usize]);
                *w = products.round((f32::from(code) - f32::from(zero_point)) * scale);
            }
        });
        weight
    }

    /// The same as this program has it, whose dequantized weights are not rounded; `None` where groups are no runs of a length in any
    /// order of the channels.
    pub fn to_weight(&self, scale_dtype: ScaleDtype) -> Option<QuantizedWeight> {
        let n_groups = self.scales.len() / self.n_out.max(1);
        let len = self.n_in.div_ceil(n_groups.max(1)).max(self.longest_group());
        let mut order: Vec<u32> = (0..self.n_in as u32).collect();
        order.sort_by_key(|&channel| self.group_of[channel as usize]);
        let is_run = |(place, channel): (usize, &u32)| self.group_of[*channel as usize] as usize == place / len.max(1);
        if !order.iter().enumerate().all(is_run) || n_groups != self.n_in.div_ceil(len.max(1)) {
            return None;
        }
        let granularity = match n_groups {
            1 => Granularity::PerChannel,
            _ => Granularity::PerGroup(NonZeroU16::new(u16::try_from(len).ok()?)?),
        };
        let middle = self.bits.max_code() / 2 + 1;
        let is_symmetric = self.zero_points.iter().all(|&zero_point| zero_point == middle);
        let symmetry = if is_symmetric { Symmetry::SymmetricFullRange } else { Symmetry::Asymmetric };
        let keeps_order = order.iter().copied().eq(0..self.n_in as u32);
        let gathered = || {
            let rows = self.codes.chunks(self.n_in.max(1));
            rows.flat_map(|row| order.iter().map(|&channel| row[channel as usize])).collect()
        };
        Some(QuantizedWeight {
            n_out: self.n_out,
            n_in: self.n_in,
            grid: Grid {
                bits: self.bits,
                granularity,
                symmetry,
                range_includes_zero: false,
                scale_dtype,
                values: None,
            },
            codes: if keeps_order { self.codes.clone() } else { gathered() },
            scale: self.scales.clone(),
            zero_point: ZeroPoints::Codes(self.zero_points.clone()),
            transform: if keeps_order { WeightTransform::Identity } else { WeightTransform::PermutedInputs(order) },
        })
    }

    fn longest_group(&self) -> usize {
        let mut counts = vec![0_usize; self.scales.len() / self.n_out.max(1)];
        self.group_of.iter().for_each(|&group| counts[group as usize] += 1);
        counts.into_iter().max().unwrap_or(0)
    }

    /// Groups that are runs of `len` channels, the last of which may be fewer.
    pub(crate) fn runs(n_in: usize, len: usize) -> Vec<u32> {
        (0..n_in).map(|channel| (channel / len.max(1)) as u32).collect()
    }
}
