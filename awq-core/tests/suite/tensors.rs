//! What becomes of each tensor of a checkpoint, seen from outside: all of a model is settled from names, shapes and types, before any
//! weight is read.

use std::sync::Arc;

use awq_core::load::{Checkpoint, MemoryCheckpoint, ModelConfig};
use awq_core::model::tiny::{TinySpec, checkpoint};
use awq_core::model::{open_decoder, wiring_of};
use serde_json::json;

use crate::support::Cpu;

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// A copy with each tensor as `change` leaves it; `None` takes it away.
fn changed(base: &MemoryCheckpoint, change: impl Fn(&str, &mut Vec<usize>, &mut Vec<f32>) -> bool) -> MemoryCheckpoint {
    let mut made = MemoryCheckpoint::default();
    for name in base.names() {
        let (mut shape, mut values) = (base.shape(&name).unwrap(), base.read_any_f32(&name).unwrap());
        if change(&name, &mut shape, &mut values) {
            made.insert(&name, &shape, values);
        }
    }
    made
}

fn without(base: &MemoryCheckpoint, ends: &[&str]) -> MemoryCheckpoint {
    changed(base, |name, _, _| !ends.iter().any(|end| name.ends_with(end)))
}

fn tiny() -> (ModelConfig, MemoryCheckpoint) {
    (TinySpec::GQA.config(), checkpoint(&TinySpec::GQA, 1))
}

fn tied() -> ModelConfig {
    ModelConfig { tie_word_embeddings: true, ..TinySpec::GQA.config() }
}

#[track_caller]
fn check_error(config: &ModelConfig, checkpoint: &MemoryCheckpoint, expected: &str) {
    assert_eq!(wiring_of(config, checkpoint).err().map(|error| error.to_string()).as_deref(), Some(expected));
}

#[test]
fn a_tensor_that_is_missing_from_the_last_block_is_found_at_opening() {
    let (config, base) = tiny();
    check_error(
        &config,
        &without(&base, &["layers.1.mlp.down_proj.weight"]),
        "memory: no tensor named \"model.layers.1.mlp.down_proj.weight\" (nearest: model.layers.0.mlp.down_proj.weight, \
         model.layers.1.mlp.gate_proj.weight, model.layers.1.mlp.up_proj.weight); check that the checkpoint belongs to this \
         architecture, or download it again",
    );
    let message = wiring_of(&config, &without(&base, &["o_proj.weight", "q_proj.weight"])).err().unwrap().to_string();
    assert!(message.ends_with("(3 more tensor(s) are missing)"), "{message}");
}

#[test]
fn a_tensor_of_another_shape_in_the_last_block_is_found_at_opening() {
    let (config, base) = tiny();
    let transposed = changed(&base, |name, shape, _| {
        if name == "model.layers.1.mlp.up_proj.weight" {
            shape.reverse();
        }
        true
    });
    check_error(
        &config,
        &transposed,
        "memory: tensor \"model.layers.1.mlp.up_proj.weight\" has shape [64, 96], expected [96, 64]; check that configuration and \
         weights belong to the same model",
    );
}

#[test]
fn weights_that_nothing_would_read_are_named() {
    let (config, mut base) = tiny();
    for block_idx in 0..2 {
        base.insert(&format!("model.layers.{block_idx}.self_attn.q_norm.weight"), &[16], vec![1.0; 16]);
        base.insert(&format!("model.layers.{block_idx}.self_attn.k_norm.weight"), &[16], vec![1.0; 16]);
    }
    check_error(
        &config,
        &base,
        "memory: 4 tensor(s) would not be read as LlamaForCausalLM: model.layers.0.self_attn.k_norm.weight, \
         model.layers.0.self_attn.q_norm.weight, model.layers.1.self_attn.k_norm.weight, ...; the model computes something else \
         with them: check `architectures` and the number of blocks in its configuration, or choose another checkpoint",
    );
    // A block more than the configuration has.
    let fewer = ModelConfig { n_blocks: 1, ..config };
    assert!(wiring_of(&fewer, &tiny().1).err().unwrap().to_string().contains("9 tensor(s) would not be read"));
}

#[test]
fn buffers_are_left_alone_and_a_tensor_that_may_be_none_is_told_of() {
    let (config, mut base) = tiny();
    base.insert("model.layers.0.self_attn.rotary_emb.inv_freq", &[8], vec![0.5; 8]);
    base.insert("model.layers.1.self_attn.bias", &[1, 1, 4, 4], vec![1.0; 16]);
    base.insert("model.embed_positions.position_ids", &[1, 4], vec![0.0, 1.0, 2.0, 3.0]);
    assert_eq!(wiring_of(&config, &base).unwrap().notes, Vec::<String>::new());
    base.insert("n_batches", &[], vec![f32::NAN]);
    let wiring = wiring_of(&config, &base).unwrap();
    assert_eq!(wiring.notes, ["memory: tensor \"n_batches\" is no weight of a decoder and is not read"]);
    assert_eq!(wiring.tensors(&config).into_keys().collect::<Vec<_>>(), tiny().1.names());
}

