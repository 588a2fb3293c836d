//! [`Writer`]: texts on a prompt that end before a stop string, as lm-eval's Hugging Face model writes them (0.4.13): the tokens of the
//! text are decoded by themselves, special ones left out, and what stands behind the first stop is cut away.

use awq_core::decode::{DecodeModel, Sampler, Sampling, Session};
use awq_core::load::Tokenizer;

use crate::tasks::generation::until;

/// A model that writes.
pub struct Writer<'m> {
    session: Session<'m>,
    tokenizer: &'m Tokenizer,
    /// Tokens that end a text.
    end_ids: Vec<u32>,
    /// Logits behind the prompt.
    logits: Vec<f32>,
    /// Tokens of the prompt.
    n_prompt: usize,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// Before the first stop.
    pub text: String,
    /// Tokens made, those of a stop counted, an end token not.
    pub n_tokens: usize,
}

impl<'m> Writer<'m> {
    /// With room for `capacity` tokens of a prompt and of what is written on it.
    ///
    /// # Errors
    /// More tokens than the model has positions.
    pub fn new(model: &'m DecodeModel, tokenizer: &'m Tokenizer, capacity: usize) -> anyhow::Result<Self> {
        Ok(Self {
            session: Session::new(model, capacity)?,
            tokenizer,
            end_ids: model.config().eos_ids.iter().copied().chain(tokenizer.eos()).collect(),
            logits: Vec::new(),
            n_prompt: 0,
        })
    }

    /// Reads a prompt, in place of the one before.
    ///
    /// # Errors
    /// A prompt that does not fit, or a token that the model does not have.
    pub fn read(&mut self, prompt: &[u32]) -> anyhow::Result<()> {
        self.session.truncate(0);
        self.logits = self.session.feed(prompt)?.to_vec();
        self.n_prompt = prompt.len();
        Ok(())
    }

    /// Writes on the prompt that was read last, at most `max_tokens` tokens, up to the first of `stops`.
    ///
    /// # Errors
    /// Logits that are not finite, no room, or a tokenizer that fails.
    pub fn write(&mut self, sampling: Sampling, stops: &[String], max_tokens: usize) -> anyhow::Result<Text> {
        self.session.truncate(self.n_prompt);
        let stops: Vec<String> = stops.iter().cloned().chain(self.spelled_end()).collect();
        let mut sampler = Sampler::new(sampling);
        let mut ids: Vec<u32> = Vec::new();
        let mut next = sampler.next(&self.logits)?;
        while ids.len() < max_tokens && !self.end_ids.contains(&next) {
            ids.push(next);
            // A stop may be spelled by a special token, which is no part of the text.
            let spelled = self.tokenizer.decode(&ids)?;
            if ids.len() == max_tokens || stops.iter().any(|stop| spelled.contains(stop.as_str())) {
                break;
            }
            next = sampler.next(self.session.feed(&[next])?)?;
        }
        let plain: Vec<u32> = ids.iter().copied().filter(|&id| !self.tokenizer.is_special(id)).collect();
        let text = self.tokenizer.decode(&plain)?;
        Ok(Text { text: until(&text, &stops).to_owned(), n_tokens: ids.len() })
    }

    /// The end token as text, which ends a text that spells it.
    fn spelled_end(&self) -> Option<String> {
        self.tokenizer.eos().and_then(|id| self.tokenizer.token(id))
    }
}
