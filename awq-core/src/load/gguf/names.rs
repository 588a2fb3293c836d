//! GGUF tensor names to Hugging Face names, and llama.cpp's order of the rows of q and k.

/// What GGUF calls the parts of a block, and what Hugging Face calls them.
pub(super) const BLOCK_PARTS: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// What stands outside the blocks.
pub(super) const MODEL_PARTS: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// `blk.0.attn_q.weight` is `model.layers.0.self_attn.q_proj.weight`; `None` for a tensor of no known layer.
pub(super) fn hugging_face_name(gguf_name: &str) -> Option<String> {
    let (part, kind) = gguf_name.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") {
        return None;
    }
    if let Some(in_block) = part.strip_prefix("blk.") {
        let (block_idx, part) = in_block.split_once('.')?;
        let block_idx: usize = block_idx.parse().ok()?;
        let (_, name) = BLOCK_PARTS.iter().find(|(gguf, _)| *gguf == part)?;
        return Some(format!("model.layers.{block_idx}.{name}.{kind}"));
    }
    let (_, name) = MODEL_PARTS.iter().find(|(gguf, _)| *gguf == part)?;
    Some(format!("{name}.{kind}"))
}

/// Rotary frequencies of a block, which converters of 2023 took along from `rotary_emb.inv_freq`: they follow from the
/// configuration.
pub(super) fn is_rotary_buffer(gguf_name: &str) -> bool {
    gguf_name.starts_with("blk.") && gguf_name.ends_with(".attn_rot_embd.weight")
}

/// Puts the rows of `values: [n_heads * head_dim, row_len]` back into Hugging Face order.
///
/// llama.cpp stores the rows of q and k of its `llama` architecture so that the two members of a rotary pair are
/// neighbours (rows `2j` and `2j + 1` of a head); in Hugging Face order they are half a head apart (rows `j` and
/// `j + head_dim / 2`).
pub(super) fn interleaved_rows_to_halves<T: Clone>(values: &[T], n_heads: usize, row_len: usize) -> Vec<T> {
    let n_rows = values.len() / row_len;
    let head_dim = n_rows / n_heads;
    assert!(head_dim * n_heads == n_rows && head_dim.is_multiple_of(2), "{n_rows} rows, {n_heads} heads");
    let mut ordered = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * row_len) {
        for parity in 0..2 {
            for pair in head.chunks_exact(2 * row_len) {
                ordered.extend_from_slice(&pair[parity * row_len..][..row_len]);
            }
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_hugging_face() {
        for (gguf, expected) in [
            ("blk.0.attn_q.weight", Some("model.layers.0.self_attn.q_proj.weight")),
            ("blk.12.attn_k.bias", Some("model.layers.12.self_attn.k_proj.bias")),
            ("blk.3.attn_output.weight", Some("model.layers.3.self_attn.o_proj.weight")),
            ("blk.3.ffn_norm.weight", Some("model.layers.3.post_attention_layernorm.weight")),
            ("token_embd.weight", Some("model.embed_tokens.weight")),
            ("output_norm.weight", Some("model.norm.weight")),
            ("output.weight", Some("lm_head.weight")),
            ("blk.0.ffn_gate_exps.weight", None),
            ("blk.x.attn_q.weight", None),
            ("blk.0.attn_q.scale", None),
            ("rope_freqs.weight", None),
        ] {
            assert_eq!(hugging_face_name(gguf).as_deref(), expected, "{gguf}");
        }
    }

    #[test]
    fn rows_of_each_head_part_into_halves() {
        // Two heads of 4 rows, two columns; the value names the row. Head 0 holds pairs (0, 1), (2, 3).
        let rows: Vec<f32> = (0..8).flat_map(|row| [row as f32, row as f32 + 0.5]).collect();
        let ordered = interleaved_rows_to_halves(&rows, 2, 2);
        let order: Vec<f32> = ordered.chunks(2).map(|row| row[0]).collect();
        assert_eq!(order, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert!(ordered.chunks(2).all(|row| row[1] == row[0] + 0.5));
    }
}