#[test]
fn a_tied_head_may_be_stored_as_a_copy_as_another_or_alone() {
    let (_, base) = tiny();
    let embedding = base.read_f32(EMBEDDING).unwrap();
    let mut copied = base.clone();
    copied.insert(HEAD, &[50, 64], embedding.clone());
    let wiring = wiring_of(&tied(), &copied).unwrap();
    assert_eq!((wiring.head, wiring.notes), (None, vec![]));

    let wiring = wiring_of(&tied(), &base).unwrap();
    assert_eq!(wiring.head.as_deref(), Some(HEAD));
    assert!(wiring.notes[0].starts_with("memory: config.json ties the head to the embedding, but another"));

    let mut alone = without(&base, &[EMBEDDING]);
    alone.insert(HEAD, &[50, 64], embedding);
    assert_eq!(wiring_of(&tied(), &alone).unwrap().embedding, HEAD);
    // Not tied: each of the two must be there.
    check_error(
        &tiny().0,
        &without(&base, &[HEAD]),
        "memory: no tensor named \"lm_head.weight\" (nearest: model.norm.weight, model.embed_tokens.weight, \
         model.layers.0.mlp.up_proj.weight); check that the checkpoint belongs to this architecture, or download it again",
    );
}

#[test]
fn biases_are_those_that_are_stored() {
    let (config, base) = (TinySpec::MHA.config(), checkpoint(&TinySpec::MHA, 1));
    // In all blocks, or in none.
    let wiring = wiring_of(&config, &without(&base, &["v_proj.bias"])).unwrap();
    assert_eq!(wiring.biased.iter().map(|name| name.0).collect::<Vec<_>>(), ["self_attn.q_proj", "self_attn.k_proj"]);
    assert_eq!(
        wiring.notes,
        ["memory: the configuration gives self_attn.v_proj a bias, none is stored: it is zero, as in transformers"]
    );
    let message = wiring_of(&config, &without(&base, &["1.self_attn.v_proj.bias"])).err().unwrap().to_string();
    assert!(message.starts_with("memory: no tensor named \"model.layers.1.self_attn.v_proj.bias\""), "{message}");

    let mut denied = base.clone();
    for block_idx in 0..2 {
        denied.insert(&format!("model.layers.{block_idx}.self_attn.o_proj.bias"), &[64], vec![1.0; 64]);
    }
    let wiring = wiring_of(&config, &denied).unwrap();
    assert!(wiring.biased.iter().all(|name| name.0 != "self_attn.o_proj"));
    assert_eq!(
        wiring.notes,
        [
            "memory: the configuration gives self_attn.o_proj no bias, but one is stored: it is not read, as in transformers"
        ]
    );
    // No key of GGUF denies a bias, so there it is a weight that nothing would read.
    let gguf = ModelConfig { raw: json!({ "general.architecture": "qwen2" }), ..config };
    assert!(wiring_of(&gguf, &denied).err().unwrap().to_string().contains("2 tensor(s) would not be read"));
}

#[test]
fn a_row_of_the_embedding_that_no_text_reaches_may_hold_anything() {
    let (config, base) = tiny();
    let padded = |name: &'static str| {
        changed(&base, move |tensor, _, values| {
            if tensor == name {
                values[48 * 64 + 3] = f32::NAN;
            }
            true
        })
    };
    let open = |config: &ModelConfig, checkpoint| {
        open_decoder::<Cpu>(config.clone(), Arc::new(checkpoint), &Default::default())
    };
    let decoder = open(&config, padded(EMBEDDING)).unwrap();
    decoder.check_ids(&[vec![0, 47, 49]]).unwrap();
    assert_eq!(
        decoder.check_ids(&[vec![3], vec![47, 48]]).unwrap_err().to_string(),
        "memory: row 48 of \"model.embed_tokens.weight\" holds NaN or infinity, and a text has the token of that id; download \
         the file again, or choose another checkpoint"
    );
    // Every row of a head is multiplied, whether it is the embedding or not.
    assert!(
        open(&config, padded(HEAD)).err().unwrap().to_string().contains("NaN or infinity in tensor \"lm_head.weight\"")
    );
    let tied_and_padded = without(&padded(EMBEDDING), &[HEAD]);
    assert!(
        open(&tied(), tied_and_padded).err().unwrap().to_string().contains("NaN or infinity in tensor \"model.embed")
    );
}
