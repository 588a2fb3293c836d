//! [`Batch`]: several texts in the making, which take their steps together. A step reads all weights once for all texts.

use super::model::DecodeModel;
use super::pass::{Pass, Run, Text};
use super::session::{DecodeError, PREFILL_TOKENS};
use crate::host::matrix::MOST_ROWS_BY_DOTS;

/// Places for texts. The logits of a text do not depend on which others take a step with it, nor on how many: not a bit.
pub struct Batch<'m> {
    model: &'m DecodeModel,
    pass: Pass<'m>,
    texts: Vec<Text>,
}

impl<'m> Batch<'m> {
    /// Texts at once at most.
    pub const MOST: usize = MOST_ROWS_BY_DOTS;

    /// Prompts with the same beginning give the same bits whether it was kept ([`Batch::truncate`]) or fed again, as long as
    /// it is a multiple of these tokens.
    pub const PROMPT_PIECE: usize = PREFILL_TOKENS;

    /// `n_texts` empty texts with room for `capacity` tokens each.
    ///
    /// # Errors
    /// More tokens than the model has positions.
    ///
    /// # Panics
    /// If there is no text, or more than [`Self::MOST`].
    pub fn new(model: &'m DecodeModel, n_texts: usize, capacity: usize) -> Result<Self, DecodeError> {
        assert!((1..=Self::MOST).contains(&n_texts), "{n_texts} texts at once");
        let texts = (0..n_texts).map(|_| Text::new(model, capacity)).collect::<Result<_, _>>()?;
        // Two rows are added up as any more are.
        Ok(Self { model, pass: Pass::new(model, 2), texts })
    }

    /// Tokens that a text has.
    pub fn len_of(&self, text: usize) -> usize {
        self.texts[text].n_past
    }

    /// Forgets all tokens of a text but the first `n`.
    pub fn truncate(&mut self, text: usize, n: usize) {
        let text = &mut self.texts[text];
        text.n_past = text.n_past.min(n);
    }

    /// Feeds tokens to one text and returns the logits of the token that follows them, `[vocab]`.
    ///
    /// # Errors
    /// No token, no room for them, or an id outside the vocabulary; the batch is then as it was.
    pub fn feed(&mut self, text: usize, ids: &[u32]) -> Result<&[f32], DecodeError> {
        let Self { model, pass, texts } = self;
        let text = &mut texts[text];
        text.check(model, ids)?;
        // Inside the pool, where handing work over costs least.
        Ok(rayon::scope(|_| pass.read(text, ids)))
    }

    /// Feeds one token to each text that `ids` has one for, and returns the logits of the tokens that follow, `[n, vocab]` in the
    /// order of these texts.
    ///
    /// # Errors
    /// As [`Self::feed`].
    ///
    /// # Panics
    /// If there are not as many entries as texts.
    pub fn step(&mut self, ids: &[Option<u32>]) -> Result<&[f32], DecodeError> {
        let Self { model, pass, texts } = self;
        assert_eq!(ids.len(), texts.len(), "one entry a text");
        let mut runs = Vec::with_capacity(texts.len());
        for (text, id) in texts.iter_mut().zip(ids) {
            if let Some(id) = id {
                let ids = std::slice::from_ref(id);
                text.check(model, ids)?;
                runs.push(Run { text, ids });
            }
        }
        if runs.is_empty() {
            return Err(DecodeError::Empty);
        }
        Ok(rayon::scope(|_| {
            pass.forward(&mut runs);
            pass.logits(0, runs.len())
        }))
    }
}
