//! Perplexity: `exp` of the mean negative log-likelihood of the scored tokens. Which tokens are scored, and with how much
//! context, is the protocol's ([`super::windows`]).

use super::metric::{Direction, Metric, Needs, Quantity, Scored, Unit};
use crate::stats::Estimator;

/// See the module.
#[derive(Debug)]
pub struct Perplexity;

impl Metric for Perplexity {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "token_perplexity",
            label: "perplexity",
            unit: Unit::PerToken,
            direction: Direction::LowerIsBetter,
            estimator: Estimator::ExpOfMean,
        }
    }

    fn needs(&self) -> Needs {
        Needs::Likelihoods
    }

    fn score(&self, scored: &Scored<'_>) -> Vec<f32> {
        scored.nll.to_vec()
    }

    fn floor(&self, nats_per_token: f64) -> Option<f64> {
        Some(nats_per_token.exp())
    }
}
