//! Model files that are damaged, and what is said of those that are not read.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const LLAMA: &[u8] = include_bytes!("../../../../tests/tokenizers/llama.model");
const UNIGRAM: &[u8] = include_bytes!("../../../../tests/tokenizers/unigram.model");

/// Encodes a text with what `bytes` describe, if they describe anything.
fn read(bytes: &[u8]) -> Result<Vec<u32>, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.model");
    std::fs::write(&file, bytes).unwrap();
    let tokenizer = ModelFile::read(&file)?.build(SpacePrefix::EveryText)?;
    let encoding = tokenizer.encode_fast("the ﬁrst ＷＯＲＫ ", false).map_err(|error| tokenizer_error(&file, error))?;
    Ok(encoding.get_ids().to_vec())
}

#[track_caller]
fn check_refused(bytes: &[u8], expected: &str) {
    let message = read(bytes).unwrap_err().to_string();
    let (_, message) = message.split_once("tokenizer.model: tokenizer: ").unwrap();
    assert_eq!(message, format!("{expected}; download the tokenizer again, or convert the model again"));
}

/// A message of fields with bytes.
fn message(fields: &[(u8, &[u8])]) -> Vec<u8> {
    fields.iter().flat_map(|(number, bytes)| [&[number << 3 | 2, bytes.len() as u8], *bytes].concat()).collect()
}

/// A piece of one letter; `kind` is its field and value.
fn piece(text: &[u8], kind: &[u8]) -> Vec<u8> {
    [message(&[(1, text)]), kind.to_vec()].concat()
}

#[test]
fn what_is_not_read_is_named() {
    let unknown = piece(b"<unk>", &[0x18, 2]);
    let with = |trainer: &[u8], more: &[u8]| message(&[(1, &unknown), (1, more), (2, trainer)]);
    let a = piece(b"a", &[]);
    check_refused(b"not a model", "it is no SentencePiece model, or damaged");
    check_refused(b"", "it has no pieces");
    check_refused(&with(&[0x18, 3], &a), "its model type is 3, expected 1 (unigram) or 2 (BPE)");
    check_refused(&with(&[0xc0, 0x02, 1], &a), "the piece of its unknown token, 1, is no such piece");
    check_refused(&with(&[0xc0, 0x02, 9], &a), "the piece of its unknown token, 9, is no such piece");
    check_refused(
        &with(&[0xc0, 0x01, 1], &a),
        "it writes spaces behind words (treat_whitespace_as_suffix), which is not read",
    );
    check_refused(&with(&[], &piece(b"a", &[0x18, 5])), "a piece has type 5, which is not read");
    check_refused(&with(&[], &piece(b"", &[])), "a piece is \"\" with score 0");
    check_refused(&with(&[], &piece(b"a", &[0x15, 0, 0, 0xc0, 0x7f])), "a piece is \"a\" with score NaN");
    check_refused(&with(&[], &piece(b"\xff", &[])), "a piece is not UTF-8");
    check_refused(&with(&[], &unknown), "token \"<unk>\" has two ids, 0 and 1");
    let charsmap = [with(&[], &a), message(&[(3, &message(&[(2, &[4, 0, 0, 0, 1])]))])].concat();
    check_refused(&charsmap, "its table of characters is damaged");
}

/// Llama 3 has its own format under the same name.
#[test]
fn lines_of_base64_are_no_model() {
    check_refused(b"IQ== 0\nIg== 1\nIw== 2\n", "it is no SentencePiece model, or damaged");
}

proptest! {
    #[test]
    fn damaged_models_never_panic(
        changes in prop::collection::vec((0..LLAMA.len(), any::<u8>()), 1..6),
        cut in prop::option::of(0..LLAMA.len()),
    ) {
        let mut bytes = LLAMA.to_vec();
        for (position, byte) in changes {
            bytes[position] = byte;
        }
        let _ = read(&bytes[..cut.unwrap_or(bytes.len())]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn damaged_tables_of_characters_never_panic(changes in prop::collection::vec((0..UNIGRAM.len(), any::<u8>()), 1..40)) {
        let mut bytes = UNIGRAM.to_vec();
        for (position, byte) in changes {
            bytes[position] = byte;
        }
        let _ = read(&bytes);
    }
}
