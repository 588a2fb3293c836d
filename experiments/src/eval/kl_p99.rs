//! 99th percentile over tokens of the KL divergence to the base model: 99% of the tokens have it or less, in nats. The mean is [`super::kl_divergence`]. Between
//! two tokens it is interpolated, as in llama.cpp's `llama-perplexity --kl-divergence`.

use super::kl_divergence::divergences;
use super::metric::{Direction, Metric, Needs, OfItem, Quantity, Scored, Unit};
use crate::stats::Estimator;

/// See the module.
#[derive(Debug)]
pub struct KlP99;

impl Metric for KlP99 {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "kl_divergence_p99",
            label: "99th percentile of KL divergence",
            unit: Unit::NatsAtToken,
            direction: Direction::LowerIsBetter,
            estimator: Estimator::Mean,
        }
    }

    fn needs(&self) -> Needs {
        Needs::BaseLogits
    }

    fn of_item(&self) -> OfItem {
        OfItem::Quantile(0.99)
    }

    fn score(&self, scored: &Scored<'_>) -> Vec<f32> {
        divergences(scored).to_vec()
    }
}
