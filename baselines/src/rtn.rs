//! RTN, round to nearest.
//!
//! *What it does.* Minimum and maximum of each group set its scale and zero point; each weight goes to the nearest code.
//!
//! *When it wins.* Never in quality; it needs no data and no time, and every other method must beat it.
//!
//! *Reference.* The quantizer of the AWQ code (`pseudo_quantize_tensor`) for a grid that need not include zero, that of the
//! GPTQ code for one that does.

use awq_core::awq::Nearest;
use awq_core::backend::QuantBackend;
use awq_core::capture::CaptureNeeds;
use awq_core::log::LinearLog;
use awq_core::method::{
    BlockCtx, BlockEdit, LinearCtx, LinearMethod, MethodError, MethodSettings, QuantMethod, quantize_each_linear,
};
use awq_core::quantized::QuantizedWeight;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Round to nearest; it has no settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rtn {}

impl MethodSettings for Rtn {
    fn label(&self) -> String {
        "RTN".into()
    }

    fn needs(&self) -> CaptureNeeds {
        CaptureNeeds { inputs: false, ..CaptureNeeds::default() }
    }

    fn quantizes_head(&self) -> bool {
        true
    }
}

impl<B: QuantBackend> LinearMethod<B> for Rtn {
    fn quantize_linear(&self, ctx: &LinearCtx<'_, B>) -> Result<(QuantizedWeight, LinearLog), MethodError> {
        Nearest.quantize_linear(ctx)
    }
}

impl<B: QuantBackend> QuantMethod<B> for Rtn {
    fn quantize_block(&self, ctx: &BlockCtx<'_, B>) -> Result<BlockEdit<B>, MethodError> {
        quantize_each_linear(self, ctx)
    }

    fn of_head(&self) -> Option<&dyn LinearMethod<B>> {
        Some(self)
    }
}
