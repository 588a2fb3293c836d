//! The metrics, one line each. A registry name is the TOML key of an evaluation. The order is that of tables.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::accuracy::Accuracy;
use super::bits_per_byte::BitsPerByte;
use super::byte_perplexity::BytePerplexity;
use super::flexible_extract::FlexibleExtract;
use super::greedy_accuracy::GreedyAccuracy;
use super::kl_divergence::KlDivergence;
use super::kl_max::KlMax;
use super::kl_quantiles::{KlMedian, KlP90, KlP99};
use super::metric::{Metric, Quantity};
use super::next_token_accuracy::NextTokenAccuracy;
use super::normalized_accuracy::NormalizedAccuracy;
use super::pass_at_k::{PassAt1, PassAt10, PassAt100};
use super::perplexity::Perplexity;
use super::rms_probability_change::RmsProbabilityChange;
use super::strict_match::StrictMatch;
use super::target_nll::TargetNll;
use super::target_perplexity::TargetPerplexity;
use super::top_token_agreement::TopTokenAgreement;
use super::word_perplexity::WordPerplexity;
use crate::config::ScoredText;

/// Makes the enums, their names and their dispatch from one line per metric.
macro_rules! metrics {
    ($($(#[doc = $doc:literal])* $metric:ident = $key:literal;)*) => {
        /// Something measured of a model: a metric, by its key, on a text.
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub enum EvaluationSpec {
            $($(#[doc = $doc])* #[serde(rename = $key)] $metric(ScoredText),)*
        }

        impl EvaluationSpec {
            /// The metric.
            pub fn metric(&self) -> MetricKey {
                match self { $(Self::$metric(_) => MetricKey::$metric,)* }
            }

            /// The text, and how it is scored.
            pub fn text(&self) -> &ScoredText {
                match self { $(Self::$metric(text) => text,)* }
            }

            /// The text, to be limited.
            pub fn text_mut(&mut self) -> &mut ScoredText {
                match self { $(Self::$metric(text) => text,)* }
            }
        }

        /// A metric by its name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub enum MetricKey {
            $($(#[doc = $doc])* #[serde(rename = $key)] $metric,)*
        }

        impl MetricKey {
            /// Every metric.
            pub const ALL: &'static [Self] = &[$(Self::$metric),*];

            /// The TOML key.
            pub fn key(self) -> &'static str {
                match self { $(Self::$metric => $key,)* }
            }

            /// The metric, measured on a text.
            pub fn of(self, text: ScoredText) -> EvaluationSpec {
                match self { $(Self::$metric => EvaluationSpec::$metric(text),)* }
            }

            /// The metric itself.
            pub fn metric(self) -> &'static dyn Metric {
                match self { $(Self::$metric => &$metric,)* }
            }
        }
    };
}

metrics! {
    /// Perplexity of a text under a named protocol.
    Perplexity = "perplexity";
    /// KL divergence to the base model's distribution over the next token.
    KlDivergence = "kl_divergence";
    /// Median over tokens of the KL divergence to the base model.
    KlMedian = "kl_divergence_median";
    /// 90% of the tokens have this KL divergence to the base model, or less.
    KlP90 = "kl_divergence_p90";
    /// 99% of the tokens have this KL divergence to the base model, or less.
    KlP99 = "kl_divergence_p99";
    /// The largest KL divergence to the base model of any token.
    KlMax = "kl_divergence_max";
    /// Root mean square of the change of the right token's probability from the base model's.
    RmsProbabilityChange = "rms_probability_change";
    /// Share of the tokens to which the model gives the highest logit of all.
    NextTokenAccuracy = "next_token_accuracy";
    /// Share of the positions at which the base model and this one find the same token likeliest.
    TopTokenAgreement = "top_token_agreement";
    /// Perplexity per word of documents, under protocol `lm-eval`.
    WordPerplexity = "word_perplexity";
    /// Perplexity per byte of documents, under protocol `lm-eval`.
    BytePerplexity = "byte_perplexity";
    /// Bits per byte of documents, under protocol `lm-eval`.
    BitsPerByte = "bits_per_byte";
    /// Share of the questions of a task whose right answer is the likeliest, lm-eval's `acc`.
    Accuracy = "accuracy";
    /// The same by log-likelihood a character, lm-eval's `acc_norm`.
    NormalizedAccuracy = "normalized_accuracy";
    /// Share of the questions of a task whose right answer greedy decoding gives, lm-eval's `acc` of LAMBADA.
    GreedyAccuracy = "greedy_accuracy";
    /// Perplexity per right answer to the questions of a task, lm-eval's `perplexity` of LAMBADA.
    TargetPerplexity = "target_perplexity";
    /// Negative log-likelihood of the right answers to the questions of a task, in nats per answer.
    TargetNll = "target_nll";
    /// Share of the problems of a task on which the model writes the right answer in the form of the examples, lm-eval's `strict-match`.
    StrictMatch = "strict_match";
    /// The same of the last number that the model writes, lm-eval's `flexible-extract`.
    FlexibleExtract = "flexible_extract";
    /// Share of the problems of a task for which a text of the model makes a program that passes its tests.
    PassAt1 = "pass_at_1";
    /// Chance that one of ten texts does, estimated from ten or more on each problem.
    PassAt10 = "pass_at_10";
    /// Chance that one of a hundred texts does, estimated from a hundred or more on each problem.
    PassAt100 = "pass_at_100";
}

impl MetricKey {
    /// The metric that file names and published numbers do not name.
    pub const USUAL: Self = Self::Perplexity;

    /// What reports know of it.
    pub fn quantity(self) -> Quantity {
        self.metric().quantity()
    }

    /// The metric of a record, by [`Quantity::name`].
    ///
    /// # Errors
    /// A name that no metric of this program has.
    pub fn of_record(name: &str) -> anyhow::Result<Self> {
        let known = |metric: &&Self| metric.quantity().name == name;
        Self::ALL.iter().find(known).copied().ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|metric| metric.quantity().name).collect();
            anyhow::anyhow!(
                "metric {name} is none that this program knows ({}); use the program that measured it",
                names.join(", ")
            )
        })
    }
}
