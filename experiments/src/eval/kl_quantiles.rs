//! Quantiles over tokens of the KL divergence to the base model, in nats: so many of the tokens have it or less. The mean is
//! [`super::kl_divergence`]. Between two tokens a quantile is interpolated, as in llama.cpp's `llama-perplexity --kl-divergence`.

use super::kl_divergence::divergences;
use super::metric::{Direction, Metric, Needs, OfItem, Quantity, Scored, Unit};
use crate::stats::Estimator;

/// Makes a metric from its name in records, its label and the share of the tokens.
macro_rules! quantiles {
    ($($(#[doc = $doc:literal])* $metric:ident = $name:literal, $label:literal, $share:literal;)*) => {$(
        $(#[doc = $doc])*
        #[derive(Debug)]
        pub struct $metric;

        impl Metric for $metric {
            fn quantity(&self) -> Quantity {
                Quantity {
                    name: $name,
                    label: $label,
                    unit: Unit::NatsAtToken,
                    direction: Direction::LowerIsBetter,
                    estimator: Estimator::Mean,
                }
            }

            fn needs(&self) -> Needs {
                Needs::BaseLogits
            }

            fn of_item(&self) -> OfItem {
                OfItem::Quantile($share)
            }

            fn score(&self, scored: &Scored<'_>) -> Vec<f32> {
                divergences(scored).to_vec()
            }
        }
    )*};
}

quantiles! {
    /// Half of the tokens have it, or less.
    KlMedian = "kl_divergence_median", "median KL divergence", 0.5;
    /// 90% of the tokens have it, or less.
    KlP90 = "kl_divergence_p90", "90th percentile of KL divergence", 0.9;
    /// 99% of the tokens have it, or less.
    KlP99 = "kl_divergence_p99", "99th percentile of KL divergence", 0.99;
}
