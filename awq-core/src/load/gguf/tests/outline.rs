//! What is written, read again: files of llama.cpp's own converter, and folders in Hugging Face layout.

use std::collections::BTreeSet;

use crate::formats::gguf::GgmlType;
use crate::load::{Checkpoint, Contents, GgufOutline, GgufTensor, ModelConfig, Placed};
use crate::model::wiring_of;
use crate::open::{OpenedModel, gguf_outline, open_model, open_tensors};

use super::*;

fn tests_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn files() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(tests_folder().join("data/gguf")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "gguf")).collect();
    files.sort();
    files
}

fn outline(opened: &OpenedModel) -> Result<GgufOutline, String> {
    let wiring = wiring_of(&opened.config, opened.checkpoint.as_ref()).unwrap();
    gguf_outline(opened, &wiring, false, &[("general.name", "a name".to_owned())])
}

/// The whole file, all tensors in f32.
fn bytes(outline: &GgufOutline, checkpoint: &dyn Checkpoint) -> Vec<u8> {
    let (mut data, mut placed) = (Vec::new(), Vec::new());
    let encoded = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|value| value.to_le_bytes()).collect() };
    for tensor in outline.tensors() {
        placed.push(Placed { ggml_type: GgmlType::F32, offset: data.len() as u64 });
        match &tensor.contents {
            Contents::Values(values) => data.extend(encoded(values)),
            Contents::Tensors(names) => {
                for name in names {
                    let values = tensor.stored(checkpoint.read_any_f32(name).unwrap());
                    data.extend(tensor.arranged(encoded(&values)));
                }
            }
        }
        data.resize(data.len().next_multiple_of(GgufOutline::ALIGNMENT), 0);
    }
    [outline.header(&placed), data].concat()
}

/// Bit for bit, but for norms that are stored with a one more.
#[track_caller]
fn check_same_tensors(outline: &GgufOutline, expected: &dyn Checkpoint, found: &dyn Checkpoint) {
    let adds_one = |name: &str| {
        let holds = |tensor: &&GgufTensor| matches!(&tensor.contents, Contents::Tensors(names) if names.iter().any(|one| one == name));
        outline.tensors().iter().find(holds).unwrap().adds_one()
    };
    for name in found.names() {
        assert_eq!(found.shape(&name), expected.shape(&name), "{name}");
        let values = |checkpoint: &dyn Checkpoint| checkpoint.read_any_f32(&name).unwrap();
        for (found, expected) in values(found).into_iter().zip(values(expected)) {
            let expected = if adds_one(&name) { (expected + 1.0) - 1.0 } else { expected };
            assert_eq!(found.to_bits(), expected.to_bits(), "{name}");
        }
    }
}

#[test]
fn files_of_the_converter_are_written_again_as_they_are() {
    for file in files() {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let opened = open_model(&file).unwrap();
        let outline = outline(&opened).unwrap_or_else(|problem| panic!("{name}: {problem}"));
        let written = on_disk(&bytes(&outline, opened.checkpoint.as_ref()));
        let read = open_model(&written.file).unwrap();
        let facts = |of: &OpenedModel| ModelConfig { raw: Json::Null, ..of.config.clone() };
        assert_eq!(facts(&read), facts(&opened), "{name}");
        assert_eq!(read.checkpoint.names(), opened.checkpoint.names(), "{name}");
        check_same_tensors(&outline, opened.checkpoint.as_ref(), read.checkpoint.as_ref());
        let header = |file: &Path| Header::parse(&std::fs::read(file).unwrap(), file).unwrap();
        let (converted, ours) = (header(&file), header(&written.file));
        for (key, value) in &converted.metadata {
            // Names and types of the file, and what the converter says of no token.
            let is_own = ["general.", "tokenizer."].iter().any(|start| key.starts_with(start));
            assert!(
                is_own && key != "general.architecture" || ours.metadata.get(key) == Some(value),
                "{name}: {key}: {value:?}, {:?}",
                ours.metadata.get(key)
            );
        }
        for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type", "tokenizer.ggml.pre"]
        {
            assert_eq!(ours.metadata.get(key), converted.metadata.get(key), "{name}: {key}");
        }
        let tensors = |header: &Header| -> BTreeSet<(String, Vec<usize>)> {
            header.tensors.iter().map(|(name, info)| (name.clone(), info.shape.clone())).collect()
        };
        assert_eq!(tensors(&ours), tensors(&converted), "{name}");
    }
}

