//! AWQ with GPTQ as its rounding step: the AWQ paper's 2-bit method (section 5.2, Table 9).
//!
//! *What it does.* Scales are searched and folded (and weights clipped, where configured) as in AWQ; GPTQ then rounds the
//! scaled weights, with the Hessian of the scaled inputs.
//!
//! *When it wins.* At 2 bits, where plain rounding fails whatever the scale.
//!
//! *Cost.* That of both.

use awq_core::awq::Awq;
use awq_core::backend::QuantBackend;
use awq_core::capture::{CaptureNeeds, GatheredOfBlock, gather_both};
use awq_core::grids::BlockGrids;
use awq_core::method::{BlockCtx, BlockEdit, MethodError, MethodSettings, QuantMethod, WorkingShapes};
use awq_core::model::BlockLayout;
use awq_core::quantized::StoredParts;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::gptq::Gptq;

/// AWQ, rounded by GPTQ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AwqGptq {
    /// Scale and clip search.
    pub awq: Awq,
    /// Rounding.
    pub gptq: Gptq,
}

impl MethodSettings for AwqGptq {
    /// `AWQ+GPTQ`, with the departures of both: `AWQ (scale only)+GPTQ act-order`.
    fn label(&self) -> String {
        format!("{}+{}", self.awq.label(), self.gptq.label())
    }

    fn needs(&self) -> CaptureNeeds {
        CaptureNeeds { inputs: true, ..CaptureNeeds::default() }
    }

    fn gathers(&self, layout: &BlockLayout, grids: &BlockGrids) -> GatheredOfBlock {
        gather_both(self.awq.gathers(layout, grids), self.gptq.gathers(layout, grids))
    }

    fn working_bytes(&self, shapes: &WorkingShapes) -> u64 {
        self.awq.working_bytes(shapes).max(self.gptq.working_bytes(shapes))
    }

    fn needs_whole_block(&self) -> bool {
        true
    }

    fn stores(&self) -> StoredParts {
        StoredParts { scales_activations: self.awq.stores().scales_activations, ..self.gptq.stores() }
    }

    fn check(&self) -> Result<(), String> {
        self.awq.check().map_err(|problem| format!("awq.{problem}"))?;
        self.gptq.check().map_err(|problem| format!("gptq.{problem}"))
    }
}

impl<B: QuantBackend> QuantMethod<B> for AwqGptq {
    fn quantize_block(&self, ctx: &BlockCtx<'_, B>) -> Result<BlockEdit<B>, MethodError> {
        self.awq.quantize_block_with(ctx, &self.gptq)
    }
}
