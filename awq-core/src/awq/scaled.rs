//! [`Scaled`]: AWQ's scales alone, and what linears see behind them, for programs that round by rules of their own (llama.cpp's K-quants
//! with an importance matrix).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use burn::tensor::Tensor;

use super::Awq;
use crate::backend::{QuantBackend, float_vec};
use crate::capture::{CaptureNeeds, Gathered, GatheredOfBlock, Statistic, gather_both};
use crate::grids::BlockGrids;
use crate::log::BlockLog;
use crate::method::{BlockCtx, BlockEdit, MethodError, MethodSettings, QuantMethod};
use crate::model::{BlockLayout, LinearFacts, LinearName};
use crate::quantized::StoredParts;

/// Folds scales and rounds nothing: linears into which a scale was folded stay floats.
#[derive(Debug)]
pub struct Scaled {
    /// Whose scales; `None` for none.
    awq: Option<Awq>,
    seen: Mutex<BTreeMap<(usize, LinearName), InputSquares>>,
}

/// What a linear saw of a calibration, the scale of its inputs divided out.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSquares {
    /// Sum of `x^2` over all tokens, `[in]`.
    pub sums: Vec<f64>,
    /// Tokens; 0 of an expert that none was sent to.
    pub n_tokens: usize,
}

impl Scaled {
    /// With the scales that `awq` searches for the grids of a job.
    pub const fn new(awq: Option<Awq>) -> Self {
        Self { awq, seen: Mutex::new(BTreeMap::new()) }
    }

    /// By block and linear, of the blocks that were passed.
    pub fn into_seen(self) -> BTreeMap<(usize, LinearName), InputSquares> {
        self.seen.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MethodSettings for Scaled {
    fn label(&self) -> String {
        "scaled".into()
    }

    fn needs(&self) -> CaptureNeeds {
        CaptureNeeds { inputs: true, ..CaptureNeeds::default() }
    }

    fn gathers(&self, layout: &BlockLayout, grids: &BlockGrids) -> GatheredOfBlock {
        let of_linear = |facts: &LinearFacts| (facts.input, Gathered::of([Statistic::SumSquares]));
        let of_scales = self.awq.as_ref().map(|awq| awq.gathers(layout, grids));
        gather_both(layout.linears.iter().map(of_linear).collect(), of_scales.unwrap_or_default())
    }

    fn needs_whole_block(&self) -> bool {
        true
    }

    fn stores(&self) -> StoredParts {
        StoredParts { scales_activations: self.awq.is_some(), ..StoredParts::default() }
    }
}

impl<B: QuantBackend> QuantMethod<B> for Scaled {
    fn quantize_block(&self, ctx: &BlockCtx<'_, B>) -> Result<BlockEdit<B>, MethodError> {
        let mut log = BlockLog::default();
        let scales = match &self.awq {
            Some(awq) => awq.search_scales(ctx, &mut log)?,
            None => Vec::new(),
        };
        let groups = &ctx.block.layout().scale_groups;
        for facts in &ctx.block.layout().linears {
            let input = ctx.input(facts.input)?;
            let mut sums = input.sum_squares().as_ref().clone();
            let reads = |(group_idx, _): &&(usize, Tensor<B, 1>)| {
                let group = &groups[*group_idx];
                group.linears.iter().chain(&group.followers).any(|name| *name == facts.name)
            };
            if let Some((_, scale)) = scales.iter().find(reads) {
                sums.iter_mut().zip(float_vec(scale.clone())).for_each(|(sum, scale)| *sum /= f64::from(scale).powi(2));
            }
            if sums.iter().any(|sum| !sum.is_finite()) {
                let linear = facts.name.0.into();
                return Err(MethodError::NotFinite { block_idx: ctx.block_idx, linear, what: "an activation" });
            }
            let squares = InputSquares { sums, n_tokens: input.n_tokens() };
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.insert((ctx.block_idx, facts.name), squares);
        }
        Ok(BlockEdit { scales, linears: BTreeMap::new(), log })
    }
}
