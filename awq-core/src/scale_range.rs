//! Scales and zero points that their storage type cannot hold: found before anything is made of them.
//!
//! Rounding to f16 makes infinity of what is 65520 or more, and 0 of what is 3e-8 or less. The floor under a group's range
//! ([`crate::grid::RANGE_FLOOR`]) keeps plain rounding above that; methods with scales of their own may reach it.

use crate::backend::{QuantBackend, float_vec};
use crate::grid::ScaleDtype;
use crate::method::{BlockCtx, BlockEdit, LinearCtx, LinearMethod, MethodError, QuantMethod};
use crate::model::LinearName;
use crate::quantized::{QuantizedWeight, ZeroPoints};

/// What the method asks for, whose scales and zero points are numbers of their storage type.
///
/// # Errors
/// Those of the method, and [`MethodError::ScaleRange`].
pub(crate) fn checked_edit<B: QuantBackend>(
    method: &dyn QuantMethod<B>,
    ctx: &BlockCtx<'_, B>,
) -> Result<BlockEdit<B>, MethodError> {
    let beyond =
        |linear: LinearName, what| MethodError::ScaleRange { block_idx: ctx.block_idx, linear: linear.0, what };
    let is_f16 = |linear: LinearName| ctx.grids.of(linear).is_some_and(|grid| grid.scale_dtype == ScaleDtype::F16);
    let weight = |linear: LinearName| ctx.block.params().linear(linear).weight.clone();
    let edit = method.quantize_block(ctx).map_err(|error| match error {
        // Losses are infinite where a scale is.
        MethodError::NotFinite { .. } => {
            let nearest = |name: LinearName| (name, B::quantize_weight(weight(name), ctx.grid(name)));
            let in_f16 = ctx.linears.iter().map(|facts| facts.name).filter(|name| is_f16(*name));
            let reasons = in_f16.map(nearest).filter_map(|(name, it)| Some((name, out_of_range(&it)?)));
            reasons.into_iter().next().map_or(error, |(name, what)| beyond(name, what))
        }
        error => error,
    })?;
    for (name, quantized) in edit.linears.iter().filter(|(name, _)| is_f16(**name)) {
        // A matrix of zeros has no scale to lose.
        let is_nothing = || float_vec(weight(*name)).iter().all(|weight| *weight == 0.0);
        if let Some(what) = out_of_range(quantized).filter(|_| !is_nothing()) {
            return Err(beyond(*name, what));
        }
    }
    Ok(edit)
}

/// What a method makes of one linear, whose scales and zero points are numbers of their storage type.
///
/// # Errors
/// Those of the method, and [`MethodError::ScaleRange`].
pub(crate) fn checked_linear<B: QuantBackend>(
    method: &dyn LinearMethod<B>,
    ctx: &LinearCtx<'_, B>,
) -> Result<QuantizedWeight, MethodError> {
    let (quantized, _) = method.quantize_linear(ctx)?;
    match out_of_range(&quantized).filter(|_| ctx.grid.scale_dtype == ScaleDtype::F16) {
        Some(what) => Err(MethodError::ScaleRange { block_idx: ctx.block_idx, linear: ctx.linear.0, what }),
        None => Ok(quantized),
    }
}

/// The first scale or zero point that rounding to its storage type made infinite, or 0.
fn out_of_range(quantized: &QuantizedWeight) -> Option<String> {
    let row_of = |index: usize| index * quantized.n_out.min(quantized.scale.len()) / quantized.scale.len().max(1);
    let scale = quantized.scale.iter().position(|scale| !scale.is_finite() || *scale <= 0.0);
    let zero = || match &quantized.zero_point {
        ZeroPoints::Codes(_) => None,
        ZeroPoints::Real(values) => values.iter().position(|value| !value.is_finite()),
    };
    let named = |what: &str, index: usize| format!("a {what} of output channel {}", row_of(index));
    scale.map(|index| named("scale", index)).or_else(|| zero().map(|index| named("zero point", index)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::{Bits, Granularity, Grid, RANGE_FLOOR, Symmetry};
    use crate::transform::WeightTransform;

    const FOUR: Bits = Bits::new(4).expect("4 is in range");

    fn weight(scale: Vec<f32>, zero_point: ZeroPoints) -> QuantizedWeight {
        let transform = WeightTransform::Identity;
        let grid = Grid::awq(FOUR, Granularity::PerChannel);
        QuantizedWeight { n_out: 2, n_in: 4, grid, codes: vec![0; 8], scale, zero_point, transform }
    }

    #[test]
    fn what_f16_cannot_hold_is_named_with_its_row() {
        let codes = || ZeroPoints::Codes(vec![0; 4]);
        assert_eq!(out_of_range(&weight(vec![1.0, 65_504.0, 6e-8, 2.0], codes())), None);
        let named = |scale, zero_point| out_of_range(&weight(scale, zero_point)).unwrap_or_default();
        assert_eq!(named(vec![1.0, 1.0, f32::INFINITY, 1.0], codes()), "a scale of output channel 1");
        assert_eq!(named(vec![1.0, 0.0, 1.0, 1.0], codes()), "a scale of output channel 0");
        assert_eq!(named(vec![f32::NAN], codes()), "a scale of output channel 0");
        let real = ZeroPoints::Real(vec![1.0, 1.0, 1.0, f32::NEG_INFINITY]);
        assert_eq!(named(vec![1.0; 4], real), "a zero point of output channel 1");
    }

    /// The floor under a group's range keeps scales of plain rounding above 0 in f16.
    #[test]
    fn no_group_is_so_small_that_its_scale_is_lost() {
        for bits in 2..=8 {
            for symmetry in [Symmetry::Asymmetric, Symmetry::SymmetricFullRange, Symmetry::SymmetricRestricted] {
                let bits = Bits::try_from(bits).unwrap_or_else(|error| panic!("{error}"));
                let grid = Grid { symmetry, ..Grid::awq(bits, Granularity::PerChannel) };
                for largest in [0.0, f32::MIN_POSITIVE, 1e-12, RANGE_FLOOR / 2.0, RANGE_FLOOR] {
                    let scale = grid.group_params(0.0, largest).scale;
                    assert!(scale > 0.0 && scale.is_finite(), "{bits:?} {symmetry:?} {largest}: {scale}");
                }
            }
        }
    }
}
