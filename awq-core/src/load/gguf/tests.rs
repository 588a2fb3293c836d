#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use half::f16;
use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;
use crate::load::testing::{GgufWriter, asset};
use crate::load::{open_model, read_exact_shape};

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
    OnDisk {
        _folder: folder,
        file,
    }
}

fn opened(writer: &GgufWriter) -> GgufFile {
    open(&on_disk(&writer.bytes()).file).unwrap()
}

#[track_caller]
fn check_error(bytes: &[u8], expected: &str) {
    let message = open(&on_disk(bytes).file).err().unwrap().to_string();
    assert!(
        message.contains("m.gguf: ") && message.contains(expected),
        "{message}"
    );
}

#[test]
fn configuration_comes_from_the_metadata() {
    let config = opened(&small_model("llama")).config;
    assert_eq!(config.architecture, "LlamaForCausalLM");
    assert_eq!(
        (
            config.hidden_size,
            config.n_heads,
            config.n_kv_heads,
            config.head_dim
        ),
        (8, 2, 1, 4)
    );
    assert_eq!(
        (config.vocab_size, config.max_positions, config.rope_theta),
        (3, 16, 10_000.0)
    );
    assert_eq!(config.norm_eps as f32, 1e-5);
    assert!(config.tie_word_embeddings && !config.attention_bias);
    assert_eq!(config.raw["llama.block_count"], 1);

    let untied = small_model("qwen2")
        .f32_tensor("output.weight", &[3, 8], &counting(24))
        .f32_tensor("blk.0.attn_q.bias", &[8], &counting(8));
    let config = opened(&untied).config;
    assert_eq!(config.architecture, "Qwen2ForCausalLM");
    assert!(!config.tie_word_embeddings && config.attention_bias);
}

#[test]
fn rows_of_q_and_k_are_put_in_order_for_llama_only() {
    let first_of_each_row = |architecture: &str, name: &str| -> Vec<f32> {
        let checkpoint = opened(&small_model(architecture)).checkpoint;
        checkpoint
            .read_f32(name)
            .unwrap()
            .chunks(8)
            .map(|row| row[0] / 8.0)
            .collect()
    };
    let q = "model.layers.0.self_attn.q_proj.weight";
    let k = "model.layers.0.self_attn.k_proj.weight";
    let v = "model.layers.0.self_attn.v_proj.weight";
    assert_eq!(
        first_of_each_row("llama", q),
        [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
    );
    assert_eq!(first_of_each_row("llama", k), [0.0, 2.0, 1.0, 3.0]);
    assert_eq!(first_of_each_row("llama", v), counting(4));
    assert_eq!(first_of_each_row("qwen2", q), counting(8));
}

#[test]
fn bias_of_q_is_put_in_order_too() {
    let writer = small_model("llama").f32_tensor("blk.0.attn_q.bias", &[8], &counting(8));
    let bias = opened(&writer)
        .checkpoint
        .read_f32("model.layers.0.self_attn.q_proj.bias")
        .unwrap();
    assert_eq!(bias, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
}

#[test]
fn both_versions_and_other_alignments_read() {
    for (version, alignment) in [(2, 32), (3, 32), (3, 8), (3, 256)] {
        let mut writer = small_model("llama").u32("general.alignment", alignment);
        writer.version = version;
        writer.alignment = alignment as usize;
        let values = opened(&writer)
            .checkpoint
            .read_f32("model.layers.0.self_attn.v_proj.weight")
            .unwrap();
        assert_eq!(
            values,
            counting(32),
            "version {version}, alignment {alignment}"
        );
    }
}

#[test]
fn rope_divisors_become_part_of_the_configuration() {
    let file = opened(&small_model("llama").f32_tensor("rope_freqs.weight", &[2], &[1.0, 8.0]));
    assert_eq!(
        file.config.rope_scaling,
        Some(RopeScaling::PerFrequency {
            divisors: vec![1.0, 8.0]
        })
    );
    assert_eq!(file.config.rope_frequencies(), [1.0, 0.01 / 8.0]);
    assert!(
        !file
            .checkpoint
            .names()
            .iter()
            .any(|name| name.contains("rope"))
    );
    check_error(
        &small_model("llama")
            .f32_tensor("rope_freqs.weight", &[3], &[1.0; 3])
            .bytes(),
        "tensor \"rope_freqs.weight\" has shape [3], expected [2]",
    );
}

#[test]
fn wrong_facts_are_named() {
    let text = |key: &str, value: &str| GgufWriter::new().text(key, value).bytes();
    check_error(
        &text("general.architecture", "mamba"),
        "unknown architecture \"mamba\", expected one of llama, qwen2",
    );
    check_error(
        &text("general.name", "x"),
        "key \"general.architecture\" is missing",
    );
    check_error(
        &text("general.architecture", "llama"),
        "key \"llama.embedding_length\" is missing",
    );
    let with = |name: &str, shape: &[u64]| {
        let n = shape.iter().product::<u64>() as usize;
        small_model("llama")
            .f32_tensor(name, shape, &counting(n))
            .bytes()
    };
    check_error(
        &with("blk.0.ffn_gate_exps.weight", &[2, 8]),
        "tensor \"blk.0.ffn_gate_exps.weight\" belongs to no known layer of architecture \"llama\"",
    );
    check_error(
        &with("blk.1.attn_k.weight", &[8, 8]),
        "has shape [8, 8], expected [4, 8]",
    );
    check_error(
        &with("blk.0.attn_v.weight", &[4, 8]),
        "tensor \"blk.0.attn_v.weight\" stands twice",
    );
    check_error(
        &small_model("llama")
            .u32("llama.rope.dimension_count", 2)
            .bytes(),
        "expected the head width 4",
    );
    check_error(
        &small_model("llama")
            .text("llama.rope.scaling.type", "yarn")
            .bytes(),
        "\"yarn\", expected one of none, linear",
    );
    check_error(
        &small_model("llama").u32("general.alignment", 3).bytes(),
        "general.alignment is 3, expected a power of two",
    );
    check_error(
        &small_model("llama").u32("llama.block_count", 2).bytes(),
        "key \"llama.block_count\" stands twice",
    );
}

#[test]
fn unknown_storage_type_is_named_when_the_tensor_is_read() {
    let writer = small_model("llama").tensor("blk.0.ffn_up.weight", &[8, 256], 10, vec![0; 84 * 8]);
    let error = opened(&writer)
        .checkpoint
        .read_f32("model.layers.0.mlp.up_proj.weight")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("is stored as ggml type 10, expected one of F32, F16, Q4_0"),
        "{error}"
    );
}

#[test]
fn nan_and_wrong_shape_are_named() {
    let mut values = counting(8);
    values[5] = f32::NEG_INFINITY;
    let checkpoint =
        opened(&small_model("llama").f32_tensor("output_norm.weight", &[8], &values)).checkpoint;
    let error = checkpoint.read_f32("model.norm.weight").unwrap_err();
    assert!(
        matches!(&error, LoadError::NonFinite { name, index: 5, .. } if name == "model.norm.weight"),
        "{error}"
    );
    let error = read_exact_shape(&checkpoint, "model.embed_tokens.weight", &[8, 3])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("has shape [3, 8], expected [8, 3]"),
        "{error}"
    );
    let error = checkpoint
        .read_f32("model.layers.0.self_attn.qproj.weight")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("nearest: model.layers.0.self_attn.q_proj.weight"),
        "{error}"
    );
}

