//! How tasks are asked: [`LmEvalTaskProtocol`] and [`LmEvalGenerationProtocol`].

use std::fmt;
use std::num::NonZeroU16;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// See [`super::ProtocolSpec::LmEvalTask`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LmEvalTaskProtocol {
    /// Tokens that a model sees at most, `max_length` in lm-eval, whose default is the context of the model. A longer question
    /// loses its beginning.
    pub max_len: NonZeroU16,
    /// Examples before each question; none when absent.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub n_shots: u16,
}

/// See [`super::ProtocolSpec::LmEvalGeneration`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LmEvalGenerationProtocol {
    /// Tokens that a model reads and writes at most, `max_length` in lm-eval, whose default is the context of the model. What leaves
    /// no room for as many as the task lets it write loses its beginning.
    pub max_len: NonZeroU16,
    /// Examples before each problem.
    pub n_shots: u16,
    /// Several texts on each problem, drawn; one, the likeliest token by token, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub several: Option<SeveralTexts>,
}

/// Texts that are drawn.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SeveralTexts {
    /// Texts on each problem.
    pub n: NonZeroU16,
    /// Divides the logits.
    pub temperature: PositiveNumber,
    /// Tokens are drawn among the fewest likeliest ones whose probability reaches this; 1 for all.
    pub top_p: Probability,
    /// Seed of the draws.
    pub seed: u64,
}

/// Makes a number that is checked as it is read, and has an order.
macro_rules! checked_number {
    ($(#[doc = $doc:literal])* $name:ident, $is_valid:expr, $expected:literal) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "f64", into = "f64")]
        pub struct $name(f64);

        impl $name {
            /// The number.
            pub fn get(self) -> f64 {
                self.0
            }
        }

        impl TryFrom<f64> for $name {
            type Error = &'static str;

            fn try_from(number: f64) -> Result<Self, Self::Error> {
                let is_valid: fn(f64) -> bool = $is_valid;
                if is_valid(number) { Ok(Self(number)) } else { Err($expected) }
            }
        }

        impl From<$name> for f64 {
            fn from(number: $name) -> Self {
                number.0
            }
        }

        // Neither holds a NaN.
        impl Eq for $name {}

        #[allow(clippy::derive_ord_xor_partial_ord, reason = "both orders are that of the numbers")]
        impl Ord for $name {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                self.0.total_cmp(&other.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

checked_number! {
    /// A finite number above 0.
    PositiveNumber, |number| number.is_finite() && number > 0.0, "expected a number above 0"
}

checked_number! {
    /// 0 to 1.
    Probability, |number| (0.0..=1.0).contains(&number), "expected a probability, 0 to 1"
}

fn is_zero(n: &u16) -> bool {
    *n == 0
}

impl LmEvalTaskProtocol {
    /// Its name in records, without examples.
    pub const NAME: &'static str = "lm-eval-task";

    pub(super) fn name(&self) -> String {
        Self::NAME.to_owned() + &shots(self.n_shots)
    }
}

impl LmEvalGenerationProtocol {
    /// Its name in records, of one text and without examples.
    pub const NAME: &'static str = "lm-eval-generation";

    /// Texts on each problem.
    pub fn n_texts(&self) -> usize {
        self.several.as_ref().map_or(1, |several| several.n.get().into())
    }

    pub(super) fn name(&self) -> String {
        let several = self.several.as_ref().map_or_else(String::new, |several| {
            let SeveralTexts { n, temperature, top_p, .. } = several;
            format!("-{n}-texts-t{temperature}-p{top_p}")
        });
        Self::NAME.to_owned() + &shots(self.n_shots) + &several
    }
}

fn shots(n: u16) -> String {
    if n == 0 { String::new() } else { format!("-{n}-shot") }
}
