//! What can be said of a tokenizer in a line.

use std::collections::BTreeMap;

use tokenizers::ModelWrapper;

use super::Tokenizer;

impl Tokenizer {
    /// The algorithm that cuts words into tokens: `BPE`, `Unigram`.
    pub fn kind(&self) -> &'static str {
        match self.inner.get_model() {
            ModelWrapper::BPE(_) => "BPE",
            ModelWrapper::WordPiece(_) => "WordPiece",
            ModelWrapper::WordLevel(_) => "WordLevel",
            ModelWrapper::Unigram(_) => "Unigram",
        }
    }

    /// The tokens that stand for themselves in a text ([`Self::is_special`]), by id.
    pub fn special(&self) -> BTreeMap<u32, String> {
        let added = self.inner.get_added_tokens_decoder();
        added.into_iter().filter(|(_, token)| token.special).map(|(id, token)| (id, token.content)).collect()
    }
}