#[test]
fn every_truncation_is_an_error_that_says_so() {
    let whole = small_model("llama").bytes();
    for length in 0..whole.len() {
        let error = Header::parse(&whole[..length], Path::new("m.gguf")).unwrap_err();
        match error {
            LoadError::Truncated {
                expected, found, ..
            } => {
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
                matches!(
                    error,
                    LoadError::Truncated { .. } | LoadError::BadHeader { .. }
                ),
                "{at} {value}: {error}"
            );
        }
    }
    let huge = |shape: &[u64]| GgufWriter::new().tensor("t", shape, 0, vec![0; 32]).bytes();
    check_error(&huge(&[u64::MAX, 2]), "overflow");
    check_error(&huge(&[1 << 61]), "overflow");
    check_error(&huge(&[1 << 40]), "truncated: at least");
    check_error(
        &huge(&[1, 1, 1, 1, 1]),
        "tensor \"t\" has 5 dimensions, at most 4 are allowed",
    );
    check_error(
        &GgufWriter::new()
            .tensor("t", &[2, 33], 2, vec![0; 64])
            .bytes(),
        "rows of 33 do not divide into blocks of Q4_0",
    );
}

#[test]
fn foreign_files_are_named() {
    check_error(
        b"PK\x03\x04 is a zip archive",
        "bad header: it starts with [80, 75, 3, 4], not with \"GGUF\"",
    );
    let mut writer = small_model("llama");
    writer.version = 1;
    check_error(&writer.bytes(), "GGUF version 1, expected 2 or 3");
    writer.version = 3_u32.swap_bytes();
    check_error(&writer.bytes(), "big-endian GGUF, expected little-endian");
}

