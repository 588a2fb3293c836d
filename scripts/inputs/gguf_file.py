"""A model as a GGUF file, laid out as llama.cpp's converter does."""

import json

import gguf
import numpy as np

PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
NORMAL, CONTROL = 1, 3


def write(file, made, tokens, architecture="llama", keys=None, tensors=None, adds_bos=False, theta=10000.0):
    """`keys` is called with the writer; `tensors` is a function from the arrays to those that are written."""
    facts = made.config
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_block_count(facts.num_hidden_layers)
    writer.add_context_length(facts.max_position_embeddings)
    writer.add_embedding_length(facts.hidden_size)
    writer.add_feed_forward_length(facts.intermediate_size)
    writer.add_head_count(facts.num_attention_heads)
    writer.add_head_count_kv(facts.num_key_value_heads)
    writer.add_layer_norm_rms_eps(facts.rms_norm_eps)
    writer.add_rope_freq_base(theta)
    writer.add_rope_dimension_count(facts.hidden_size // facts.num_attention_heads)
    writer.add_vocab_size(facts.vocab_size)
    _add_tokenizer(writer, tokens, adds_bos)
    if keys:
        keys(writer)
    arrays = {}
    for name, weight in made.state_dict().items():
        if name == "lm_head.weight" and facts.tie_word_embeddings:
            continue
        array = weight.float().numpy()
        if architecture == "llama" and ".q_proj." in name:
            array = _pairs_as_neighbours(array, facts.num_attention_heads)
        if architecture == "llama" and ".k_proj." in name:
            array = _pairs_as_neighbours(array, facts.num_key_value_heads)
        arrays[_name(name)] = np.ascontiguousarray(array)
    for name, array in (tensors(arrays) if tensors else arrays).items():
        # Weights are stored whole: f16 holds bf16 values only in part. A pair is bytes and their type.
        bytes_and_type = array if isinstance(array, tuple) else (array, None)
        writer.add_tensor(name, bytes_and_type[0], raw_dtype=bytes_and_type[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer, tokens, adds_bos):
    described = json.loads(tokens.to_str())
    pieces = {index: piece for piece, index in described["model"]["vocab"].items()}
    special = {entry["id"]: entry["content"] for entry in described["added_tokens"]}
    n_tokens = len(pieces | special)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([special.get(index) or pieces[index] for index in range(n_tokens)])
    writer.add_token_types([CONTROL if index in special else NORMAL for index in range(n_tokens)])
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(adds_bos)


def _name(name):
    part, kind = name.rsplit(".", 1)
    if part in OUTSIDE:
        return f"{OUTSIDE[part]}.{kind}"
    _, _, block, part = part.split(".", 3)
    return f"blk.{block}.{PARTS[part]}.{kind}"


def _pairs_as_neighbours(array, n_heads):
    halves = array.reshape(n_heads, 2, array.shape[0] // n_heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)
