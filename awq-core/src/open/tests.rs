//! Whole folders, and paths that hold no model. (GGUF files: `gguf/tests.rs`.)
#![allow(clippy::unwrap_used)]

use std::fs;

use serde_json::json;
use tempfile::TempDir;
use tokenizers::models::bpe::{BPE, Vocab};

use super::*;
use crate::load::read_exact_shape;
use crate::load::testing::{Stored, write_safetensors};

fn folder_with_vocabulary(rows: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 4, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": rows,
        "max_position_embeddings": 16, "rms_norm_eps": 1e-6, "bos_token_id": 0
    });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let vocab: Vocab = ["<s>", "a", "b"].map(str::to_owned).into_iter().zip(0..).collect();
    let model = BPE::builder().vocab_and_merges(vocab, vec![]).build().unwrap();
    let tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.save(folder.path().join("tokenizer.json"), false).unwrap();
    let embedding: Vec<f32> = (0..rows * 4).map(|i| i as f32).collect();
    write_safetensors(
        &folder.path().join("model.safetensors"),
        &[("model.embed_tokens.weight", Stored::f32(&[rows, 4], &embedding))],
    );
    folder
}

fn error_of(path: &Path) -> String {
    open_model(path).err().unwrap().to_string()
}

#[test]
fn hugging_face_folder_opens() {
    let folder = folder_with_vocabulary(5);
    let model = open_model(folder.path()).unwrap();
    assert_eq!((model.config.n_kv_heads, model.config.head_dim), (2, 2));
    assert_eq!(model.tokenizer.encode("ab").unwrap(), [1, 2]);
    let embedding = read_exact_shape(&*model.checkpoint, "model.embed_tokens.weight", &[5, 4]).unwrap();
    assert_eq!(embedding[7], 7.0);
    assert_eq!(model.checkpoint.source(), folder.path().join("model.safetensors"));
}

#[test]
fn tokens_beyond_the_rows_of_the_embedding_open() {
    let folder = folder_with_vocabulary(2);
    let model = open_model(folder.path()).unwrap();
    assert_eq!((model.tokenizer.vocab_size(), model.config.vocab_size), (3, 2));
}

#[test]
fn end_tokens_of_the_generation_config_count() {
    let folder = folder_with_vocabulary(5);
    let file = folder.path().join("generation_config.json");
    fs::write(&file, r#"{"eos_token_id": [4, 2, 4]}"#).unwrap();
    // 2 is the class's own, which the configuration does not name.
    assert_eq!(open_model(folder.path()).unwrap().config.eos_ids, [2, 4]);
    fs::write(&file, r#"{"eos_token_id": 3}"#).unwrap();
    assert_eq!(open_model(folder.path()).unwrap().config.eos_ids, [2, 3]);
    fs::write(&file, r#"{"eos_token_id": "three"}"#).unwrap();
    assert!(error_of(folder.path()).contains("generation_config.json"), "{}", error_of(folder.path()));
}

#[test]
fn each_missing_file_of_a_folder_is_named() {
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let folder = folder_with_vocabulary(3);
        let file = folder.path().join(name);
        fs::remove_file(&file).unwrap();
        let message = error_of(folder.path());
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn paths_without_a_model_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent.gguf");
    assert!(error_of(&absent).starts_with("cannot open "), "{}", error_of(&absent));
    let absent = folder.path().join("absent");
    assert!(error_of(&absent).starts_with("cannot open "), "{}", error_of(&absent));
    let archive = folder.path().join("model.zip");
    fs::write(&archive, "PK").unwrap();
    assert!(error_of(&archive).contains("model.zip: not a model; expected a folder with config.json"));
}