#[test]
fn vocabulary_larger_than_the_embedding_is_an_error() {
    let writer = small_model("llama").u32("llama.vocab_size", 2);
    let error = open_model(&on_disk(&writer.bytes()).file)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("the tokenizer has 3 tokens but the model's vocabulary has 2"),
        "{error}"
    );
    assert!(open_model(&on_disk(&small_model("llama").bytes()).file).is_ok());
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
    let (Some(model), Some(forward)) = (
        asset("SmolLM2-135M-Instruct.Q4_1.gguf"),
        asset("forward.safetensors"),
    ) else {
        return;
    };
    let started = std::time::Instant::now();
    let model = open_model(&model).unwrap();
    println!("opened in {:?}", started.elapsed());
    assert_eq!(
        (
            model.config.n_blocks,
            model.config.hidden_size,
            model.config.vocab_size
        ),
        (30, 576, 49152)
    );
    assert_eq!(
        (model.config.rope_theta, model.config.tie_word_embeddings),
        (100_000.0, true)
    );

    let forward = std::fs::read(forward).unwrap();
    let forward = SafeTensors::deserialize(&forward).unwrap();
    let oracle =
        |name: &str| floats::to_f32(floats::FloatType::F32, forward.tensor(name).unwrap().data());
    let ids: Vec<usize> = {
        let ids = forward.tensor("ids").unwrap();
        assert_eq!(ids.dtype(), safetensors::Dtype::I32);
        ids.data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|id| u32::from_le_bytes(*id) as usize)
            .collect()
    };
    let started = std::time::Instant::now();
    let embedding = read_exact_shape(
        &*model.checkpoint,
        "model.embed_tokens.weight",
        &[49152, 576],
    )
    .unwrap();
    println!("embedding read in {:?}", started.elapsed());
    let rows: Vec<f32> = ids
        .iter()
        .flat_map(|id| &embedding[id * 576..][..576])
        .copied()
        .collect();
    assert_eq!(rows, oracle("embed"));

    // A linear's rows, in order, times its input must give its output; q and k also prove the order of rows.
    for (linear, in_width, out_width) in [
        ("self_attn.q_proj", 576, 576),
        ("self_attn.k_proj", 576, 192),
        ("self_attn.v_proj", 576, 192),
        ("mlp.gate_proj", 576, 1536),
        ("mlp.down_proj", 1536, 576),
    ] {
        let weight = read_exact_shape(
            &*model.checkpoint,
            &format!("model.layers.0.{linear}.weight"),
            &[out_width, in_width],
        )
        .unwrap();
        let short = linear.split_once('.').unwrap().1;
        let (input, output) = (
            oracle(&format!("b0_{short}_in")),
            oracle(&format!("b0_{short}_out")),
        );
        for (token, (x, y)) in input
            .chunks(in_width)
            .zip(output.chunks(out_width))
            .enumerate()
        {
            for (row, expected) in weight.chunks(in_width).zip(y) {
                let dot: f64 = row.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum();
                assert!(
                    (dot - f64::from(*expected)).abs() < 1e-3,
                    "{linear}, token {token}: {dot} {expected}"
                );
            }
        }
    }
}

mod storage_types {
    use super::*;

