//! A tokenizer as the `tokenizer.ggml.*` keys of a GGUF file. What is written is read back, and must give the same ids.

use std::collections::BTreeMap;

use serde_json::Value as Json;
use tokenizers::ModelWrapper;

use super::Tokenizer;
use super::byte_level::PreTokenizer;
use super::from_gguf::token_type;
use crate::load::ModelConfig;
use crate::load::gguf::Value;

/// Every kind of text on which rules differ: contractions, runs of digits, spaces and newlines, scripts, marks, code, emoji.
const PROBE: &str = "Hello, WORLD! It's I'LL we've don't  x=1+23-4567*89012; 3.14159 % of 1,000,000\n\n\n \t tabs\t\there\r\n \
    The quick-brown_fox (jumps) over [the] {lazy} \"dog\"...  \u{201c}quotes\u{201d} \u{2014} na\u{ef}ve caf\u{e9} \u{df} \u{3b1}\u{3b2}\u{3b3} \
    \u{43f}\u{440}\u{438}\u{432}\u{435}\u{442} \u{4f60}\u{597d}\u{4e16}\u{754c} \u{3053}\u{3093}\u{306b}\u{3061}\u{306f} \u{d55c}\u{ad6d}\u{c5b4} \
    \u{627}\u{644} \u{e17}\u{e14} \u{1f600}\u{1f680} fn f(a: &str) -> u8 { a::b[0] != 'c' } //path\\to#1 @user $5 <b> ~^` |end   ";

/// Keys of a GGUF file.
type Entries = Vec<(String, Value)>;

impl Tokenizer {
    /// The keys that stand for this tokenizer in a file of a model: as many tokens as the embedding has rows, and the tokens that end
    /// a text of which the first three have keys.
    ///
    /// # Errors
    /// A kind of tokenizer that llama.cpp does not have here, or rules that no key stands for, in words.
    pub(crate) fn to_gguf(&self, config: &ModelConfig) -> Result<Entries, String> {
        let model = self.model()?;
        let is_sentence_piece = model["byte_fallback"] == true;
        let candidates = match is_sentence_piece {
            true => [true, false].map(|prefix| self.sentence_piece(&model, config, prefix)).into_iter().collect(),
            false => vec![self.byte_level(&model, config)],
        };
        let mut problem = String::new();
        for candidate in candidates {
            match candidate.and_then(|entries| self.check(&entries).map(|()| entries)) {
                Ok(entries) => return Ok(entries),
                Err(found) if problem.is_empty() => problem = found,
                Err(_) => {}
            }
        }
        Err(format!("{}: {problem}", self.file.display()))
    }

