#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;
use crate::load::read_exact_shape;
use crate::load::testing::{GgufWriter, asset};
use crate::open::open_model;

mod layouts;
mod outline;
mod parts;
mod qwen3;

/// A model of one block: width 8, two query heads and one key head of width 4, three tokens.
fn small_model(architecture: &str) -> GgufWriter {
    let key = |name: &str| format!("{architecture}.{name}");
    GgufWriter::new()
        .text("general.architecture", architecture)
        .u32(&key("block_count"), 1)
        .u32(&key("context_length"), 16)
        .u32(&key("embedding_length"), 8)
        .u32(&key("feed_forward_length"), 8)
        .u32(&key("attention.head_count"), 2)
        .u32(&key("attention.head_count_kv"), 1)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .f32(&key("rope.freq_base"), 10_000.0)
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "gpt-2")
        .texts("tokenizer.ggml.tokens", &["a", "b", "ab"])
        .texts("tokenizer.ggml.merges", &["a b"])
        .f32_tensor("token_embd.weight", &[3, 8], &counting(24))
        .f32_tensor("blk.0.attn_q.weight", &[8, 8], &counting(64))
        .f32_tensor("blk.0.attn_k.weight", &[4, 8], &counting(32))
        .f32_tensor("blk.0.attn_v.weight", &[4, 8], &counting(32))
}

