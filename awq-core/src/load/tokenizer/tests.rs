#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::*;
use crate::load::gguf::Header;
use crate::load::testing::{GgufWriter, asset, joined_wikitext_rows};

const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

fn from_writer(writer: &GgufWriter) -> Result<Tokenizer, LoadError> {
    let file = Path::new("m.gguf");
    let header = Header::parse(&writer.bytes(), file)?;
    Tokenizer::from_gguf(file, &header.metadata)
}

/// Tokens: 0 `<s>`, 1 `</s>`, then a few letters and their merges.
fn byte_level_writer(pre: &str) -> GgufWriter {
    GgufWriter::new()
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", pre)
        .texts("tokenizer.ggml.tokens", &["<s>", "</s>", "a", "b", "1", "Ġ", "ab", "Ġab", "11", "<tool>"])
        .i32s("tokenizer.ggml.token_type", &[3, 3, 1, 1, 1, 1, 1, 1, 1, 4])
        .texts("tokenizer.ggml.merges", &["a b", "Ġ ab", "1 1"])
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 1)
}

#[track_caller]
fn check_error(writer: &GgufWriter, expected: &str) {
    let message = from_writer(writer).err().unwrap().to_string();
    assert!(message.contains(expected) && message.starts_with("m.gguf: "), "{message}");
}

#[test]
fn byte_level_merges_within_words_and_keeps_special_tokens() {
    let tokenizer = from_writer(&byte_level_writer("gpt-2")).unwrap();
    assert_eq!(tokenizer.encode("ab ab</s>b<tool>").unwrap(), [6, 7, 1, 3, 9]);
    assert_eq!(tokenizer.decode(&[6, 7, 1, 3, 9]).unwrap(), "ab ab</s>b<tool>");
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.adds_bos()), (Some(0), Some(1), false));
    assert_eq!(tokenizer.vocab_size(), 10);
}

#[test]
fn digits_split_as_the_pre_tokenizer_says() {
    for (pre, ids) in
        [("gpt-2", vec![8, 4]), ("smollm", vec![4, 4, 4]), ("llama-bpe", vec![8, 4]), ("qwen2", vec![4, 4, 4])]
    {
        let tokenizer = from_writer(&byte_level_writer(pre)).unwrap();
        assert_eq!(tokenizer.encode("111").unwrap(), ids, "{pre}");
        assert_eq!(tokenizer.adds_bos(), pre == "llama-bpe", "{pre}");
    }
}

#[test]
fn llama3_takes_a_whole_word_that_no_merge_makes() {
    let tokens = ["a", "b", "ba"];
    let writer = |pre| {
        GgufWriter::new()
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", pre)
            .texts("tokenizer.ggml.tokens", &tokens)
            .texts("tokenizer.ggml.merges", &[])
    };
    assert_eq!(from_writer(&writer("llama-bpe")).unwrap().encode("ba").unwrap(), [2]);
    assert_eq!(from_writer(&writer("gpt-2")).unwrap().encode("ba").unwrap(), [1, 0]);
}

#[test]
fn add_bos_of_the_file_wins_over_the_default() {
    let writer = byte_level_writer("llama-bpe").bool("tokenizer.ggml.add_bos_token", false);
    assert!(!from_writer(&writer).unwrap().adds_bos());
}

#[test]
fn spelled_special_tokens_stay_text_where_asked_and_user_defined_ones_do_not() {
    // Letters of the specials' spellings: `<`, `s`, `>`.
    let writer = GgufWriter::new()
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "llama-bpe")
        .texts("tokenizer.ggml.tokens", &["<s>", "</s>", "a", "<", "s", ">", "<t>"])
        .i32s("tokenizer.ggml.token_type", &[3, 3, 1, 1, 1, 1, 4])
        .texts("tokenizer.ggml.merges", &[])
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 1)
        .bool("tokenizer.ggml.add_eos_token", true);
    let tokenizer = from_writer(&writer).unwrap();
    assert_eq!(tokenizer.encode("a<s>a<t>").unwrap(), [2, 0, 2, 6]);
    assert_eq!(tokenizer.encode_with_special("a<s>").unwrap(), [0, 2, 0, 1]);
    assert_eq!(tokenizer.encode_prompt("a<s>").unwrap(), [0, 2, 0]);
    let literal = tokenizer.encode_literally_with_special("a<s>a<t>").unwrap();
    assert_eq!((literal[0], literal.last()), (0, Some(&1)));
    assert_eq!(literal[1..].iter().filter(|&&id| id == 0).count(), 0);
    assert!(literal.contains(&6) && literal.contains(&4));
    // The written tokenizer.json does the same.
    let written = tokenizers::Tokenizer::from_bytes(tokenizer.to_json().unwrap()).unwrap();
    assert_eq!(written.encode_fast("a<s>", true).unwrap().get_ids(), [0, 2, 0, 1]);
}

