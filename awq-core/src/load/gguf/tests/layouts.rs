//! What the files of other families hold, and what they must not. (Their logits: `tests/suite/gguf.rs`.)

use proptest::prelude::*;
use serde_json::json;

use super::super::Change;
use super::{check_error, counting, on_disk, opened};
use crate::load::Checkpoint;
use crate::load::testing::GgufWriter;
use crate::open::open_model;

/// The keys that all have: width 8, two heads of width 4, one key head.
fn keys(architecture: &str) -> GgufWriter {
    let key = |name: &str| format!("{architecture}.{name}");
    GgufWriter::new()
        .text("general.architecture", architecture)
        .u32(&key("block_count"), 1)
        .u32(&key("context_length"), 16)
        .u32(&key("embedding_length"), 8)
        .u32(&key("feed_forward_length"), 32)
        .u32(&key("attention.head_count"), 2)
        .u32(&key("vocab_size"), 3)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .f32(&key("attention.layer_norm_epsilon"), 1e-5)
        .f32_tensor("token_embd.weight", &[3, 8], &counting(24))
}

fn grouped(architecture: &str) -> GgufWriter {
    keys(architecture).u32(&format!("{architecture}.attention.head_count_kv"), 1)
}

fn experts(architecture: &str) -> GgufWriter {
    grouped(architecture)
        .u32(&format!("{architecture}.expert_count"), 3)
        .u32(&format!("{architecture}.expert_used_count"), 2)
}

#[test]
fn rows_of_queries_keys_and_values_come_out_under_their_names() {
    let file = opened(&grouped("phi3").f32_tensor("blk.0.attn_qkv.weight", &[16, 8], &counting(128)));
    let read = |name: &str| {
        let name = format!("model.layers.0.self_attn.qkv_proj.{name}.weight");
        (file.checkpoint.shape(&name).unwrap(), file.checkpoint.read_f32(&name).unwrap()[0])
    };
    assert_eq!([read("q"), read("k"), read("v")], [(vec![8, 8], 0.0), (vec![4, 8], 64.0), (vec![4, 8], 96.0)]);
    check_error(
        &grouped("phi3").f32_tensor("blk.0.attn_qkv.weight", &[12, 8], &counting(96)).bytes(),
        "tensor \"blk.0.attn_qkv.weight\" has shape [12, 8], expected [16, 8]",
    );
    check_error(
        &grouped("phi3").f32_tensor("blk.0.ffn_up.weight", &[3, 8], &counting(24)).bytes(),
        "tensor \"blk.0.ffn_up.weight\" has shape [3, 8], expected [2, 8]",
    );
}

/// Rows are read where they lie, in whichever type.
#[test]
fn experts_are_rows_of_blocks() {
    let mut bytes = Vec::new();
    for expert in 0..3_u8 {
        // Two rows of one Q8_0 block each, of scale 1.
        for row in 0..2_u8 {
            bytes.extend([0x00, 0x3c]);
            bytes.extend([10 * expert + row; 32]);
        }
    }
    let file = opened(&experts("llama").tensor("blk.0.ffn_down_exps.weight", &[3, 2, 32], 8, bytes));
    assert_eq!(file.config.architecture, "MixtralForCausalLM");
    let name = "model.layers.0.block_sparse_moe.experts.2.w2.weight";
    assert_eq!(file.checkpoint.shape(name), Some(vec![2, 32]));
    assert_eq!(file.checkpoint.read_f32(name).unwrap(), [[20.0; 32], [21.0; 32]].concat());
    assert_eq!(file.checkpoint.stored_type(name).unwrap().name, "GGUF Q8_0");
    assert_eq!(file.config.raw["num_local_experts"], 3);
}

#[test]
fn experts_that_are_none_are_refused() {
    let with = |shape: &[u64]| {
        let n = shape.iter().product::<u64>() as usize;
        experts("llama").f32_tensor("blk.0.ffn_up_exps.weight", shape, &counting(n)).bytes()
    };
    check_error(
        &with(&[3, 8]),
        "tensor \"blk.0.ffn_up_exps.weight\" has shape [3, 8], expected experts, rows, columns",
    );
    check_error(&with(&[5000, 1, 1]), "has 5000 experts, expected at most 4096");
    check_error(
        &experts("qwen3moe").u32("qwen3moe.expert_gating_func", 2).bytes(),
        "key \"qwen3moe.expert_gating_func\": expected 1, a softmax; use another model",
    );
    check_error(
        &grouped("qwen3moe").u32("qwen3moe.expert_used_count", 2).bytes(),
        "key \"qwen3moe.expert_count\" is missing",
    );
}

