//! What each method does to a block, in operations, as it grows with tokens and with matrices. How long an operation takes is
//! measured ([`super::rates`]); of several kinds that one method mixes, these are the shares, about.

use std::collections::{BTreeMap, BTreeSet};

use awq_core::awq::{Awq, ClipStep, ScaleStep};
use awq_core::load::ModelConfig;
use awq_core::model::wiring::BlockWiring;
use awq_core::model::{Inspect, LinearName, ScaleGroup};

use crate::registry::MethodSpec;

/// Candidates of AWQ's scale search.
const CANDIDATES: f64 = 20.0;
/// Bounds that its clip search tries.
const BOUNDS: f64 = 10.0;
/// Operations on a weight that is rounded, about.
const OF_A_WEIGHT: f64 = 30.0;

/// Work in operations.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Work {
    /// Products with the inputs of linears, and of AWQ those with their Gram matrices.
    pub(super) products: f64,
    /// Factors, columns, rounding: nothing that grows with tokens.
    pub(super) others: f64,
}

impl std::ops::Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { products: self.products + other.products, others: self.others + other.others }
    }
}

/// A method's work on a block.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct MethodWork {
    /// What the first cell of a pass does for all of the same method.
    pub(super) once: Work,
    /// What every cell does.
    pub(super) each: Work,
}

impl MethodWork {
    /// Of a cell alone.
    pub(super) fn alone(&self) -> Work {
        self.once + self.each
    }
}

/// The matrices of a block, those of experts with the share of the tokens that each sees.
pub(super) struct BlockShape {
    linears: BTreeMap<LinearName, Linear>,
    /// Inputs that linears share.
    inputs: Vec<Linear>,
    groups: Vec<ScaleGroup>,
    attention: BTreeSet<LinearName>,
    /// Channels of the stream.
    pub(super) hidden: usize,
    /// Channels of all queries.
    width: f64,
}

#[derive(Clone, Copy)]
struct Linear {
    n_out: f64,
    n_in: f64,
    /// Of the tokens.
    share: f64,
}

impl Linear {
    fn n_weights(&self) -> f64 {
        self.n_out * self.n_in
    }

    /// `X^T X` over tokens, of a symmetric matrix one half.
    fn gram(&self, tokens: f64) -> f64 {
        tokens * self.share * self.n_in * self.n_in
    }
}

impl BlockShape {
    pub(super) fn of(block: &BlockWiring, config: &ModelConfig) -> Self {
        let share_of_expert = block.mlp.module.share_of_expert();
        let shapes: BTreeMap<LinearName, [usize; 2]> = block.linear_shapes(config).into_iter().collect();
        let mut linears = BTreeMap::new();
        let mut inputs = BTreeMap::new();
        for facts in &block.layout.linears {
            let Some(&[n_out, n_in]) = shapes.get(&facts.name) else { continue };
            let share = facts.expert.map_or(1.0, |_| share_of_expert);
            let linear = Linear { n_out: n_out as f64, n_in: n_in as f64, share };
            linears.insert(facts.name, linear);
            inputs.entry(facts.input).or_insert(linear);
        }
        let names = block.attention;
        Self {
            linears,
            inputs: inputs.into_values().collect(),
            groups: block.layout.scale_groups.clone(),
            attention: [names.q, names.k, names.v, names.o].into_iter().collect(),
            hidden: config.hidden_size,
            width: (config.n_heads * config.head_dim) as f64,
        }
    }

    /// Weights that a token of a sequence meets, the other tokens that it looks at among them: half of them for each of two products.
    pub(super) fn weights_of_token(&self, seq_len: f64) -> f64 {
        let of_linears: f64 = self.linears.values().map(|linear| linear.n_weights() * linear.share).sum();
        of_linears + seq_len * self.width
    }

    fn n_weights(&self) -> f64 {
        self.linears.values().map(Linear::n_weights).sum()
    }

    /// The work of a method on so many calibration tokens.
    pub(super) fn work(&self, method: &MethodSpec, tokens: f64) -> MethodWork {
        let rounding = Work { products: 0.0, others: OF_A_WEIGHT * self.n_weights() };
        let each = |each: Work| MethodWork { once: Work::default(), each };
        match method {
            MethodSpec::Awq(awq) => each(self.awq(awq, tokens)),
            MethodSpec::Gptq(_) => self.gptq(tokens),
            MethodSpec::Gptaq(_) => {
                let MethodWork { once, each } = self.gptq(tokens);
                // The drift of inputs, of which nothing is shared.
                MethodWork { once: Work::default(), each: once + each + Work { products: 2.0 * once.products, ..once } }
            }
            MethodSpec::AwqGptq(both) => each(self.awq(&both.awq, tokens) + self.gptq(tokens).alone()),
            MethodSpec::Quip(_) => self.quip(tokens),
            MethodSpec::Rtn(_) | MethodSpec::Hqq(_) | MethodSpec::KeepSalient(_) | MethodSpec::FixedScale(_) => {
                each(rounding)
            }
        }
    }

