use std::path::Path;

use super::super::names;
use super::opened;
use crate::load::testing::GgufWriter;
use crate::load::{Checkpoint, ModelConfig, SafetensorsCheckpoint};
use crate::model::wiring_of;

/// The model that `tests/suite` compares with transformers, as llama.cpp would store it: the same configuration, the
/// same tensors.
#[test]
fn qwen3_in_gguf_is_the_model_of_its_folder() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/qwen3-tiny");
    let expected = ModelConfig::from_hugging_face(&folder.join("config.json")).unwrap();
    let tensors = SafetensorsCheckpoint::open_folder(&folder).unwrap();
    let key = |name: &str| format!("qwen3.{name}");
    let mut writer = GgufWriter::new().text("general.architecture", "qwen3");
    for (name, value) in [
        ("block_count", expected.n_blocks),
        ("context_length", expected.max_positions),
        ("embedding_length", expected.hidden_size),
        ("feed_forward_length", expected.intermediate_size),
        ("attention.head_count", expected.n_heads),
        ("attention.head_count_kv", expected.n_kv_heads),
        ("attention.key_length", expected.head_dim),
        ("attention.value_length", expected.head_dim),
        ("vocab_size", expected.vocab_size),
    ] {
        writer = writer.u32(&key(name), value as u32);
    }
    writer = writer.f32(&key("attention.layer_norm_rms_epsilon"), 1e-5).f32(&key("rope.freq_base"), 10_000.0);
    let parts = [
        "attn_norm",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_q_norm",
        "attn_k_norm",
        "attn_output",
        "ffn_norm",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ];
    let of_blocks = (0..expected.n_blocks).flat_map(|block_idx| parts.map(|part| format!("blk.{block_idx}.{part}")));
    for part in of_blocks.chain(["token_embd", "output_norm", "output"].map(str::to_owned)) {
        for gguf_name in [format!("{part}.weight"), format!("{part}.bias")] {
            let name = names::hugging_face_name(&gguf_name).unwrap();
            let Some(shape) = tensors.shape(&name) else { continue };
            let shape: Vec<u64> = shape.into_iter().map(|dim| dim as u64).collect();
            writer = writer.f32_tensor(&gguf_name, &shape, &tensors.read_f32(&name).unwrap());
        }
    }
    let opened = opened(&writer);
    let facts = |config: &ModelConfig| {
        let ModelConfig { architecture, head_dim, n_kv_heads, attention_bias, tie_word_embeddings, windows, .. } =
            config;
        (architecture.clone(), *head_dim, *n_kv_heads, *attention_bias, *tie_word_embeddings, windows.clone())
    };
    assert_eq!(facts(&opened.config), facts(&expected));
    assert_eq!(opened.checkpoint.names(), tensors.names());
    for name in tensors.names() {
        assert_eq!(opened.checkpoint.read_f32(&name).unwrap(), tensors.read_f32(&name).unwrap(), "{name}");
    }
    wiring_of(&opened.config, &opened.checkpoint).unwrap();
}
