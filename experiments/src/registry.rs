//! One line per method. A registry name is the TOML key, the column value and the label in tables.

use awq_core::awq::Awq;
use baselines::rtn::Rtn;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Makes the enum, its names and its dispatch from one line per method.
macro_rules! methods {
    ($($(#[$doc:meta])* $variant:ident($config:ty) = $key:literal, label $label:literal;)*) => {
        /// A quantization method with its settings. The struct that is parsed is the method itself.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub enum MethodSpec {
            $($(#[$doc])* #[serde(rename = $key)] $variant($config),)*
        }
    };
}

methods! {
    /// Round to nearest.
    Rtn(Rtn) = "rtn", label "RTN";
    /// Activation-aware Weight Quantization.
    Awq(Awq) = "awq", label "AWQ";
}
