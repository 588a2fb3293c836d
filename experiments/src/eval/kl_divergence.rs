//! KL divergence to the base model: how far the distribution over the next token has moved, in nats per token, the mean over
//! scored tokens of `sum_i p_i (ln p_i - ln q_i)` with the base model's `p` and the scored model's `q`.
//!
//! llama.cpp's program keeps the base model's log-probabilities in 16 bits, and leaves out tokens whose log-probability is below -16
//! (its source at commit 050fc7f); here all tokens count, in full.
//!
//! It sees what a perplexity does not: a model that errs the other way on as many tokens has the same perplexity. Direction and
//! unit are those of llama.cpp's `llama-perplexity --kl-divergence`. The base model is the one that methods start from, as its
//! file stores it, scored on the same windows in the same arithmetic. Its own divergence is that of its products in bf16 from those in f32, which
//! tells what is noise.

use rayon::prelude::*;

use super::metric::{Direction, Metric, Needs, Quantity, Scored, Unit};
use crate::stats::Estimator;

/// See the module.
#[derive(Debug)]
pub struct KlDivergence;

impl Metric for KlDivergence {
    fn quantity(&self) -> Quantity {
        Quantity {
            name: "kl_divergence",
            label: "KL divergence",
            unit: Unit::NatsPerToken,
            direction: Direction::LowerIsBetter,
            estimator: Estimator::Mean,
        }
    }

    fn needs(&self) -> Needs {
        Needs::BaseLogits
    }

    fn score(&self, scored: &Scored<'_>) -> Vec<f32> {
        divergences(scored).to_vec()
    }
}

/// Of each row, in nats; computed once for all metrics that are statistics of them.
pub(super) fn divergences<'a>(scored: &'a Scored<'_>) -> &'a [f32] {
    let of_rows = || {
        let rows = scored.base_rows().zip(scored.rows());
        rows.map(|(base, own)| divergence(base, own) as f32).collect()
    };
    scored.divergences.get_or_init(of_rows)
}

/// Of the softmax of `own` from that of `base`, in f64: between models that hardly differ, f32 would leave rounding alone.
fn divergence(base: &[f32], own: &[f32]) -> f64 {
    let (base_total, own_total) = (log_sum_exp(base), log_sum_exp(own));
    let term = |(&base, &own): (&f32, &f32)| {
        let log_p = f64::from(base) - base_total;
        log_p.exp() * (log_p - (f64::from(own) - own_total))
    };
    // A divergence is not negative; a sum of nothing but rounding may be.
    base.iter().zip(own).map(term).sum::<f64>().max(0.0)
}

/// `ln` of the sum of `exp` of logits.
pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    highest + logits.iter().map(|&logit| (f64::from(logit) - highest).exp()).sum::<f64>().ln()
}
