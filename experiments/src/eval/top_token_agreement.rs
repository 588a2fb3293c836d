//! Agreement with the base model on the likeliest token: the share of scored positions at which both give one token the highest
//! logit. Of several equal logits the first counts, as in greedy decoding.
//!
//! It is what llama.cpp's `llama-perplexity --kl-divergence` prints as "Same top p". The base model is the one that methods start
//! from, as its file stores it, scored on the same windows in the same arithmetic; it agrees with itself everywhere.

use rayon::prelude::*;

use super::metric::{Direction, Metric, Needs, Quantity, Scored, Unit};
use super::next_token_accuracy::first_of_the_highest;
use crate::stats::Estimator;

/// See the module.
#[derive(Debug)]
pub struct TopTokenAgreement;

impl Metric for TopTokenAgreement {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "top_token_agreement",
            label: "top-token agreement",
            unit: Unit::Fraction,
            direction: Direction::HigherIsBetter,
            estimator: Estimator::Mean,
        }
    }

    fn needs(&self) -> Needs {
        Needs::BaseLogits
    }

    fn score(&self, scored: &Scored<'_>) -> Vec<f32> {
        let rows = scored.base_rows().zip(scored.rows());
        let agree = |(base, own)| first_of_the_highest(base) == first_of_the_highest(own);
        rows.map(|rows| if agree(rows) { 1.0 } else { 0.0 }).collect()
    }
}
