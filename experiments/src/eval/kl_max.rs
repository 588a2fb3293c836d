//! Largest KL divergence to the base model of any scored token, in nats. It has no interval, and grows with the text.

use super::kl_divergence::divergences;
use super::metric::{Direction, Metric, Needs, OfItem, Quantity, Scored, Unit};
use crate::stats::Estimator;

/// See the module.
#[derive(Debug)]
pub struct KlMax;

impl Metric for KlMax {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "kl_divergence_max",
            label: "largest KL divergence",
            unit: Unit::NatsAtToken,
            direction: Direction::LowerIsBetter,
            estimator: Estimator::Largest,
        }
    }

    fn needs(&self) -> Needs {
        Needs::BaseLogits
    }

    fn of_item(&self) -> OfItem {
        OfItem::Largest
    }

    fn score(&self, scored: &Scored<'_>) -> Vec<f32> {
        divergences(scored).to_vec()
    }
}
