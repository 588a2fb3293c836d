//! [`TextStream`]: tokens to text as they come.

use awq_core::load::Tokenizer;

/// Tokens of the prompt that are decoded along: some tokenizers drop the space before the first token of a text.
const CONTEXT: usize = 4;

/// Turns tokens into text piece by piece. A character that is not complete yet waits for its other tokens.
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    ids: Vec<u32>,
    /// Where decoding begins.
    start: usize,
    /// Ids whose text has been handed out.
    n_shown: usize,
}

impl<'t> TextStream<'t> {
    /// A stream of what follows `prompt`.
    pub fn after(tokenizer: &'t Tokenizer, prompt: &[u32]) -> Self {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        Self { tokenizer, n_shown: ids.len(), ids, start: 0 }
    }

    /// The text that `id` completes; empty while a character is incomplete.
    ///
    /// # Errors
    /// A tokenizer that fails.
    pub fn push(&mut self, id: u32) -> anyhow::Result<String> {
        self.ids.push(id);
        let shown = self.tokenizer.decode(&self.ids[self.start..self.n_shown])?;
        let all = self.tokenizer.decode(&self.ids[self.start..])?;
        // The replacement character stands for bytes that more tokens may complete.
        if all.ends_with('\u{FFFD}') {
            return Ok(String::new());
        }
        self.start = self.n_shown;
        self.n_shown = self.ids.len();
        Ok(all.get(shown.len()..).unwrap_or_default().to_owned())
    }

    /// What is left at the end: a character that never became complete.
    ///
    /// # Errors
    /// A tokenizer that fails.
    pub fn finish(self) -> anyhow::Result<String> {
        let shown = self.tokenizer.decode(&self.ids[self.start..self.n_shown])?;
        let all = self.tokenizer.decode(&self.ids[self.start..])?;
        Ok(all.get(shown.len()..).unwrap_or_default().to_owned())
    }
}
