//! The methods, one line each. A registry name is the TOML key and the first word of the label in tables.

use awq_core::awq::{Awq, FixedScale, KeepSalient};
use awq_core::backend::QuantBackend;
use awq_core::method::{MethodSettings, QuantMethod};
use baselines::awq_gptq::AwqGptq;
use baselines::gptaq::Gptaq;
use baselines::gptq::Gptq;
use baselines::hqq::Hqq;
use baselines::quip::Quip;
use baselines::rtn::Rtn;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Makes the enum, its names and its dispatch from one line per method.
macro_rules! methods {
    ($($(#[doc = $doc:literal])* $variant:ident($config:ty) = $key:literal;)*) => {
        /// A quantization method with its settings. The struct that is parsed is the method itself.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
        pub enum MethodSpec {
            $($(#[doc = $doc])* #[serde(rename = $key)] $variant($config),)*
        }

        impl MethodSpec {
            /// Every TOML key.
            pub const KEYS: &'static [&'static str] = &[$($key),*];

            /// The TOML key.
            pub fn key(&self) -> &'static str {
                match self { $(Self::$variant(_) => $key,)* }
            }

            /// What the method says of itself.
            pub fn settings(&self) -> &dyn MethodSettings {
                match self { $(Self::$variant(method) => method,)* }
            }

            /// The label in tables; settings that make it another method are named in it.
            pub fn label(&self) -> String {
                self.settings().label()
            }

            /// The method on a backend.
            pub fn method<B: QuantBackend>(&self) -> &dyn QuantMethod<B> {
                match self { $(Self::$variant(method) => method,)* }
            }
        }
    };
}

methods! {
    /// Round to nearest.
    Rtn(Rtn) = "rtn";
    /// Activation-aware Weight Quantization.
    Awq(Awq) = "awq";
    /// GPTQ: columns make up for the rounding errors of earlier columns.
    Gptq(Gptq) = "gptq";
    /// GPTAQ: GPTQ that also makes up for inputs that have drifted from full precision.
    Gptaq(Gptaq) = "gptaq";
    /// AWQ with GPTQ as its rounding step.
    AwqGptq(AwqGptq) = "awq_gptq";
    /// QuIP: rotated weights, rounded with linear feedback.
    Quip(Quip) = "quip";
    /// HQQ: zero points fitted to the weights alone.
    Hqq(Hqq) = "hqq";
    /// Round to nearest with salient input channels in full precision.
    KeepSalient(KeepSalient) = "keep_salient";
    /// Round to nearest with salient input channels scaled by one factor.
    FixedScale(FixedScale) = "fixed_scale";
}
