//! The block loop.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::log::{BlockLog, LinearLog, ScaleSearchLog};

/// What the blocks after the first see during calibration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// Outputs of the full-precision blocks (the AWQ code).
    FullPrecision,
    /// Outputs of the quantized blocks (the GPTQ code).
    Quantized,
    /// As `Quantized`, and inside a block the later linears see the earlier ones quantized (GPTQ's `--true-sequential`).
    QuantizedPerStage,
}