    /// The model inside as JSON.
    fn model(&self) -> Result<Json, String> {
        let ModelWrapper::BPE(bpe) = self.inner.get_model() else {
            return Err(format!("its tokenizer is of the kind {}, and only BPE is written to GGUF files", self.kind()));
        };
        let json = serde_json::to_value(bpe).map_err(|error| error.to_string())?;
        for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
            if json[key].as_str().is_some_and(|text| !text.is_empty()) {
                return Err(format!("its tokenizer has a {key}, which GGUF files have no key for"));
            }
        }
        Ok(json)
    }

    fn byte_level(&self, model: &Json, config: &ModelConfig) -> Result<Entries, String> {
        let pre = PreTokenizer::of(&self.inner).ok_or_else(|| {
            format!(
                "its tokenizer cuts words by other rules than those that GGUF files name ({})",
                PreTokenizer::known()
            )
        })?;
        let merges = merges(model)?.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
        let mut entries = self.tokens("gpt2", pre.name, config, None)?;
        entries.push(("tokenizer.ggml.merges".into(), Value::Texts(merges)));
        self.add_special(&mut entries, config)?;
        Ok(entries)
    }

    /// Scores that put merges in their order.
    fn sentence_piece(&self, model: &Json, config: &ModelConfig, prefix: bool) -> Result<Entries, String> {
        let unknown = model["unk_token"].as_str();
        let mut entries = self.tokens("llama", "default", config, unknown)?;
        let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
        for (rank, (left, right)) in merges(model)?.into_iter().enumerate() {
            ranks.entry(left + &right).or_insert(rank);
        }
        let rank = |token: Option<String>| token.and_then(|token| ranks.get(&token).copied()).unwrap_or(ranks.len());
        let scores = (0..config.vocab_size as u32).map(|id| -(rank(self.token(id)) as f32)).collect();
        entries.push(("tokenizer.ggml.scores".into(), Value::Floats(scores)));
        entries.push(("tokenizer.ggml.add_space_prefix".into(), Value::Bool(prefix)));
        self.add_special(&mut entries, config)?;
        Ok(entries)
    }

    /// Tokens and their types.
    fn tokens(&self, model: &str, pre: &str, config: &ModelConfig, unknown: Option<&str>) -> Result<Entries, String> {
        let (n_tokens, n_rows) = (self.vocab_size(), config.vocab_size);
        if n_tokens > n_rows {
            return Err(format!(
                "its tokenizer has {n_tokens} tokens, and the embedding {n_rows} rows: a GGUF file has one a token"
            ));
        }
        let added = self.inner.get_added_tokens_decoder();
        if let Some(token) = added.values().find(|token| token.lstrip || token.rstrip || token.single_word) {
            let content = &token.content;
            return Err(format!(
                "its tokenizer looks at what stands beside {content:?}, which GGUF files have no key for"
            ));
        }
        let one = |id: u32| match (self.token(id), added.get(&id)) {
            // Rows that no token has.
            (None, _) => (format!("[PAD{id}]"), token_type::UNUSED),
            (Some(token), _) if unknown == Some(token.as_str()) => (token, token_type::UNKNOWN),
            (Some(token), Some(added)) => {
                (token, if added.special { token_type::CONTROL } else { token_type::USER_DEFINED })
            }
            (Some(token), None) if model == "llama" && is_byte(&token) => (token, token_type::BYTE),
            (Some(token), None) => (token, token_type::NORMAL),
        };
        let (tokens, types) = (0..n_rows as u32).map(one).unzip();
        Ok(vec![
            ("tokenizer.ggml.model".into(), Value::Text(model.into())),
            ("tokenizer.ggml.pre".into(), Value::Text(pre.into())),
            ("tokenizer.ggml.tokens".into(), Value::Texts(tokens)),
            ("tokenizer.ggml.token_type".into(), Value::Ints(types)),
        ])
    }

    /// The tokens around a text, and those that end one.
    fn add_special(&self, entries: &mut Entries, config: &ModelConfig) -> Result<(), String> {
        let (around, bos, eos) = (&self.special.around, self.special.bos, self.special.eos);
        let is_one = |found: &[u32], token: Option<u32>| {
            found.is_empty() || Some(found) == token.as_ref().map(std::slice::from_ref)
        };
        if !is_one(&around.prefix, bos) || !is_one(&around.suffix, eos) {
            return Err(
                "its tokenizer puts other tokens around a text than BOS and EOS, which GGUF files have no keys for"
                    .into(),
            );
        }
        let mut put = |key: &str, value: Value| entries.push((format!("tokenizer.ggml.{key}"), value));
        // A class may name tokens by default that a small vocabulary does not have.
        let has_row = |id: &u32| usize::try_from(*id).is_ok_and(|id| id < config.vocab_size);
        if let Some(id) = bos.filter(has_row) {
            put("bos_token_id", Value::Int(id.into()));
        }
        let others = config.eos_ids.iter().copied().filter(|id| Some(*id) != eos);
        let ends: Vec<u32> = eos.into_iter().chain(others).filter(has_row).collect();
        for (key, id) in ["eos_token_id", "eot_token_id", "eom_token_id"].into_iter().zip(ends) {
            put(key, Value::Int(id.into()));
        }
        put("add_bos_token", Value::Bool(!around.prefix.is_empty()));
        put("add_eos_token", Value::Bool(!around.suffix.is_empty()));
        Ok(())
    }

    /// The ids of the file's tokenizer are those of this one.
    fn check(&self, entries: &Entries) -> Result<(), String> {
        let metadata: BTreeMap<String, Value> = entries.iter().cloned().collect();
        let written = Self::from_gguf(&self.file, &metadata).map_err(|error| error.to_string())?;
        let mut texts = [PROBE, PROBE.trim(), "  two  spaces  ", "\t\ttabs", " a", ""].map(str::to_owned).to_vec();
        texts.extend(PROBE.split(' ').map(str::to_owned));
        texts.extend(self.special().into_values());
        for text in texts {
            let ids = |tokenizer: &Self| tokenizer.encode_with_special(&text).map_err(|error| error.to_string());
            if ids(self)? != ids(&written)? {
                return Err(format!("its tokenizer cuts {text:?} otherwise than one of a GGUF file would"));
            }
        }
        Ok(())
    }
}

