//! Bits per byte: the negative log-likelihood of a document in bits over its bytes.

use super::metric::{Direction, Metric, Needs, OfItem, Per, Quantity, Scored, Unit};
use crate::stats::Estimator;

/// See the module.
#[derive(Debug)]
pub struct BitsPerByte;

impl Metric for BitsPerByte {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "bits_per_byte",
            label: "bits per byte",
            unit: Unit::BitsPerByte,
            direction: Direction::LowerIsBetter,
            estimator: Estimator::Mean,
        }
    }

    fn needs(&self) -> Needs {
        Needs::Likelihoods
    }

    fn of_item(&self) -> OfItem {
        OfItem::Sum(Per::Byte)
    }

    fn score(&self, scored: &Scored<'_>) -> Vec<f32> {
        scored.nll.iter().map(|nats| nats / std::f32::consts::LN_2).collect()
    }
}