fn counting(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

struct OnDisk {
    _folder: tempfile::TempDir,
    file: PathBuf,
}

fn on_disk(bytes: &[u8]) -> OnDisk {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.gguf");
    std::fs::write(&file, bytes).unwrap();
    OnDisk { _folder: folder, file }
}

fn open_file(file: &Path) -> Result<GgufFile, LoadError> {
    open(file, &crate::model::classes().collect::<Vec<_>>())
}

fn opened(writer: &GgufWriter) -> GgufFile {
    open_file(&on_disk(&writer.bytes()).file).unwrap()
}

#[track_caller]
fn check_error(bytes: &[u8], expected: &str) {
    let message = open_file(&on_disk(bytes).file).err().unwrap().to_string();
    assert!(message.contains("m.gguf: ") && message.contains(expected), "{message}");
}

#[test]
fn configuration_comes_from_the_metadata() {
    let config = opened(&small_model("llama")).config;
    assert_eq!(config.architecture, "LlamaForCausalLM");
    assert_eq!((config.hidden_size, config.n_heads, config.n_kv_heads, config.head_dim), (8, 2, 1, 4));
    assert_eq!((config.vocab_size, config.max_positions, config.rope_theta), (3, 16, 10_000.0));
    assert_eq!(config.norm_eps as f32, 1e-5);
    assert!(config.tie_word_embeddings && !config.attention_bias);
    assert_eq!(config.raw["llama.block_count"], 1);

    let untied = small_model("qwen2").f32_tensor("output.weight", &[3, 8], &counting(24)).f32_tensor(
        "blk.0.attn_q.bias",
        &[8],
        &counting(8),
    );
    let config = opened(&untied).config;
    assert_eq!(config.architecture, "Qwen2ForCausalLM");
    assert!(!config.tie_word_embeddings && config.attention_bias);
}

/// llama.cpp has no windows in the graphs of these, whatever the key says.
#[test]
fn a_window_in_the_metadata_is_one_that_llama_cpp_does_not_apply() {
    for architecture in ["llama", "qwen2", "qwen3"] {
        let windowed = small_model(architecture).u32(&format!("{architecture}.attention.sliding_window"), 4);
        assert_eq!(opened(&windowed).config.windows, [None], "{architecture}");
    }
}

#[test]
fn rows_of_q_and_k_are_put_in_order_for_llama_only() {
    let first_of_each_row = |architecture: &str, name: &str| -> Vec<f32> {
        let checkpoint = opened(&small_model(architecture)).checkpoint;
        checkpoint.read_f32(name).unwrap().chunks(8).map(|row| row[0] / 8.0).collect()
    };
    let q = "model.layers.0.self_attn.q_proj.weight";
    let k = "model.layers.0.self_attn.k_proj.weight";
    let v = "model.layers.0.self_attn.v_proj.weight";
    assert_eq!(first_of_each_row("llama", q), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(first_of_each_row("llama", k), [0.0, 2.0, 1.0, 3.0]);
    assert_eq!(first_of_each_row("llama", v), counting(4));
    assert_eq!(first_of_each_row("qwen2", q), counting(8));
}

#[test]
fn bias_of_q_is_put_in_order_too() {
    let writer = small_model("llama").f32_tensor("blk.0.attn_q.bias", &[8], &counting(8));
    let bias = opened(&writer).checkpoint.read_f32("model.layers.0.self_attn.q_proj.bias").unwrap();
    assert_eq!(bias, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
}

/// No key says so: the tensors do, and the configuration that `quantize` writes.
#[test]
fn biases_of_the_mlp_are_read_and_written() {
    let plain = opened(&small_model("llama")).config;
    assert_eq!(plain.to_hugging_face()["mlp_bias"], false);
    let biased = opened(&small_model("llama").f32_tensor("blk.0.ffn_up.bias", &[8], &counting(8)));
    assert_eq!(biased.config.to_hugging_face()["mlp_bias"], true);
    assert_eq!(biased.checkpoint.read_f32("model.layers.0.mlp.up_proj.bias").unwrap(), counting(8));
    let lone = opened(&small_model("llama").f32_tensor("blk.0.attn_output.bias", &[8], &counting(8)));
    assert!(lone.config.attention_bias);
}

#[test]
fn both_versions_and_other_alignments_read() {
    for (version, alignment) in [(2, 32), (3, 32), (3, 8), (3, 256)] {
        let mut writer = small_model("llama").u32("general.alignment", alignment);
        writer.version = version;
        writer.alignment = alignment as usize;
        let values = opened(&writer).checkpoint.read_f32("model.layers.0.self_attn.v_proj.weight").unwrap();
        assert_eq!(values, counting(32), "version {version}, alignment {alignment}");
    }
}

#[test]
fn the_header_says_how_each_tensor_is_stored() {
    let writer = small_model("llama")
        .tensor("blk.0.ffn_up.weight", &[2, 32], 3, vec![0; 2 * 20])
        .tensor("blk.0.ffn_down.weight", &[1, 256], 14, vec![0; 210])
        .tensor("blk.0.ffn_gate.weight", &[1, 64], 40, vec![0; 36]);
    let checkpoint = opened(&writer).checkpoint;
    let stored = |name: &str| checkpoint.stored_type(&format!("model.layers.0.{name}.weight"));
    let of =
        |name: &str, bits_per_weight, group_size| Some(StoredType { name: name.into(), bits_per_weight, group_size });
    assert_eq!(stored("mlp.up_proj"), of("GGUF Q4_1", 5.0, Some(32)));
    assert_eq!(stored("mlp.down_proj"), of("GGUF Q6_K", 6.5625, Some(16)));
    assert_eq!(stored("self_attn.q_proj"), of("GGUF F32", 32.0, None));
    assert_eq!(stored("mlp.gate_proj"), None, "a type that is not read has no size here");
    assert_eq!(stored("mlp.no_proj"), None);
}

/// Memory for so many blocks would end the program before a missing tensor is found.
#[test]
fn more_blocks_than_tensors_are_refused() {
    let mut bytes = small_model("llama").bytes();
    let key = b"llama.block_count";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
    bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    check_error(&bytes, "key \"llama.block_count\": 4294967295 blocks, but the file has 4 tensors; download it again");
}

#[test]
fn rope_divisors_become_part_of_the_configuration() {
    let file = opened(&small_model("llama").f32_tensor("rope_freqs.weight", &[2], &[1.0, 8.0]));
    assert_eq!(file.config.rope_scaling, Some(RopeScaling::PerFrequency { divisors: vec![1.0, 8.0] }));
    assert_eq!(file.config.rope().frequencies(), [1.0, 0.01 / 8.0]);
    assert!(!file.checkpoint.names().iter().any(|name| name.contains("rope")));
    check_error(
        &small_model("llama").f32_tensor("rope_freqs.weight", &[3], &[1.0; 3]).bytes(),
        "tensor \"rope_freqs.weight\" has shape [3], expected [2]",
    );
}

/// What the file says, and the frequencies of the two pairs that llama.cpp then computes.
#[test]
fn stretched_frequencies_are_those_of_llama_cpp() {
    let frequencies = |writer: &GgufWriter| opened(writer).config.rope().frequencies();
    let model = || small_model("llama");
    let (plain, quarter) = ([1.0, 0.01], [0.25, 0.0025]);
    assert_eq!(frequencies(&model()), plain);
    assert_eq!(frequencies(&model().f32("llama.rope.scaling.factor", 4.0)), quarter, "the type is linear if not said");
    assert_eq!(frequencies(&model().f32("llama.rope.scale_linear", 4.0)), quarter, "the key of 2023");
    let both = model().f32("llama.rope.scale_linear", 8.0).f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(frequencies(&both), quarter, "the newer key wins");
    let linear = model().text("llama.rope.scaling.type", "linear");
    assert_eq!(frequencies(&linear.clone().f32("llama.rope.scaling.factor", 4.0)), quarter);
    assert_eq!(frequencies(&linear.clone()), plain);
    assert_eq!(frequencies(&linear.f32("llama.rope.scaling.factor", 0.0)), plain);
    let none = model().text("llama.rope.scaling.type", "none").f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(frequencies(&none), plain);
    let divided = model().f32("llama.rope.scaling.factor", 4.0).f32_tensor("rope_freqs.weight", &[2], &[1.0, 2.0]);
    assert_eq!(frequencies(&divided), [0.25, 0.00125], "divisors and factor are both applied");
    check_error(
        &model().f32_tensor("rope_freqs.weight", &[2], &[1.0, 0.0]).bytes(),
        "tensor \"rope_freqs.weight\" divides by 0 at element 1",
    );
    check_error(
        &model().f32("llama.rope.scaling.factor", -1.0).bytes(),
        "key \"llama.rope.scaling.factor\": -1.0, expected a positive number",
    );
    check_error(
        &model().text("llama.rope.scaling.type", "longrope").bytes(),
        "key \"llama.rope.scaling.type\": \"longrope\", expected one of none, linear",
    );
}

#[test]
fn heads_are_scaled_by_their_width_only() {
    let with = |key: &str, value: f32| small_model("qwen2").f32(&format!("qwen2.{key}"), value);
    for scale in [0.0, 0.5, 0.500_000_06] {
        opened(&with("attention.scale", scale));
    }
    check_error(
        &with("attention.scale", 0.25).bytes(),
        "key \"qwen2.attention.scale\": 0.25, expected 1 / sqrt(4): other scales are not supported",
    );
    check_error(
        &small_model("qwen2").u32("qwen2.attention.value_length", 8).bytes(),
        "key \"qwen2.attention.value_length\": 8, expected the width of keys 4: others are not supported",
    );
}

#[test]
fn what_is_no_whole_model_says_what_it_is() {
    let kind = |kind: &str| GgufWriter::new().text("general.type", kind).text("general.architecture", "llama").bytes();
    check_error(
        &kind("adapter"),
        "key \"general.type\": \"adapter\": this is an adapter (LoRA), not a model; merge it into its base model, and \
         convert that",
    );
    check_error(
        &kind("mmproj"),
        "\"mmproj\": this is the image or audio encoder of a multimodal model (mmproj), not a model of text; give that",
    );
    check_error(
        &kind("imatrix"),
        "\"imatrix\": this is an importance matrix, not a model; give the model that it was made from",
    );
    check_error(&kind("soup"), "\"soup\": a kind of file that is not known, expected \"model\"");
    check_error(
        &GgufWriter::new().text("general.architecture", "clip").bytes(),
        "key \"general.architecture\": \"clip\": this is the image or audio encoder of a multimodal model (mmproj)",
    );
    assert!(opened(&small_model("llama").text("general.type", "model")).config.n_blocks == 1);
    assert!(opened(&small_model("llama").u32("split.count", 1)).config.n_blocks == 1);
    check_error(b"tjgg\x03\0\0\0", "not with \"GGUF\": a GGJT file of before GGUF");
    check_error(
        b"version https://git-lfs.github.com/spec/v1",
        "a pointer of Git LFS in place of the file, which `git lfs pull` gets",
    );
}

/// One key table holds for both families.
#[test]
fn keys_of_the_architecture_are_checked_when_a_file_is_opened() {
    for family in ["qwen2", "qwen3"] {
        let key = format!("{family}.expert_count");
        check_error(
            &small_model(family).u32(&key, 8).bytes(),
            &format!(
                "key \"{key}\": 8: experts, which this architecture does not have here; use the model's safetensors folder"
            ),
        );
        opened(&small_model(family).u32(&key, 0).u32("other.expert_count", 8));
    }
}

#[test]
fn rotary_buffers_of_old_converters_are_left_out() {
    let writer = small_model("llama").f32_tensor("blk.0.attn_rot_embd.weight", &[2], &[1.0, 0.01]);
    let file = opened(&writer);
    assert!(file.checkpoint.names().iter().all(|name| !name.contains("rot")));
    check_error(
        &small_model("llama").f32_tensor("rope_factors_long.weight", &[2], &[1.0, 1.0]).bytes(),
        "tensor \"rope_factors_long.weight\" belongs to no known layer of architecture \"llama\"",
    );
}

#[test]
fn wrong_facts_are_named() {
    let text = |key: &str, value: &str| GgufWriter::new().text(key, value).bytes();
    check_error(
        &text("general.architecture", "mamba"),
        "unknown architecture \"mamba\", expected one of bloom, falcon, gemma, ",
    );
    check_error(&text("general.name", "x"), "key \"general.architecture\" is missing");
    check_error(&text("general.architecture", "llama"), "key \"llama.embedding_length\" is missing");
    let with = |name: &str, shape: &[u64]| {
        let n = shape.iter().product::<u64>() as usize;
        small_model("llama").f32_tensor(name, shape, &counting(n)).bytes()
    };
    check_error(
        &with("blk.0.ffn_gate_exps.weight", &[2, 8]),
        "tensor \"blk.0.ffn_gate_exps.weight\" belongs to no known layer of architecture \"llama\"",
    );
    check_error(&with("blk.1.attn_k.weight", &[8, 8]), "has shape [8, 8], expected [4, 8]");
    check_error(&with("blk.0.attn_v.weight", &[4, 8]), "tensor \"blk.0.attn_v.weight\" stands twice");
    check_error(&small_model("llama").u32("llama.rope.dimension_count", 2).bytes(), "expected the head width 4");
    check_error(
        &small_model("llama").text("llama.rope.scaling.type", "yarn").bytes(),
        "\"yarn\", expected one of none, linear",
    );
    check_error(
        &small_model("llama").u32("general.alignment", 3).bytes(),
        "general.alignment is 3, expected a power of two",
    );
    check_error(&small_model("llama").u32("llama.block_count", 2).bytes(), "key \"llama.block_count\" stands twice");
}

#[test]
fn unknown_storage_type_is_named_when_the_tensor_is_read() {
    let writer = small_model("llama").tensor("blk.0.ffn_up.weight", &[8, 64], 40, vec![0; 36 * 8]);
    let error = opened(&writer).checkpoint.read_f32("model.layers.0.mlp.up_proj.weight").unwrap_err().to_string();
    assert!(error.contains("is stored as NVFP4, expected one of F32, F16, Q4_0"), "{error}");
}

#[test]
fn nan_and_wrong_shape_are_named() {
    let mut values = counting(8);
    values[5] = f32::NEG_INFINITY;
    let checkpoint = opened(&small_model("llama").f32_tensor("output_norm.weight", &[8], &values)).checkpoint;
    let error = checkpoint.read_f32("model.norm.weight").unwrap_err();
    assert!(matches!(&error, LoadError::NonFinite { name, index: 5, .. } if name == "model.norm.weight"), "{error}");
    let error = read_exact_shape(&checkpoint, "model.embed_tokens.weight", &[8, 3]).unwrap_err().to_string();
    assert!(error.contains("has shape [3, 8], expected [8, 3]"), "{error}");
    let error = checkpoint.read_f32("model.layers.0.self_attn.qproj.weight").unwrap_err().to_string();
    assert!(error.contains("nearest: model.layers.0.self_attn.q_proj.weight"), "{error}");
}

#[test]
fn every_truncation_is_an_error_that_says_so() {
    let whole = small_model("llama").bytes();
    for length in 0..whole.len() {
        let error = Header::parse(&whole[..length], Path::new("m.gguf")).unwrap_err();
        match error {
            LoadError::Truncated { expected, found, .. } => {
                assert!(
                    found == length as u64 && expected > found && expected <= whole.len() as u64,
                    "{length}: {expected}"
                );
            }
            other => panic!("{length}: {other}"),
        }
    }
    assert!(Header::parse(&whole, Path::new("m.gguf")).is_ok());
}

#[test]
fn hostile_counts_end_in_errors() {
    let whole = small_model("llama").bytes();
    let overwritten = |at: usize, value: u64| {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    // 8: tensors, 16: keys, 24: length of the first key.
    for at in [8, 16, 24] {
        for value in [u64::MAX, 1 << 62, 1 << 32, 1000] {
            let error = Header::parse(&overwritten(at, value), Path::new("m.gguf")).unwrap_err();
            assert!(
                matches!(error, LoadError::Truncated { .. } | LoadError::BadHeader { .. }),
                "{at} {value}: {error}"
            );
        }
    }
    let huge = |shape: &[u64]| GgufWriter::new().tensor("t", shape, 0, vec![0; 32]).bytes();
    check_error(&huge(&[u64::MAX, 2]), "overflow");
    check_error(&huge(&[1 << 62]), "overflow");
    check_error(&huge(&[1 << 40]), "truncated: at least");
    check_error(&huge(&[1, 1, 1, 1, 1]), "tensor \"t\" has 5 dimensions, at most 4 are allowed");
    check_error(
        &GgufWriter::new().tensor("t", &[2, 33], 2, vec![0; 64]).bytes(),
        "rows of 33 do not divide into blocks of Q4_0",
    );
}

#[test]
fn foreign_files_are_named() {
    check_error(b"PK\x03\x04 is a zip archive", "bad header: it starts with [80, 75, 3, 4], not with \"GGUF\"");
    let mut writer = small_model("llama");
    writer.version = 1;
    check_error(&writer.bytes(), "GGUF version 1, expected 2 or 3");
    writer.version = 3_u32.swap_bytes();
    check_error(&writer.bytes(), "big-endian GGUF, expected little-endian");
}

#[test]
fn vocabulary_larger_than_the_embedding_is_an_error() {
    let writer = small_model("llama").u32("llama.vocab_size", 2);
    let error = open_model(&on_disk(&writer.bytes()).file).err().unwrap().to_string();
    assert!(error.contains("the tokenizer has 3 tokens but the model's vocabulary has 2"), "{error}");
    assert!(open_model(&on_disk(&small_model("llama").bytes()).file).is_ok());
}

/// A row is a slice here; of blocks (Q4_0) and of floats (F16).
#[test]
fn slices_are_the_tensor_cut_at_its_rows() {
    const ROW: usize = 600_000;
    for (type_id, n_bytes) in [(2, 3 * ROW / 32 * 18), (1, 3 * ROW * 2)] {
        let bytes: Vec<u8> = (0..n_bytes).map(|index| (index * 7 % 113) as u8).collect();
        let model = small_model("llama").tensor("blk.0.ffn_up.weight", &[3, ROW as u64], type_id, bytes);
        let checkpoint = opened(&model).checkpoint;
        let name = "model.layers.0.mlp.up_proj.weight";
        let slices: Vec<Vec<f32>> = checkpoint.slices(name).unwrap().map(Result::unwrap).collect();
        assert_eq!(slices.iter().map(Vec::len).collect::<Vec<_>>(), [ROW; 3]);
        assert!(slices.concat() == checkpoint.read_any_f32(name).unwrap(), "type {type_id}");
    }
}

proptest! {
    #[test]
    fn damaged_files_never_panic(damage in prop::collection::vec((0usize..4096, any::<u8>()), 1..4)) {
        let mut bytes = small_model("llama").tensor("blk.0.ffn_up.weight", &[1, 32], 3, vec![60; 20]).bytes();
        let length = bytes.len();
        for (position, byte) in damage {
            bytes[position % length] = byte;
        }
        if let Ok(model) = open_model(&on_disk(&bytes).file) {
            for name in model.checkpoint.names() {
                let _ = model.checkpoint.read_f32(&name);
            }
        }
    }
}

#[test]
fn smollm2_embeddings_and_weights_equal_the_oracle() {
    let (Some(model), Some(forward)) = (asset("SmolLM2-135M-Instruct.Q4_1.gguf"), asset("forward.safetensors")) else {
        return;
    };
    let started = std::time::Instant::now();
    let model = open_model(&model).unwrap();
    println!("opened in {:?}", started.elapsed());
    assert_eq!((model.config.n_blocks, model.config.hidden_size, model.config.vocab_size), (30, 576, 49152));
    assert_eq!((model.config.rope_theta, model.config.tie_word_embeddings), (100_000.0, true));

    let forward = std::fs::read(forward).unwrap();
    let forward = SafeTensors::deserialize(&forward).unwrap();
    let oracle = |name: &str| {
        crate::load::floats::to_f32(crate::arithmetic::FloatType::F32, forward.tensor(name).unwrap().data())
    };
    let ids = forward.tensor("ids").unwrap();
    assert_eq!(ids.dtype(), safetensors::Dtype::I32);
    let ids = ids.data().as_chunks::<4>().0.iter();
    let started = std::time::Instant::now();
    let embedding = read_exact_shape(&*model.checkpoint, "model.embed_tokens.weight", &[49152, 576]).unwrap();
    println!("embedding read in {:?}", started.elapsed());
    let rows: Vec<f32> =
        ids.flat_map(|id| &embedding[u32::from_le_bytes(*id) as usize * 576..][..576]).copied().collect();
    assert_eq!(rows, oracle("embed"));

    // A linear's rows, in order, times its input must give its output; q and k also prove the order of rows.
    for (linear, in_width, out_width) in [
        ("self_attn.q_proj", 576, 576),
        ("self_attn.k_proj", 576, 192),
        ("self_attn.v_proj", 576, 192),
        ("self_attn.o_proj", 576, 576),
        ("mlp.gate_proj", 576, 1536),
        ("mlp.up_proj", 576, 1536),
        ("mlp.down_proj", 1536, 576),
    ] {
        let weight =
            read_exact_shape(&*model.checkpoint, &format!("model.layers.0.{linear}.weight"), &[out_width, in_width])
                .unwrap();
        let (input, output) = (oracle(&format!("b0_{linear}_in")), oracle(&format!("b0_{linear}_out")));
        for (token, (x, y)) in input.chunks(in_width).zip(output.chunks(out_width)).enumerate() {
            for (row, expected) in weight.chunks(in_width).zip(y) {
                let dot: f64 = row.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum();
                assert!((dot - f64::from(*expected)).abs() < 1e-3, "{linear}, token {token}: {dot} {expected}");
            }
        }
    }
}
