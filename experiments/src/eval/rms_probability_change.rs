//! Root mean square of the change of the right token's probability: `sqrt(mean((q - p)^2))` with the probability `q` that the
//! scored model gives to the token that came, and the base model's `p`. Samples are squares.
//!
//! It is what llama.cpp's `llama-perplexity --kl-divergence` prints as "RMS Δp", there in percent.

use rayon::prelude::*;

use super::kl_divergence::log_sum_exp;
use super::metric::{Direction, Metric, Needs, Quantity, Scored, Unit};
use crate::stats::Estimator;

/// See the module.
#[derive(Debug)]
pub struct RmsProbabilityChange;

impl Metric for RmsProbabilityChange {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "rms_probability_change",
            label: "RMS change of probability",
            unit: Unit::Probability,
            direction: Direction::LowerIsBetter,
            estimator: Estimator::RootOfMean,
        }
    }

    fn needs(&self) -> Needs {
        Needs::BaseLogits
    }

    fn score(&self, scored: &Scored<'_>) -> Vec<f32> {
        let probability = |logits: &[f32], target: u32| {
            let logit = logits.get(target as usize).copied().unwrap_or(f32::NAN);
            (f64::from(logit) - log_sum_exp(logits)).exp()
        };
        let square = |((base, own), &target): ((&[f32], &[f32]), &u32)| {
            (probability(own, target) - probability(base, target)).powi(2) as f32
        };
        scored.base_rows().zip(scored.rows()).zip(scored.targets).map(square).collect()
    }
}