#[test]
fn bad_metadata_is_named() {
    check_error(
        &byte_level_writer("dbrx"),
        "key \"tokenizer.ggml.pre\": \"dbrx\", expected one of gpt-2, smollm, starcoder, llama-bpe, qwen2",
    );
    check_error(&GgufWriter::new().text("tokenizer.ggml.model", "gpt2"), "key \"tokenizer.ggml.tokens\" is missing");
    let base = || GgufWriter::new().text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "gpt-2");
    let with_merges =
        |merges: &[&str]| base().texts("tokenizer.ggml.tokens", &["a", "b"]).texts("tokenizer.ggml.merges", merges);
    check_error(&with_merges(&["a b"]), "merge \"a b\" needs token \"ab\", which is not in the vocabulary");
    check_error(&with_merges(&["ab"]), "merge \"ab\" is not two tokens with a space between");
    check_error(&with_merges(&[""]), "merge \"\" is not two tokens");
    check_error(
        &base().texts("tokenizer.ggml.tokens", &["a", "a"]).texts("tokenizer.ggml.merges", &[]),
        "token \"a\" has two ids, 0 and 1",
    );
    check_error(
        &with_merges(&[]).i32s("tokenizer.ggml.token_type", &[1]),
        "expected a list of 2 integers, one a token",
    );
    check_error(&with_merges(&[]).u32("tokenizer.ggml.bos_token_id", 2), "expected the id of one of the 2 tokens");
    let t5 = GgufWriter::new().text("tokenizer.ggml.model", "t5").texts("tokenizer.ggml.tokens", &["a"]);
    check_error(&t5, "key \"tokenizer.ggml.model\": \"t5\", expected one of gpt2, llama");
}

#[test]
fn digest_follows_the_content() {
    let digest = |writer: &GgufWriter| from_writer(writer).unwrap().sha256().to_owned();
    let base = digest(&byte_level_writer("gpt-2"));
    assert_eq!(base.len(), 64);
    assert_eq!(
        base,
        digest(&byte_level_writer("gpt-2").text("general.name", "other").text("tokenizer.chat_template", "x"))
    );
    assert_ne!(base, digest(&byte_level_writer("smollm")));
}

/// The pieces of a llama2.c `tok512.bin`: `i32` longest piece, then for each `f32` score, `i32` length, text. Its
/// pieces spell a space as a space; ids 0 to 2 are unknown, BOS and EOS, 3 to 258 the bytes.
fn llama2c_writer(bytes: &[u8]) -> (GgufWriter, Vec<(String, f32)>) {
    let mut pieces = Vec::new();
    let mut rest = &bytes[4..];
    while let Some((head, tail)) = rest.split_first_chunk::<8>() {
        let score = f32::from_le_bytes(*head.first_chunk().unwrap());
        let (text, tail) = tail.split_at(i32::from_le_bytes(*head.last_chunk().unwrap()) as usize);
        pieces.push((String::from_utf8(text.to_vec()).unwrap(), score));
        rest = tail;
    }
    pieces[1].0 = "<s>".to_owned();
    pieces[2].0 = "</s>".to_owned();
    let spelled: Vec<String> = pieces.iter().map(|(text, _)| text.replace(' ', "\u{2581}")).collect();
    let texts: Vec<&str> = spelled.iter().map(String::as_str).collect();
    let scores: Vec<f32> = pieces.iter().map(|(_, score)| *score).collect();
    let types: Vec<i32> = (0..pieces.len())
        .map(|id| match id {
            0 => 2,
            1 | 2 => 3,
            3..259 => 6,
            _ => 1,
        })
        .collect();
    let writer = GgufWriter::new()
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &texts)
        .f32s("tokenizer.ggml.scores", &scores)
        .i32s("tokenizer.ggml.token_type", &types)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2);
    (writer, pieces)
}

