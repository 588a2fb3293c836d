//! The head of a model, quantized where a rule asks for it.

use crate::backend::QuantBackend;
use crate::grid::Grid;
use crate::load::LoadError;
use crate::method::{LinearCtx, MethodError, QuantMethod};
use crate::model::{Decoder, LinearName};
use crate::pack::PackedWeight;
use crate::rule::HEAD;
use crate::scale_range::checked_linear;

/// The head of `decoder`, by a method that needs no activations.
///
/// # Errors
/// A head that can no longer be read; inside, what the method says.
pub(super) fn quantize_head<B: QuantBackend>(
    decoder: &dyn Decoder<B>,
    method: &dyn QuantMethod<B>,
    grid: &Grid,
) -> Result<Result<PackedWeight, MethodError>, LoadError> {
    let weight = decoder.head_weight()?;
    // Errors call it the block behind the last.
    let (block_idx, linear) = (decoder.config().n_blocks, LinearName(HEAD));
    let ctx = LinearCtx { block_idx, linear, weight, input: None, input_scale: None, grid, listener: &|_| {} };
    let method = method.of_head().ok_or_else(|| ctx.unsupported(NO_HEAD));
    Ok(method.and_then(|method| checked_linear(method, &ctx)).map(PackedWeight::new))
}

const NO_HEAD: &str = "only methods that need no activations quantize the head (rtn, hqq); remove its override";