#[test]
fn norms_of_gemma_are_stored_with_a_one_too_many() {
    let file = opened(&grouped("gemma3").f32_tensor("blk.0.post_ffw_norm.weight", &[8], &counting(8)).f32_tensor(
        "output_norm.weight",
        &[8],
        &counting(8),
    ));
    for name in ["model.layers.0.post_feedforward_layernorm.weight", "model.norm.weight"] {
        assert_eq!(file.checkpoint.read_f32(name).unwrap(), [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "{name}");
    }
    assert_eq!(file.checkpoint.tensors["model.embed_tokens.weight"].change, Change::Nothing);
}

/// What llama.cpp takes for granted where a file has no key.
#[test]
fn keys_that_are_not_there_stand_for_what_llama_cpp_computes() {
    let raw = |writer: &GgufWriter| opened(writer).config.raw;
    let gemma3 = raw(&grouped("gemma3").u32("gemma3.attention.sliding_window", 4));
    assert_eq!((&gemma3["query_pre_attn_scalar"], &gemma3["rope_local_base_freq"]), (&json!(4), &json!(10_000.0)));
    assert_eq!(opened(&grouped("gemma3")).config.windows, [None]);
    let granite = raw(&grouped("granite"));
    assert_eq!(granite["attention_multiplier"], json!(0.5));
    let falcon = |writer: &GgufWriter| raw(writer)["new_decoder_architecture"] == json!(true);
    let second_norm = grouped("falcon").f32_tensor("blk.0.attn_norm_2.weight", &[8], &counting(8));
    assert!(!falcon(&grouped("falcon")) && falcon(&second_norm));
    let partly = opened(&keys("gptneox").u32("gptneox.rope.dimension_count", 2)).config;
    assert_eq!((partly.rotary_dim, partly.head_dim, partly.rope_theta), (2, 4, 10_000.0));
}

#[test]
fn what_a_class_does_not_compute_is_refused() {
    check_error(&grouped("gpt2").bytes(), "key \"gpt2.attention.head_count_kv\": 1, expected as many as queries have");
    check_error(
        &keys("bloom").u32("bloom.rope.dimension_count", 2).bytes(),
        "key \"bloom.rope.dimension_count\": 2, expected the head width 4",
    );
    check_error(
        &grouped("gemma").f32("gemma.attn_logit_softcapping", 50.0).bytes(),
        "key \"gemma.attn_logit_softcapping\": 50.0: capped values, which the known families do not have",
    );
    check_error(
        &grouped("falcon").text("falcon.tensor_data_layout", "other").bytes(),
        "key \"falcon.tensor_data_layout\": expected \"jploski\": another order of rows",
    );
    check_error(
        &grouped("phi3")
            .f32_tensor("blk.0.attn_q.weight", &[8, 8], &counting(64))
            .f32_tensor("x", &[1], &[1.0])
            .bytes(),
        "tensor \"x\" belongs to no known layer of architecture \"phi3\"",
    );
}

proptest! {
    /// Headers and metadata of real files with bytes of another value. What opens can be read.
    #[test]
    fn damaged_files_of_other_families_never_panic(
        which in 0..5usize,
        damage in prop::collection::vec((0usize..2600, any::<u8>()), 1..4),
    ) {
        let name = ["gemma3", "qwen2moe", "phi3-long", "falcon-40b", "gptneox"][which];
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gguf");
        let mut bytes = std::fs::read(folder.join(format!("{name}.gguf"))).unwrap();
        for (position, byte) in damage {
            bytes[position] = byte;
        }
        if let Ok(model) = open_model(&on_disk(&bytes).file) {
            let _ = crate::model::wiring_of(&model.config, model.checkpoint.as_ref());
            for name in model.checkpoint.names() {
                let _ = model.checkpoint.read_f32(&name);
            }
        }
    }
}

/// No memory is taken for what is not there.
#[test]
fn damaged_shapes_end_in_errors() {
    let with = |name: &str, shape: &[u64], type_id: u32| {
        check_error(&experts("qwen2moe").tensor(name, shape, type_id, Vec::new()).bytes(), "overflow");
    };
    with("blk.0.ffn_up_exps.weight", &[4096, 1 << 60, 0], 0);
    with("blk.0.ffn_up_exps.weight", &[4096, 1 << 60, 1], 40);
    with("blk.0.ffn_gate_inp_shexp.weight", &[1 << 40, 1 << 40], 40);
    let wide = |width| {
        let tensors = keys("gpt2").f32_tensor("blk.0.attn_qkv.weight", &[24, 8], &counting(192));
        tensors.u32("gpt2.attention.key_length", width).bytes()
    };
    check_error(&wide(1 << 14), "has shape [24, 8], expected [98304, 8]");
    check_error(&wide(1 << 31), "2147483648, expected at most 16384");
}

/// The error of a model is about its only file.
#[test]
fn errors_of_wiring_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.gguf");
    let model = keys("mpt")
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "gpt-2")
        .texts("tokenizer.ggml.tokens", &["a", "b", "ab"])
        .texts("tokenizer.ggml.merges", &["a b"]);
    std::fs::write(&file, model.bytes()).unwrap();
    let opened = open_model(&file).unwrap();
    let error = crate::model::wiring_of(&opened.config, opened.checkpoint.as_ref()).err().unwrap().to_string();
    assert!(error.contains("m.gguf: key \"attn_config.alibi\": false, expected true"), "{error}");
}
