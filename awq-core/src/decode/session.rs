//! [`Session`]: one text in the making.

use super::cache::KvCache;
use super::model::DecodeModel;
use super::pass::{Pass, Run, Text};

/// Tokens of a prompt that go through the blocks at once: enough to fill the matrix kernels, and buffers stay small.
pub(super) const PREFILL_TOKENS: usize = 256;

/// Why tokens cannot be fed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A session longer than the model has positions.
    #[error(
        "a context of {asked} tokens is longer than the {longest} positions of the model's configuration; ask for less"
    )]
    TooLong {
        /// Tokens asked for.
        asked: usize,
        /// See [`crate::load::ModelConfig::longest_sequence`].
        longest: usize,
    },
    /// More tokens than the session has room for.
    #[error(
        "{n_tokens} more tokens do not fit: {used} of the session's {capacity} are used; begin anew, or with more room"
    )]
    Full {
        /// Tokens that were to be fed.
        n_tokens: usize,
        /// Tokens in the cache.
        used: usize,
        /// Tokens that fit.
        capacity: usize,
    },
    /// An id that has no row in the embedding.
    #[error("token {id} is outside the model's vocabulary of {vocab}: model and tokenizer do not belong together")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab: usize,
    },
    /// An id whose row of the embedding is NaN or infinite.
    #[error(
        "token {id} has a row in the embedding that holds NaN or infinity; use a text without it, or another checkpoint"
    )]
    UnusableToken {
        /// The id.
        id: u32,
    },
    /// Nothing to predict from.
    #[error("no tokens to feed; give a text, or a beginning-of-sequence token where the model has one")]
    Empty,
}

/// The tokens fed so far, and room for more.
pub struct Session<'m> {
    model: &'m DecodeModel,
    pass: Pass<'m>,
    text: Text,
}

impl<'m> Session<'m> {
    /// An empty session with room for `capacity` tokens.
    ///
    /// # Errors
    /// More tokens than the model has positions.
    pub fn new(model: &'m DecodeModel, capacity: usize) -> Result<Self, DecodeError> {
        Ok(Self { model, pass: Pass::new(model, 1), text: Text::new(model, capacity)? })
    }

    /// Tokens fed so far.
    pub fn len(&self) -> usize {
        self.text.n_past
    }

    /// Whether no token was fed yet.
    pub fn is_empty(&self) -> bool {
        self.text.n_past == 0
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.text.capacity
    }

    /// Bytes of the cache of keys and values.
    pub fn cache_bytes(&self) -> usize {
        self.text.caches.iter().map(KvCache::bytes).sum()
    }

    /// Forgets all tokens but the first `n`.
    pub fn truncate(&mut self, n: usize) {
        self.text.n_past = self.text.n_past.min(n);
    }

    /// Feeds tokens, one or many, and returns the logits of the token that follows them, `[vocab]`.
    ///
    /// # Errors
    /// No token, no room for them, or an id outside the vocabulary; the session is then as it was.
    pub fn feed(&mut self, ids: &[u32]) -> Result<&[f32], DecodeError> {
        let Self { model, pass, text } = self;
        text.check(model, ids)?;
        // Inside the pool, where handing work over costs least.
        Ok(rayon::scope(|_| pass.read(text, ids)))
    }

    /// Feeds tokens and returns the logits after each of them, `[ids.len(), vocab]`.
    ///
    /// # Errors
    /// As [`Self::feed`].
    pub fn feed_each(&mut self, ids: &[u32]) -> Result<Vec<f32>, DecodeError> {
        let Self { model, pass, text } = self;
        text.check(model, ids)?;
        let mut all = Vec::with_capacity(ids.len() * model.config.vocab_size);
        rayon::scope(|_| {
            for ids in ids.chunks(PREFILL_TOKENS) {
                pass.forward(&mut [Run { text, ids }]);
                all.extend_from_slice(pass.logits(0, ids.len()));
            }
        });
        Ok(all)
    }
}