/// SentencePiece by its definition: of all neighbours that join into a piece, merge the leftmost with the highest score.
fn greedy_by_score(text: &str, pieces: &[(String, f32)]) -> Vec<u32> {
    let by_text: BTreeMap<&str, usize> =
        pieces.iter().enumerate().skip(259).map(|(id, piece)| (piece.0.as_str(), id)).collect();
    let mut ids = Vec::new();
    for char in format!(" {text}").chars() {
        match by_text.get(char.to_string().as_str()) {
            Some(id) => ids.push(*id),
            None => ids.extend(char.to_string().bytes().map(|byte| usize::from(byte) + 3)),
        }
    }
    loop {
        let mut best: Option<(f32, usize, usize)> = None;
        for at in 1..ids.len() {
            let joined = format!("{}{}", pieces[ids[at - 1]].0, pieces[ids[at]].0);
            if let Some(id) = by_text.get(joined.as_str()) {
                let score = pieces[*id].1;
                if best.is_none_or(|(best_score, ..)| score > best_score) {
                    best = Some((score, at, *id));
                }
            }
        }
        let Some((_, at, id)) = best else { break };
        ids[at - 1] = id;
        ids.remove(at);
    }
    ids.into_iter().map(|id| id as u32).collect()
}

#[test]
fn sentence_piece_agrees_with_its_definition() {
    let (Some(pieces), Some(stories)) = (asset("tok512.bin"), asset("tinystories_val_794k.txt")) else {
        return;
    };
    let (writer, pieces) = llama2c_writer(&std::fs::read(pieces).unwrap());
    let tokenizer = from_writer(&writer).unwrap();
    assert!(tokenizer.adds_bos());
    let stories = std::fs::read_to_string(stories).unwrap();
    let mut texts: Vec<&str> = stories.lines().filter(|line| line.len() > 20).take(60).collect();
    texts.extend(["héllo 🐻 wörld", "  two  spaces ", "tab\tand\nnewline", "0123"]);
    for text in texts {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids, greedy_by_score(text, &pieces), "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}

#[test]
fn smollm2_tokenizes_wikitext_as_the_reference_does() {
    let (Some(model), Some(text), Some(expected)) =
        (asset(SMOLLM2), asset("wiki.test.raw"), asset("test_joined.ids.i32"))
    else {
        return;
    };
    let tokenizer = crate::open::open_model(&model).unwrap().tokenizer;
    let text = joined_wikitext_rows(&std::fs::read_to_string(text).unwrap());
    assert_eq!(text.len(), 1_296_370);
    let started = std::time::Instant::now();
    let ids = tokenizer.encode(&text).unwrap();
    println!("tokenized {} bytes in {:?}", text.len(), started.elapsed());
    let expected: Vec<u32> =
        std::fs::read(expected).unwrap().as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
    assert_eq!(ids.len(), 304_978);
    let first_difference = ids.iter().zip(&expected).position(|(id, expected)| id != expected);
    assert_eq!((ids.len(), first_difference), (expected.len(), None));
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.adds_bos()), (Some(1), Some(2), false));
}

mod folders {
    use super::*;
    use tokenizers::models::bpe::BPE;
    use tokenizers::processors::template::TemplateProcessing;

