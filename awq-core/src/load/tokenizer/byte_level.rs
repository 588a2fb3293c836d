//! GPT-2 style tokenizers: bytes spelled as printable characters, a regular expression that cuts the text into
//! words, and merges inside each word.

use std::path::Path;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use super::tokenizer_error;
use crate::load::LoadError;

/// How a family cuts text into words before merging: the facts behind `tokenizer.ggml.pre`.
pub(super) struct PreTokenizer {
    /// The value of the key.
    pub(super) name: &'static str,
    words: Words,
    /// A word that is itself a token is not merged from its bytes.
    ignore_merges: bool,
    /// The Hugging Face tokenizer composes characters first (Unicode NFC).
    nfc: bool,
    /// transformers takes `<|endoftext|>` for the BOS token where no file names one.
    pub(super) has_bos: bool,
    /// What holds where the file does not say.
    pub(super) adds_bos: bool,
}

/// The rule that cuts words.
enum Words {
    /// GPT-2's regular expression.
    Gpt2,
    /// Each digit by itself, then GPT-2's regular expression.
    DigitsThenGpt2,
    /// Another regular expression, in Oniguruma's syntax.
    Regex(&'static str),
}

// As Meta published it for Llama 3: numbers in runs of up to three digits.
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
// As Qwen publishes it: digits one by one.
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Every value of `tokenizer.ggml.pre` that can be rebuilt.
const PRE_TOKENIZERS: [PreTokenizer; 5] = [
    PreTokenizer {
        name: "gpt-2",
        words: Words::Gpt2,
        ignore_merges: false,
        nfc: false,
        has_bos: true,
        adds_bos: false,
    },
    PreTokenizer {
        name: "smollm",
        words: Words::DigitsThenGpt2,
        ignore_merges: false,
        nfc: false,
        has_bos: true,
        adds_bos: false,
    },
    PreTokenizer {
        name: "starcoder",
        words: Words::DigitsThenGpt2,
        ignore_merges: false,
        nfc: false,
        has_bos: true,
        adds_bos: false,
    },
    PreTokenizer {
        name: "llama-bpe",
        words: Words::Regex(LLAMA3_WORDS),
        ignore_merges: true,
        nfc: false,
        has_bos: true,
        adds_bos: true,
    },
    PreTokenizer {
        name: "qwen2",
        words: Words::Regex(QWEN2_WORDS),
        ignore_merges: false,
        nfc: true,
        has_bos: false,
        adds_bos: false,
    },
];

impl PreTokenizer {
    pub(super) fn by_name(name: &str) -> Option<&'static Self> {
        PRE_TOKENIZERS.iter().find(|pre| pre.name == name)
    }

    /// The one that cuts as a tokenizer of Hugging Face does, with the same rules in its JSON.
    pub(super) fn of(inner: &tokenizers::Tokenizer) -> Option<&'static Self> {
        let bpe_ignores_merges = match inner.get_model() {
            tokenizers::ModelWrapper::BPE(bpe) => bpe.ignore_merges,
            _ => return None,
        };
        let has_nfc = inner
            .get_normalizer()
            .map(serde_json::to_value)
            .is_some_and(|json| json.is_ok_and(|json| json["type"] == "NFC"));
        if inner.get_normalizer().is_some() && !has_nfc {
            return None;
        }
        let rules = rules(inner.get_pre_tokenizer()?)?;
        PRE_TOKENIZERS.iter().find(|pre| {
            let own = pre.splits(false).ok().and_then(|splits| self::rules(&splits));
            (pre.ignore_merges, pre.nfc) == (bpe_ignores_merges, has_nfc) && own.as_ref() == Some(&rules)
        })
    }

    /// All names, for messages.
    pub(super) fn known() -> String {
        PRE_TOKENIZERS.map(|pre| pre.name).join(", ")
    }

    fn splits(&self, prefix_space: bool) -> Result<PreTokenizerWrapper, tokenizers::Error> {
        // Arguments: add_prefix_space, trim_offsets, use_regex (GPT-2's).
        let bytes_of_gpt2_words = ByteLevel::new(prefix_space, true, true);
        let bytes_of_words = ByteLevel::new(prefix_space, true, false);
        Ok(match self.words {
            Words::Gpt2 => bytes_of_gpt2_words.into(),
            Words::DigitsThenGpt2 => Sequence::new(vec![Digits::new(true).into(), bytes_of_gpt2_words.into()]).into(),
            Words::Regex(pattern) => {
                let words =
                    Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)?;
                Sequence::new(vec![words.into(), bytes_of_words.into()]).into()
            }
        })
    }
}

/// The steps of a pre-tokenizer as JSON, without what changes no token.
fn rules(splits: &PreTokenizerWrapper) -> Option<Vec<serde_json::Value>> {
    let json = serde_json::to_value(splits).ok()?;
    let mut steps = match json["pretokenizers"].as_array() {
        Some(steps) => steps.clone(),
        None => vec![json],
    };
    steps.iter_mut().filter_map(serde_json::Value::as_object_mut).for_each(|step| {
        step.remove("trim_offsets");
    });
    Some(steps)
}

/// A byte-level tokenizer over `vocab`. Each of `merges` is two tokens with a space between. A text that begins with none gets a
/// space with `prefix_space`.
pub(super) fn build(
    file: &Path,
    pre: &PreTokenizer,
    vocab: Vocab,
    merges: &[impl AsRef<str>],
    prefix_space: bool,
) -> Result<tokenizers::Tokenizer, LoadError> {
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges.iter().map(AsRef::as_ref) {
        // A token may itself begin with a space, so the separator is looked for after the first character.
        let second_char = merge.chars().next().map_or(0, char::len_utf8);
        let pair = merge[second_char..].find(' ').map(|at| merge.split_at(second_char + at));
        let Some((left, right)) = pair.map(|(left, right)| (left, &right[1..])) else {
            return Err(tokenizer_error(file, format!("merge {merge:?} is not two tokens with a space between")));
        };
        let joined = format!("{left}{right}");
        if let Some(absent) = [left, right, &joined].into_iter().find(|token| !vocab.contains_key(*token)) {
            return Err(tokenizer_error(
                file,
                format!("merge {merge:?} needs token {absent:?}, which is not in the vocabulary"),
            ));
        }
        pairs.push((left.to_owned(), right.to_owned()));
    }
    let building = |error: tokenizers::Error| tokenizer_error(file, error);
    let model =
        BPE::builder().vocab_and_merges(vocab, pairs).ignore_merges(pre.ignore_merges).build().map_err(building)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(pre.splits(prefix_space).map_err(building)?));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    if pre.nfc {
        tokenizer.with_normalizer(Some(NFC)).map_err(building)?;
    }
    Ok(tokenizer)
}
