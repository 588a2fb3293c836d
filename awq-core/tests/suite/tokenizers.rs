//! Tokenizers from the files that came before `tokenizer.json`, against SentencePiece and transformers
//! (`scripts/make-tokenizer-fixtures.py`).

use std::collections::BTreeMap;
use std::path::Path;

use awq_core::load::{ModelConfig, Tokenizer};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::fixture::{folder, tokenizer_file};
use crate::oracle::asset;

#[derive(Deserialize)]
struct Cases {
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    /// What each file of the folder holds: another file's content, or JSON.
    files: BTreeMap<String, Json>,
    texts: Vec<Encoded>,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
}

fn config() -> ModelConfig {
    ModelConfig::from_hugging_face(&folder("llama-tiny").join("config.json")).unwrap()
}

fn cases() -> BTreeMap<String, Case> {
    let text = std::fs::read_to_string(tokenizer_file("cases.json")).unwrap();
    serde_json::from_str::<Cases>(&text).unwrap().cases
}

fn write(files: &BTreeMap<String, Json>, to: &Path) {
    for (name, content) in files {
        match content.as_str() {
            Some(source) => drop(std::fs::copy(tokenizer_file(source), to.join(name)).unwrap()),
            None => std::fs::write(to.join(name), content.to_string()).unwrap(),
        }
    }
}

#[track_caller]
fn check_ids(name: &str, tokenizer: &Tokenizer, texts: &[Encoded]) {
    for Encoded { text, ids } in texts {
        assert_eq!(tokenizer.encode_with_special(text).unwrap(), *ids, "{name}: {text:?}");
    }
}

#[test]
fn ids_are_those_of_sentencepiece_and_transformers() {
    for (name, case) in cases() {
        let from = tempfile::tempdir().unwrap();
        write(&case.files, from.path());
        let tokenizer = Tokenizer::from_folder(from.path(), &config()).unwrap();
        check_ids(&name, &tokenizer, &case.texts);
        // What `quantize` writes: the same as a tokenizer.json, with the settings beside.
        let to = tempfile::tempdir().unwrap();
        std::fs::write(to.path().join("tokenizer.json"), tokenizer.to_json().unwrap()).unwrap();
        let settings = case.files["tokenizer_config.json"].to_string();
        std::fs::write(to.path().join("tokenizer_config.json"), settings).unwrap();
        let again = Tokenizer::from_folder(to.path(), &config()).unwrap();
        check_ids(&name, &again, &case.texts);
        assert_eq!((again.bos(), again.adds_bos()), (tokenizer.bos(), tokenizer.adds_bos()), "{name}");
        assert_eq!(again.vocab_size(), tokenizer.vocab_size(), "{name}");
        // Beside a tokenizer.json, special_tokens_map.json is not asked for it.
        if case.files["tokenizer_config.json"].get("eos_token").is_some() {
            assert_eq!(again.eos(), tokenizer.eos(), "{name}");
        }
    }
}

#[test]
fn texts_come_back() {
    for (name, case) in cases() {
        let from = tempfile::tempdir().unwrap();
        write(&case.files, from.path());
        let tokenizer = Tokenizer::from_folder(from.path(), &config()).unwrap();
        let text = "the terms of the work and the licence";
        let decoded = tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap();
        let decoded = if name == "gpt2-prefix" { decoded.trim_start() } else { &decoded };
        assert_eq!(decoded, text, "{name}");
    }
}

fn case_with(name: &str, change: impl Fn(&mut BTreeMap<String, Json>)) -> Result<Tokenizer, String> {
    let folder = tempfile::tempdir().unwrap();
    let mut files = cases().remove(name).unwrap().files;
    change(&mut files);
    write(&files, folder.path());
    let shown = folder.path().display().to_string();
    Tokenizer::from_folder(folder.path(), &config()).map_err(|error| error.to_string().replace(&shown, "DIR"))
}

#[test]
fn what_contradicts_is_named() {
    let message = |name, change: &dyn Fn(&mut BTreeMap<String, Json>)| case_with(name, change).err().unwrap();
    let set = |files: &mut BTreeMap<String, Json>, file: &str, content: Json| drop(files.insert(file.into(), content));
    assert_eq!(
        message("gpt2", &|files| set(
            files,
            "tokenizer_config.json",
            json!({ "tokenizer_class": "BlenderbotTokenizer" })
        )),
        "DIR/tokenizer_config.json: key \"tokenizer_class\": \"BlenderbotTokenizer\"; of vocab.json and merges.txt, the tokenizers \
         of GPT2Tokenizer, CodeGenTokenizer, Qwen2Tokenizer are read: save this one with transformers, which writes tokenizer.json"
    );
    // The model is a Llama, whose class has no such files.
    assert!(
        message("gpt2", &|files| set(files, "tokenizer_config.json", json!({})))
            .contains("\"tokenizer_class\": is not there; of")
    );
    assert_eq!(
        message("gpt2", &|files| set(files, "added_tokens.json", json!({ "<extra>": 500 }))),
        "DIR/tokenizer_config.json: tokenizer: added token \"<extra>\" is listed with id 500, the vocabulary gives it 420; download \
         the tokenizer again, or convert the model again"
    );
    assert_eq!(
        message("gpt2", &|files| set(files, "vocab.json", json!({ "a": 0, "b": 0 }))),
        "DIR/vocab.json: tokenizer: tokens \"a\" and \"b\" have one id, 0; download the tokenizer again, or convert the model again"
    );
    assert!(
        message("gpt2", &|files| set(files, "vocab.json", json!({ "a": 0, "b": 1 })))
            .starts_with("DIR/merges.txt: tokenizer: merge "),
    );
    assert_eq!(
        message("opt", &|files| files.get_mut("tokenizer_config.json").unwrap()["add_bos_token"] = json!("yes")),
        "DIR/tokenizer_config.json: key \"add_bos_token\": \"yes\", expected true or false"
    );
}

#[test]
fn a_tokenizer_json_counts_before_all_other_files() {
    let whole = case_with("llama", |_| ()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    write(&cases()["gpt2"].files, folder.path());
    std::fs::write(folder.path().join("tokenizer.json"), whole.to_json().unwrap()).unwrap();
    std::fs::remove_file(folder.path().join("special_tokens_map.json")).unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path(), &config()).unwrap();
    assert_eq!(tokenizer.encode("the work").unwrap(), whole.encode("the work").unwrap());
}

/// Counts by transformers 5.24.0: `GPT2Tokenizer` on the first mebibyte of WikiText-2's training split.
#[test]
fn gpt2_has_the_ids_of_transformers_on_real_text() {
    let files = ["gpt2-vocab.json", "gpt2-merges.txt", "wiki.train.head-1MB.raw"].map(asset);
    let [Some(vocab), Some(merges), Some(text)] = files else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(vocab, folder.path().join("vocab.json")).unwrap();
    std::fs::copy(merges, folder.path().join("merges.txt")).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"tokenizer_class": "GPT2Tokenizer"}"#).unwrap();
    let tokenizer = Tokenizer::from_folder(folder.path(), &config()).unwrap();
    let ids = tokenizer.encode(&std::fs::read_to_string(text).unwrap()).unwrap();
    // A sum that depends on order.
    let sum = ids.iter().fold(0_u64, |sum, id| sum.wrapping_mul(31).wrapping_add(u64::from(*id)));
    assert_eq!((ids.len(), sum), (219_891, 15_915_524_734_110_531_407));
    assert_eq!((tokenizer.bos(), tokenizer.adds_bos()), (Some(50256), false));
}