/// The pairs of a BPE model, in the order of their ranks.
fn merges(model: &Json) -> Result<Vec<(String, String)>, String> {
    let pair = |merge: &Json| match merge {
        Json::String(text) => text.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())),
        pair => Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned())),
    };
    let merges = model["merges"].as_array().and_then(|merges| merges.iter().map(pair).collect());
    merges.ok_or_else(|| "its tokenizer has no list of merges".to_owned())
}

/// `<0x0A>`, which stands for a byte that no other token has.
fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;

    fn config(vocab_size: usize, eos_ids: Vec<u32>) -> ModelConfig {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama-tiny");
        let config = ModelConfig::from_hugging_face(&folder.join("config.json")).unwrap();
        ModelConfig { vocab_size, eos_ids, ..config }
    }

    /// The tokenizers of `scripts/make-tokenizer-fixtures.py`, and the texts with the ids of their makers.
    fn cases() -> Vec<(String, Tokenizer, Json)> {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tokenizers");
        let cases: Json = serde_json::from_slice(&std::fs::read(fixtures.join("cases.json")).unwrap()).unwrap();
        let read = |(name, case): (&String, &Json)| {
            let folder = tempfile::tempdir().unwrap();
            for (file, content) in case["files"].as_object().unwrap() {
                match content.as_str() {
                    Some(source) => drop(std::fs::copy(fixtures.join(source), folder.path().join(file)).unwrap()),
                    None => std::fs::write(folder.path().join(file), content.to_string()).unwrap(),
                }
            }
            let tokenizer = Tokenizer::from_folder(folder.path(), &config(512, Vec::new())).unwrap();
            (name.clone(), tokenizer, case["texts"].clone())
        };
        cases["cases"].as_object().unwrap().iter().map(read).collect()
    }

    #[test]
    fn what_is_written_has_the_ids_of_the_tokenizers_makers() {
        let (mut n_sentence_piece, mut refused) = (0, Vec::new());
        for (name, tokenizer, texts) in cases() {
            // Three rows that no token has.
            let n_rows = tokenizer.vocab_size() + 3;
            let entries: BTreeMap<String, Value> = match tokenizer.to_gguf(&config(n_rows, vec![1, 2])) {
                Ok(entries) => entries.into_iter().collect(),
                Err(problem) => {
                    refused.push(format!("{name}: {problem}"));
                    continue;
                }
            };
            n_sentence_piece += usize::from(entries["tokenizer.ggml.model"] == Value::Text("llama".into()));
            let Value::Texts(tokens) = &entries["tokenizer.ggml.tokens"] else { panic!("{name}") };
            assert_eq!((tokens.len(), &tokens[n_rows - 1]), (n_rows, &format!("[PAD{}]", n_rows - 1)), "{name}");
            let written = Tokenizer::from_gguf(Path::new("m.gguf"), &entries).unwrap();
            for text in texts.as_array().unwrap() {
                let ids: Vec<u32> = serde_json::from_value(text["ids"].clone()).unwrap();
                let text = text["text"].as_str().unwrap();
                assert_eq!(written.encode_with_special(text).unwrap(), ids, "{name}: {text:?}");
            }
            assert_eq!((written.bos(), written.eos()), (tokenizer.bos(), tokenizer.eos()), "{name}");
        }
        assert!(n_sentence_piece >= 1, "{n_sentence_piece} of SentencePiece; refused: {refused:#?}");
        assert!(refused.iter().all(|problem| problem.contains("its tokenizer ")), "{refused:#?}");
        assert!(refused.iter().any(|problem| problem.contains("is of the kind Unigram")), "{refused:#?}");
    }

    #[test]
    fn tokens_that_end_a_text_have_their_keys() {
        let (_, tokenizer, _) = cases().into_iter().find(|(name, ..)| name == "qwen2").unwrap();
        let n_tokens = tokenizer.vocab_size();
        let eos = tokenizer.eos().unwrap();
        let others: Vec<u32> = (0..n_tokens as u32).filter(|id| *id != eos).take(3).collect();
        let ends = [others.clone(), vec![eos, 1 << 20]].concat();
        let entries: BTreeMap<String, Value> =
            tokenizer.to_gguf(&config(n_tokens, ends)).unwrap().into_iter().collect();
        let id = |end: &str| entries.get(&format!("tokenizer.ggml.{end}_token_id")).cloned();
        let expected = [eos, others[0], others[1]].map(|id| Some(Value::Int(id.into())));
        assert_eq!([id("eos"), id("eot"), id("eom")], expected);
        let problem = tokenizer.to_gguf(&config(n_tokens - 1, Vec::new())).unwrap_err();
        assert!(problem.contains("a GGUF file has one a token"), "{problem}");
    }
}