    /// Gram matrices and their inverse factors once, rounding column by column and two losses for each cell.
    fn gptq(&self, tokens: f64) -> MethodWork {
        let grams: f64 = self.inputs.iter().map(|input| input.gram(tokens)).sum();
        let factors: f64 = self.inputs.iter().map(|input| input.n_in.powi(3)).sum();
        let columns: f64 = self.linears.values().map(|linear| 3.0 * linear.n_weights() * linear.n_in).sum();
        MethodWork { once: Work { products: grams, others: factors }, each: Work { products: 0.0, others: columns } }
    }

    /// Gram matrices once; each linear has a rotation, and so a factor, of its own.
    fn quip(&self, tokens: f64) -> MethodWork {
        let grams: f64 = self.inputs.iter().map(|input| input.gram(tokens)).sum();
        let of_linear = |linear: &Linear| 2.0 * linear.n_in.powi(3) + 3.0 * linear.n_weights() * linear.n_in;
        MethodWork {
            once: Work { products: grams, others: 0.0 },
            each: Work { products: 0.0, others: self.linears.values().map(of_linear).sum() },
        }
    }

    /// Every candidate goes through the module that judges it, or through a Gram matrix.
    fn awq(&self, awq: &Awq, tokens: f64) -> Work {
        let bounds = if awq.clip == ClipStep::Off { 1.0 } else { BOUNDS };
        let mut work = Work { products: 0.0, others: OF_A_WEIGHT * bounds * self.n_weights() };
        let searched = if awq.scale == ScaleStep::Off { [].as_slice() } else { self.groups.as_slice() };
        for group in searched {
            let judged = |in_attention: bool| -> f64 {
                let linears = self.linears.iter().filter(|(name, _)| self.attention.contains(name) == in_attention);
                linears.map(|(_, linear)| linear.n_weights() * linear.share).sum()
            };
            let weights: f64 =
                group.linears.iter().filter_map(|name| self.linears.get(name)).map(Linear::n_weights).sum();
            work.others += CANDIDATES * OF_A_WEIGHT * weights;
            match group.inspect {
                Inspect::Attention => work.products += CANDIDATES * 2.0 * tokens * judged(true),
                Inspect::Mlp => work.products += CANDIDATES * 2.0 * tokens * judged(false),
                Inspect::Both => work.products += CANDIDATES * 2.0 * tokens * (judged(true) + judged(false)),
                Inspect::Linear => {
                    let Some(linear) = group.linears.first().and_then(|name| self.linears.get(name)) else { continue };
                    if tokens * linear.share < linear.n_in {
                        work.products += CANDIDATES * 2.0 * tokens * linear.share * linear.n_weights();
                    } else {
                        work.products += linear.gram(tokens);
                        work.products += CANDIDATES * linear.n_weights() * linear.n_in;
                    }
                }
            }
        }
        work
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use awq_core::model::tiny::{self, TinySpec};
    use awq_core::model::wiring_of;

    use super::*;
    fn shape() -> BlockShape {
        let spec = TinySpec::MHA;
        let wiring = wiring_of(&spec.config(), &tiny::checkpoint(&spec, 0)).unwrap();
        BlockShape::of(&wiring.blocks[0], &spec.config())
    }

    fn preset(key: &str) -> MethodSpec {
        MethodSpec::presets(key).remove(0).1
    }

    /// 64 channels, 96 inside: inputs of q, o and gate have 64, that of down has 96.
    #[test]
    fn a_gram_matrix_is_half_of_a_product_and_factors_are_shared() {
        let work = shape().work(&preset("gptq"), 1000.0);
        assert_eq!(work.once.products, 1000.0 * (3.0 * 64.0 * 64.0 + 96.0 * 96.0));
        assert_eq!(work.once.others, 3.0 * 64_f64.powi(3) + 96_f64.powi(3));
        assert_eq!(work.each.products, 0.0);
    }

    #[test]
    fn a_step_that_is_off_takes_nothing() {
        let clip_only = MethodSpec::Awq(Awq { scale: ScaleStep::Off, ..Awq::LLM_AWQ });
        assert_eq!(shape().work(&clip_only, 1000.0).each.products, 0.0);
        let all = shape().work(&preset("awq"), 1000.0).each;
        let scale_only = shape().work(&MethodSpec::Awq(Awq { clip: ClipStep::Off, ..Awq::LLM_AWQ }), 1000.0).each;
        assert!(scale_only.others < all.others && scale_only.products == all.products);
    }

    #[test]
    fn a_token_meets_every_weight_of_a_dense_block() {
        assert_eq!(shape().weights_of_token(0.0), 4.0 * 64.0 * 64.0 + 3.0 * 64.0 * 96.0);
        assert_eq!(shape().weights_of_token(10.0) - shape().weights_of_token(0.0), 640.0);
    }

    #[test]
    fn every_method_has_work_and_only_those_that_look_at_tokens_have_more_with_more() {
        for (key, method) in super::super::rates::examples() {
            let [few, many] = [1000.0, 2000.0].map(|tokens| shape().work(&method, tokens).alone());
            assert!(few.others > 0.0, "{key}");
            let plain = ["rtn", "hqq", "keep_salient", "fixed_scale"].contains(&key);
            assert_eq!(many.products > few.products, !plain, "{key}");
        }
    }
}