    /// Blocks of pseudo-random bytes with sane `f16` numbers at `halves`.
    fn blocks(ggml_type: GgmlType, halves: &[usize]) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut bytes: Vec<u8> = (0..ggml_type.block_bytes() * 5)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect();
        for (index, block) in bytes.chunks_mut(ggml_type.block_bytes()).enumerate() {
            for (which, at) in halves.iter().enumerate() {
                let number = f16::from_f32(0.013 * (index as f32 - 1.7) + 0.4 * which as f32);
                block[*at..at + 2].copy_from_slice(&number.to_le_bytes());
            }
        }
        bytes
    }

    fn half_of(block: &[u8], at: usize) -> f32 {
        f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
    }

    /// Compares with `expected`, written as ggml's own loops go; exact, because the arithmetic is the same.
    #[track_caller]
    fn check(ggml_type: GgmlType, halves: &[usize], expected: fn(&[u8]) -> Vec<f32>) {
        let bytes = blocks(ggml_type, halves);
        let expected: Vec<f32> = bytes
            .chunks(ggml_type.block_bytes())
            .flat_map(expected)
            .collect();
        assert_eq!(expected.len(), 5 * ggml_type.block_len());
        assert_eq!(dequantize(ggml_type, &bytes), expected, "{ggml_type}");
    }

    fn low_then_high(codes: &[u8]) -> Vec<u8> {
        codes
            .iter()
            .map(|code| code % 16)
            .chain(codes.iter().map(|code| code / 16))
            .collect()
    }

    fn with_fifth_bits(codes: &[u8], high: &[u8]) -> Vec<u8> {
        let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
        low_then_high(codes)
            .into_iter()
            .enumerate()
            .map(|(j, code)| code + if high & (1 << j) == 0 { 0 } else { 16 })
            .collect()
    }

    /// All eight (scale, min) pairs.
    fn scales(q: &[u8]) -> Vec<(f32, f32)> {
        let first = (0..4).map(|j| (q[j] & 63, q[j + 4] & 63));
        let last = (4..8).map(|j| {
            (
                (q[j + 4] & 0xf) | ((q[j - 4] >> 6) << 4),
                (q[j + 4] >> 4) | ((q[j] >> 6) << 4),
            )
        });
        first
            .chain(last)
            .map(|(scale, min)| (f32::from(scale), f32::from(min)))
            .collect()
    }

    #[test]
    fn every_type_has_one_row_in_the_table() {
        for id in 0..64 {
            if let Some(ggml_type) = GgmlType::from_id(id) {
                assert!(
                    ggml_type.block_bytes() > 0
                        && GgmlType::known().contains(&ggml_type.to_string())
                );
            }
        }
        assert_eq!(
            GgmlType::known(),
            "F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16"
        );
    }

    #[test]
    fn plain_floats() {
        assert_eq!(dequantize(GgmlType::F32, &1.5_f32.to_le_bytes()), [1.5]);
        assert_eq!(
            dequantize(GgmlType::F16, &f16::from_f32(-0.25).to_le_bytes()),
            [-0.25]
        );
        assert_eq!(
            dequantize(GgmlType::Bf16, &half::bf16::from_f32(3.0).to_le_bytes()),
            [3.0]
        );
    }

    #[test]
    fn legacy_blocks() {
        check(GgmlType::Q4_0, &[0], |b| {
            low_then_high(&b[2..])
                .iter()
                .map(|q| (i32::from(*q) - 8) as f32 * half_of(b, 0))
                .collect()
        });
        check(GgmlType::Q4_1, &[0, 2], |b| {
            low_then_high(&b[4..])
                .iter()
                .map(|q| f32::from(*q) * half_of(b, 0) + half_of(b, 2))
                .collect()
        });
        check(GgmlType::Q5_0, &[0], |b| {
            with_fifth_bits(&b[6..], &b[2..6])
                .iter()
                .map(|q| (i32::from(*q) - 16) as f32 * half_of(b, 0))
                .collect()
        });
        check(GgmlType::Q5_1, &[0, 2], |b| {
            with_fifth_bits(&b[8..], &b[4..8])
                .iter()
                .map(|q| f32::from(*q) * half_of(b, 0) + half_of(b, 2))
                .collect()
        });
        check(GgmlType::Q8_0, &[0], |b| {
            b[2..]
                .iter()
                .map(|q| f32::from(*q as i8) * half_of(b, 0))
                .collect()
        });
    }

    #[test]
    fn k_blocks_of_4_and_5_bits() {
        check(GgmlType::Q4K, &[0, 2], |b| {
            let scales = scales(&b[4..16]);
            b[16..]
                .chunks(32)
                .flat_map(low_then_high)
                .enumerate()
                .map(|(i, q)| {
                    let (scale, min) = scales[i / 32];
                    half_of(b, 0) * scale * f32::from(q) - half_of(b, 2) * min
                })
                .collect()
        });
        check(GgmlType::Q5K, &[0, 2], |b| {
            let scales = scales(&b[4..16]);
            b[48..]
                .chunks(32)
                .flat_map(low_then_high)
                .enumerate()
                .map(|(i, q)| {
                    let fifth = if b[16 + i % 32] & (1 << (i / 32)) == 0 {
                        0
                    } else {
                        16
                    };
                    let (scale, min) = scales[i / 32];
                    half_of(b, 0) * scale * f32::from(q + fifth) - half_of(b, 2) * min
                })
                .collect()
        });
    }

    #[test]
    fn k_blocks_of_6_bits() {
        check(GgmlType::Q6K, &[208], |b| {
            let mut values = vec![0.0; 256];
            for half in 0..2 {
                let (ql, qh, sc) = (&b[64 * half..], &b[128 + 32 * half..], &b[192 + 8 * half..]);
                for l in 0..32 {
                    let codes = [
                        (ql[l] & 0xf) | ((qh[l] & 3) << 4),
                        (ql[l + 32] & 0xf) | (((qh[l] >> 2) & 3) << 4),
                        (ql[l] >> 4) | (((qh[l] >> 4) & 3) << 4),
                        (ql[l + 32] >> 4) | (((qh[l] >> 6) & 3) << 4),
                    ];
                    for (quarter, code) in codes.into_iter().enumerate() {
                        let scale = f32::from(sc[l / 16 + 2 * quarter] as i8);
                        values[128 * half + 32 * quarter + l] =
                            half_of(b, 208) * scale * (i32::from(code) - 32) as f32;
                    }
                }
            }
            values
        });
    }
}
