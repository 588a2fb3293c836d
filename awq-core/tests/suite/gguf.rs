//! The families in GGUF files against PyPI's transformers, on files that llama.cpp's own converter made of tiny models
//! (`scripts/make-gguf-models.py`).

use std::path::PathBuf;

use awq_core::load::ModelConfig;
use awq_core::model::{Storage, wiring_of};
use awq_core::open::{OpenedModel, open_model};

use crate::fixture::{Fixture, renamed};
use crate::support::Cpu;

/// A file, and the class that it holds.
const FILES: [(&str, &str); 23] = [
    ("bloom", "BloomForCausalLM"),
    ("falcon-40b", "FalconForCausalLM"),
    ("falcon-7b", "FalconForCausalLM"),
    ("gemma", "GemmaForCausalLM"),
    ("gemma2", "Gemma2ForCausalLM"),
    ("gemma3", "Gemma3ForCausalLM"),
    ("gpt2", "GPT2LMHeadModel"),
    ("gptneox", "GPTNeoXForCausalLM"),
    ("gptneox-in-turn", "GPTNeoXForCausalLM"),
    ("granite", "GraniteForCausalLM"),
    ("mixtral", "MixtralForCausalLM"),
    ("mpt", "MptForCausalLM"),
    ("olmo2", "Olmo2ForCausalLM"),
    ("phi2", "PhiForCausalLM"),
    ("phi3", "Phi3ForCausalLM"),
    ("phi3-long", "Phi3ForCausalLM"),
    ("qwen2moe", "Qwen2MoeForCausalLM"),
    ("qwen3moe", "Qwen3MoeForCausalLM"),
    ("smollm3", "SmolLM3ForCausalLM"),
    ("stablelm", "StableLmForCausalLM"),
    ("stablelm-parallel", "StableLmForCausalLM"),
    ("stablelm-qk-norm", "StableLmForCausalLM"),
    ("starcoder", "GPTBigCodeForCausalLM"),
];

fn file(name: &str) -> PathBuf {
    crate::fixture::folder(&format!("../data/gguf/{name}"))
}

fn opened(name: &str) -> OpenedModel {
    open_model(&file(&format!("{name}.gguf"))).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn every_file_is_tested() {
    let entries = std::fs::read_dir(file("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".gguf")?.to_owned())).collect();
    found.sort();
    assert_eq!(found, FILES.map(|(name, _)| name));
}

#[test]
fn logits_are_those_of_transformers() {
    let mut wrong = Vec::new();
    for (name, class) in FILES {
        let model = opened(name);
        assert_eq!(model.config.architecture, class, "{name}");
        assert_eq!(model.tokenizer.vocab_size(), 64);
        let checkpoint = renamed(model.checkpoint.as_ref(), |name| Some(name.to_owned()));
        let fixture = Fixture::with_expected(model.config, checkpoint, &file(&format!("{name}.safetensors")));
        let found = fixture.run::<Cpu>();
        assert_eq!(found.len(), fixture.logits.len());
        let is_close = found.iter().zip(&fixture.logits).all(|(a, b)| (a - b).abs() < 1e-4);
        if !is_close {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "logits differ: {wrong:?}");
}

/// What a packed folder's `config.json` says is what the file said.
#[test]
fn the_configuration_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let written = folder.path().join("config.json");
    for (name, _) in FILES {
        let config = opened(name).config;
        std::fs::write(&written, config.to_hugging_face().to_string()).unwrap();
        assert_eq!(ModelConfig::from_hugging_face(&written).unwrap(), config, "{name}");
    }
}

/// Linears that share a tensor of the file are stored as it is.
#[test]
fn linears_are_stored_as_the_tensors_that_hold_them() {
    for (name, _) in FILES {
        let model = opened(name);
        let wiring = wiring_of(&model.config, model.checkpoint.as_ref()).unwrap();
        let storage = Storage::of(&wiring, &model.config, model.checkpoint.as_ref()).unwrap();
        let types: Vec<&str> = storage.types.iter().map(|share| share.name.as_str()).collect();
        assert_eq!((types.as_slice(), storage.bits_per_weight), (&["GGUF BF16"][..], 16.0), "{name}");
    }
}
