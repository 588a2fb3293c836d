//! [`BaseModel`]: the model that others are held against, on the windows of one text.

use awq_core::backend::QuantBackend;
use awq_core::model::Decoder;
use burn::tensor::Tensor;

use super::ScoringArithmetic;
use super::batch::Batch;
use super::score::final_states;

/// The base model on one text. It passes over the text once for all cells of a run where the hidden states of the whole text may
/// be in memory at once, as they are kept then; else once a cell. Its logits are made anew for a few rows at a time, and never
/// kept: those of a text would take many gigabytes.
pub struct BaseModel<'a, B: QuantBackend> {
    pub(super) decoder: &'a dyn Decoder<B>,
    pub(super) arithmetic: ScoringArithmetic,
    kept: Option<Vec<Tensor<B, 3>>>,
}

impl<'a, B: QuantBackend> BaseModel<'a, B> {
    /// Nothing is computed yet; its products will be computed in `arithmetic`.
    pub fn new(decoder: &'a dyn Decoder<B>, arithmetic: ScoringArithmetic) -> Self {
        Self { decoder, arithmetic, kept: None }
    }

    /// Whether it need not pass over the text again.
    pub fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// Hidden states `[batch, seq, hidden]` behind the last block; `is_whole` says that `batches` are all of the text.
    pub(super) fn states(
        &mut self,
        batches: &[Batch<'_>],
        is_whole: bool,
        progress: &mut dyn FnMut(usize),
    ) -> anyhow::Result<Vec<Tensor<B, 3>>> {
        if let Some(kept) = &self.kept {
            return Ok(kept.clone());
        }
        let states = final_states(self.decoder, batches, self.arithmetic, progress)?;
        self.kept = is_whole.then(|| states.clone());
        Ok(states)
    }
}