    fn write_folder(with_template: bool) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let vocab = ["<s>", "a", "b"]
            .iter()
            .zip(0..)
            .map(|(token, id)| (token.to_string(), id))
            .collect::<tokenizers::models::bpe::Vocab>();
        let mut inner = tokenizers::Tokenizer::new(BPE::builder().vocab_and_merges(vocab, vec![]).build().unwrap());
        if with_template {
            let template = TemplateProcessing::builder()
                .try_single("<s> $A")
                .unwrap()
                .special_tokens(vec![("<s>", 0)])
                .build()
                .unwrap();
            inner.with_post_processor(Some(template));
        }
        let truncation = tokenizers::TruncationParams { max_length: 2, ..Default::default() };
        inner.with_truncation(Some(truncation)).unwrap();
        inner.save(folder.path().join("tokenizer.json"), false).unwrap();
        folder
    }

    fn config(bos_id: Option<u32>) -> ModelConfig {
        ModelConfig {
            architecture: "LlamaForCausalLM".to_owned(),
            hidden_size: 2,
            intermediate_size: 2,
            n_blocks: 1,
            n_heads: 1,
            n_kv_heads: 1,
            head_dim: 2,
            vocab_size: 3,
            max_positions: 8,
            norm_eps: 1e-5,
            rotary_dim: 2,
            rope_theta: 1e4,
            rope_scaling: None,
            local_rope: None,
            tie_word_embeddings: false,
            attention_bias: false,
            mlp_bias: false,
            bos_id,
            eos_ids: vec![2],
            windows: vec![None],
            raw: Json::Null,
            outer: None,
        }
    }

    #[test]
    fn template_tells_whether_bos_is_added_and_truncation_is_ignored() {
        for with_template in [true, false] {
            let folder = write_folder(with_template);
            let tokenizer = Tokenizer::from_folder(folder.path(), &config(Some(0))).unwrap();
            assert_eq!(tokenizer.encode("abab").unwrap(), [1, 2, 1, 2]);
            assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.adds_bos()), (Some(0), Some(2), with_template));
            let with_special: &[u32] = if with_template { &[0, 1] } else { &[1] };
            assert_eq!(tokenizer.encode_with_special("a").unwrap(), with_special);
            // No configuration file need name the token that the post-processor puts first.
            let unnamed = Tokenizer::from_folder(folder.path(), &config(None)).unwrap();
            assert_eq!((unnamed.bos(), unnamed.adds_bos()), (with_template.then_some(0), with_template));
            assert_eq!(tokenizer.sha256(), sha256_hex(&std::fs::read(folder.path().join("tokenizer.json")).unwrap()));
        }
    }

    #[test]
    fn tokenizer_config_names_the_special_tokens() {
        let folder = write_folder(false);
        let names = folder.path().join("tokenizer_config.json");
        std::fs::write(&names, r#"{"bos_token": {"content": "b"}, "eos_token": "a"}"#).unwrap();
        let tokenizer = Tokenizer::from_folder(folder.path(), &config(None)).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(2), Some(1)));
        std::fs::write(&names, r#"{"bos_token": "<bos>"}"#).unwrap();
        let error = Tokenizer::from_folder(folder.path(), &config(None)).err().unwrap().to_string();
        assert!(
            error.ends_with("tokenizer_config.json: key \"bos_token\": \"<bos>\", expected a token of tokenizer.json"),
            "{error}"
        );
    }

    #[test]
    fn missing_and_malformed_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = |folder: &tempfile::TempDir| {
            Tokenizer::from_folder(folder.path(), &config(None)).err().unwrap().to_string()
        };
        assert!(error(&folder).contains("tokenizer.json; check the path"), "{}", error(&folder));
        std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        assert!(error(&folder).contains("tokenizer.json: tokenizer: "), "{}", error(&folder));
    }

    #[test]
    fn ids_beyond_any_vocabulary_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (id, expected) in [((1 << 24) - 1, None), (1 << 24, Some("id 16777216; ids below 16777216 are read"))] {
            let model = format!(r#"{{"type": "WordLevel", "vocab": {{"<unk>": 0, "a": {id}}}, "unk_token": "<unk>"}}"#);
            let file = format!(r#"{{"version": "1.0", "model": {model}, "added_tokens": []}}"#);
            std::fs::write(folder.path().join("tokenizer.json"), file).unwrap();
            let error = Tokenizer::from_folder(folder.path(), &config(None)).err().map(|error| error.to_string());
            assert_eq!(error.is_some(), expected.is_some(), "{error:?}");
            assert!(error.unwrap_or_default().contains(expected.unwrap_or_default()));
        }
    }

    #[test]
    fn digest_is_sha256() {
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