/// A folder's model with a tokenizer of as many tokens.
fn of_folder(name: &str) -> OpenedModel {
    let (config, checkpoint) = open_tensors(&tests_folder().join("fixtures").join(name)).unwrap();
    let text = open_model(&tests_folder().join("data/gguf/granite.gguf")).unwrap();
    OpenedModel { config, checkpoint, ..text }
}

#[test]
fn folders_are_written_as_the_models_that_they_are() {
    let folders = std::fs::read_dir(tests_folder().join("fixtures")).unwrap();
    let mut names: Vec<String> = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let mut refused = Vec::new();
    for name in names {
        let opened = of_folder(&name);
        let outline = match outline(&opened) {
            Ok(outline) => outline,
            Err(problem) => {
                refused.push(format!("{name}: {problem}"));
                continue;
            }
        };
        let written = on_disk(&bytes(&outline, opened.checkpoint.as_ref()));
        let read = open_model(&written.file).unwrap();
        check_same_tensors(&outline, opened.checkpoint.as_ref(), read.checkpoint.as_ref());
        let facts = |config: &ModelConfig| (config.hidden_size, config.n_kv_heads, config.tie_word_embeddings);
        assert_eq!(facts(&read.config), facts(&opened.config), "{name}");
    }
    assert_eq!(refused.len(), REFUSED.len(), "{refused:#?}");
    for (found, (name, problem)) in refused.iter().zip(REFUSED) {
        assert!(found.starts_with(&format!("{name}: ")) && found.contains(problem), "{found}, not {problem}");
    }
}

/// What llama.cpp computes otherwise, or does not have.
const REFUSED: [(&str, &str); 16] = [
    ("falcon-rw-tiny", "llama.cpp's `falcon` has no tensor for transformer.h.0.post_attention_layernorm.bias"),
    ("gemma2-tiny", "a GGUF file of `gemma2` would be another model: "),
    ("gemma3-tiny", "the windows would be 7 in 2 blocks in a GGUF file, not 7 in 1, none in 1 blocks"),
    (
        "gemma3-vl-tiny",
        "Gemma3ForConditionalGeneration is a model of texts and images, which llama.cpp has in two files",
    ),
    ("idefics3-tiny", "is a model of texts and images"),
    ("llava-tiny", "is a model of texts and images"),
    ("mpt-tiny", "a GGUF file of `mpt` would be another model: its `scale` would be nothing, not `0.3`"),
    ("opt-350m-tiny", "llama.cpp has no model of class OPTForCausalLM"),
    ("opt-tiny", "llama.cpp has no model of class OPTForCausalLM"),
    ("phi-qk-norm", "llama.cpp's `phi2` has no tensor for model.layers.0.self_attn.k_layernorm.bias"),
    ("qwen2-5-vl-tiny", "is a model of texts and images"),
    // Some of their blocks have no experts.
    ("qwen2-moe-tiny", "a GGUF file of `qwen2moe` would be another model: "),
    ("qwen2-vl-tiny", "is a model of texts and images"),
    ("qwen3-moe-tiny", "a GGUF file of `qwen3moe` would be another model: "),
    // Positions in blocks that llama.cpp rotates, and the other way round.
    ("smollm3-tiny", "a GGUF file of `smollm3` would be another model: its `rope` would be `0`, not nothing"),
    ("smolvlm-tiny", "is a model of texts and images"),
];

/// Bytes that llama.cpp's own writer has for such keys: `GgufWriter` is by another hand.
#[test]
fn keys_and_tables_are_bytes_of_version_3() {
    let opened = open_model(&tests_folder().join("data/gguf/granite.gguf")).unwrap();
    let written = bytes(&outline(&opened).unwrap(), opened.checkpoint.as_ref());
    assert_eq!(written[..8], *b"GGUF\x03\0\0\0");
    let first = GgufWriter::new().text("general.architecture", "granite").text("general.type", "model");
    let first = first.text("general.name", "a name").u32("general.quantization_version", 2).bytes();
    // Behind the counts; the writer pads the end.
    let keys = &first[24..first.len() - 32];
    assert_eq!(&written[24..24 + keys.len()], keys);
    assert!(written.len().is_multiple_of(32));
}
