//! The methods, one entry each. A registry name is the TOML key and the first word of the label in tables. A method whose code comes
//! to give other numbers gets the next version. Presets are names for settings that are used again and again; the first is what
//! the command line takes.

mod preset;

use awq_core::awq::{Awq, FixedScale, KeepSalient};
use awq_core::backend::QuantBackend;
use awq_core::driver::Propagation;
use awq_core::method::{MethodSettings, QuantMethod};
use baselines::awq_gptq::AwqGptq;
use baselines::gptaq::Gptaq;
use baselines::gptq::Gptq;
use baselines::hqq::Hqq;
use baselines::quip::Quip;
use baselines::rtn::Rtn;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::preset::{Presets, Settings};
use crate::config::MethodEntry;

/// Makes the enum, its names, its presets and its dispatch from one entry per method.
macro_rules! methods {
    ($(
        $(#[doc = $doc:literal])*
        $variant:ident($config:ty) = $key:literal, version $version:literal
            $(, presets { $($preset:literal = $settings:expr),+ $(,)? })?;
    )*) => {
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

            /// Version of the method's code, part of every record. It is raised by whoever makes unchanged settings give other
            /// codes; cells on record with another version run again.
            pub fn version(&self) -> u32 {
                match self { $(Self::$variant(_) => $version,)* }
            }

            /// The presets of the method with a key, by name, the first of which is what the command line takes; empty for one
            /// that is unknown or has none.
            pub fn presets(key: &str) -> Vec<(&'static str, Self)> {
                match key {
                    $($key => <$config>::PRESETS.iter().map(|(name, method)| (*name, Self::$variant(method.clone()))).collect(),)*
                    _ => Vec::new(),
                }
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

        $(
            impl Presets for $config {
                const KEY: &'static str = $key;
                const PRESETS: &'static [(&'static str, Self)] = &[$($(($preset, $settings)),+)?];
            }
        )*

        /// An entry of `methods` as it is written: exactly one method, by its key, and what goes with it.
        #[allow(non_snake_case, reason = "a field has its variant's name; its key is in the attribute")]
        #[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct MethodTable {
            $(
                $(#[doc = $doc])*
                #[serde(default, rename = $key, skip_serializing_if = "Option::is_none")]
                $variant: Option<Settings<$config>>,
            )*
            /// What the blocks after the first see for this method, in place of what the calibration says.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            propagation: Option<Propagation>,
            /// The calibrations it runs under, by name; all where absent.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            calibrations: Option<Vec<String>>,
        }

        impl TryFrom<MethodTable> for MethodEntry {
            type Error = String;

            fn try_from(table: MethodTable) -> Result<Self, String> {
                let mut named = Vec::new();
                $(named.extend(table.$variant.map(|settings| MethodSpec::$variant(settings.0)));)*
                let mut named = named.into_iter();
                match (named.next(), named.next()) {
                    (Some(method), None) => {
                        Ok(Self { method, propagation: table.propagation, calibrations: table.calibrations })
                    }
                    (Some(one), Some(other)) => {
                        let keys = [one.key(), other.key()];
                        Err(format!("one entry names the methods `{}` and `{}`; give each its own", keys[0], keys[1]))
                    }
                    (None, _) => Err(format!("the entry names no method; give it one of {}", MethodSpec::KEYS.join(", "))),
                }
            }
        }

        impl From<MethodEntry> for MethodTable {
            fn from(entry: MethodEntry) -> Self {
                let mut table =
                    Self { propagation: entry.propagation, calibrations: entry.calibrations, ..Self::default() };
                match entry.method { $(MethodSpec::$variant(method) => table.$variant = Some(Settings(method)),)* }
                table
            }
        }
    };
}

methods! {
    /// Round to nearest.
    Rtn(Rtn) = "rtn", version 1, presets { "plain" = Rtn {} };
    /// Activation-aware Weight Quantization.
    Awq(Awq) = "awq", version 1, presets { "llm-awq" = Awq::LLM_AWQ, "llm-awq-bf16" = Awq::LLM_AWQ_BF16 };
    /// GPTQ: columns make up for the rounding errors of earlier columns.
    Gptq(Gptq) = "gptq", version 1, presets {
        "in-order" = Gptq::IN_ORDER,
        "act-order" = Gptq::ACT_ORDER,
        "act-order-dynamic" = Gptq::ACT_ORDER_DYNAMIC,
    };
    /// GPTAQ: GPTQ that also makes up for inputs that have drifted from full precision.
    Gptaq(Gptaq) = "gptaq", version 2;
    /// AWQ with GPTQ as its rounding step.
    AwqGptq(AwqGptq) = "awq_gptq", version 1, presets {
        "llm-awq+in-order" = AwqGptq { awq: Awq::LLM_AWQ, gptq: Gptq::IN_ORDER },
        "llm-awq-bf16+in-order" = AwqGptq { awq: Awq::LLM_AWQ_BF16, gptq: Gptq::IN_ORDER },
    };
    /// QuIP: rotated weights, rounded with linear feedback.
    Quip(Quip) = "quip", version 1;
    /// HQQ: zero points fitted to the weights alone.
    Hqq(Hqq) = "hqq", version 1, presets { "authors" = Hqq::AUTHORS };
    /// Round to nearest with salient input channels in full precision.
    KeepSalient(KeepSalient) = "keep_salient", version 1;
    /// Round to nearest with salient input channels scaled by one factor.
    FixedScale(FixedScale) = "fixed_scale", version 1;
}
