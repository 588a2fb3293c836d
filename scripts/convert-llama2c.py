#!/usr/bin/env python3
"""Converts a model of llama2.c (its first format, f32 without a version) and its tokenizer to a Hugging Face folder.

    scripts/convert-llama2c.py stories260K.bin tok512.bin --out target/stories260K

Needs nothing but Python. The file holds seven numbers (width, width of the MLP, blocks, heads, heads of keys, vocabulary, context; a
negative vocabulary has a head of its own) and the weights, all blocks of a kind together. Pairs of a head that rotate together lie side
by side there and half a head apart in Hugging Face's layout, so rows of queries and keys change places.

The tokenizer becomes a SentencePiece model (BPE), which llama2.c's file was made from: its pieces and scores.
"""

import argparse
import array
import json
import struct
from pathlib import Path

# Kinds of pieces of SentencePiece.
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    config, tensors = read_model(args.model)
    (args.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    write_safetensors(args.out / "model.safetensors", tensors)
    pieces = read_pieces(args.tokenizer, config["vocab_size"])
    (args.out / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    tokenizer_config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": True,
    }
    (args.out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1) + "\n")
    print(f"{args.out}: {sum(len(values) for _, values in tensors.values()):,} parameters, {len(pieces)} pieces")


def read_model(path):
    """The configuration, and tensors by name: shape and values."""
    data = path.read_bytes()
    dim, hidden, n_blocks, n_heads, n_kv_heads, vocab, context = struct.unpack_from("<7i", data)
    is_tied, vocab = vocab > 0, abs(vocab)
    values = array.array("f", data[28:])
    head, kv = dim // n_heads, dim // n_heads * n_kv_heads
    position = 0

    def take(*shape):
        nonlocal position
        n = 1
        for length in shape:
            n *= length
        if position + n > len(values):
            raise SystemExit(f"{path}: too short for the sizes that it begins with; is it a model of llama2.c's first format?")
        position += n
        return values[position - n : position]

    def each(rows, columns):
        return [take(rows, columns) for _ in range(n_blocks)]

    tensors = {"model.embed_tokens.weight": ([vocab, dim], take(vocab, dim))}
    norms = [take(dim) for _ in range(n_blocks)]
    q, k, v, o = each(dim, dim), each(kv, dim), each(kv, dim), each(dim, dim)
    mlp_norms = [take(dim) for _ in range(n_blocks)]
    gate, down, up = each(hidden, dim), each(dim, hidden), each(hidden, dim)
    final_norm = take(dim)
    # Cosines and sines, which follow from the positions.
    take(context, head // 2)
    take(context, head // 2)
    if not is_tied:
        tensors["lm_head.weight"] = ([vocab, dim], take(vocab, dim))
    if position != len(values):
        raise SystemExit(f"{path}: {len(values) - position} numbers are left over; is it a model of llama2.c's first format?")
    for block in range(n_blocks):
        name = f"model.layers.{block}"
        tensors |= {
            f"{name}.input_layernorm.weight": ([dim], norms[block]),
            f"{name}.self_attn.q_proj.weight": ([dim, dim], halves(q[block], n_heads, head, dim)),
            f"{name}.self_attn.k_proj.weight": ([kv, dim], halves(k[block], n_kv_heads, head, dim)),
            f"{name}.self_attn.v_proj.weight": ([kv, dim], v[block]),
            f"{name}.self_attn.o_proj.weight": ([dim, dim], o[block]),
            f"{name}.post_attention_layernorm.weight": ([dim], mlp_norms[block]),
            f"{name}.mlp.gate_proj.weight": ([hidden, dim], gate[block]),
            f"{name}.mlp.down_proj.weight": ([dim, hidden], down[block]),
            f"{name}.mlp.up_proj.weight": ([hidden, dim], up[block]),
        }
    tensors["model.norm.weight"] = ([dim], final_norm)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": n_blocks,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": is_tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    return config, tensors


def halves(weight, n_heads, head, dim):
    """Rows 0, 2, 4, ... of each head before rows 1, 3, 5, ..."""
    rows = [index for first in range(0, n_heads * head, head) for odd in (0, 1) for index in range(first + odd, first + head, 2)]
    moved = array.array("f")
    for row in rows:
        moved.extend(weight[row * dim : (row + 1) * dim])
    return moved


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, (shape, values) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * len(values)]}
        at += 4 * len(values)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, values in tensors.values():
            file.write(values.tobytes())


def read_pieces(path, n):
    """Text, score and kind of each piece."""
    data, at, pieces = path.read_bytes(), 4, []
    for index in range(n):
        score, length = struct.unpack_from("<fi", data, at)
        text = data[at + 8 : at + 8 + length]
        at += 8 + length
        if index < 3:
            pieces.append(([b"<unk>", b"<s>", b"</s>"][index], 0.0, [UNKNOWN, CONTROL, CONTROL][index]))
        elif text.startswith(b"<0x") and len(text) == 6:
            pieces.append((text, score, BYTE))
        else:
            pieces.append((text.replace(b" ", "▁".encode()), score, NORMAL))
    return pieces


def sentencepiece_model(pieces):
    """A ModelProto with the fields that encoding needs: pieces (1), the kind of model (2), normalization (3)."""

    def varint(value):
        out = b""
        while value >= 128:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])

    def field(number, payload):
        return varint(number << 3 | 2) + varint(len(payload)) + payload

    def number(number, value):
        return varint(number << 3) + varint(value)

    model = b""
    for text, score, kind in pieces:
        model += field(1, field(1, text) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, kind))
    bpe, byte_fallback = number(3, 2), number(35, 1)
    model += field(2, bpe + byte_fallback)
    # No normalization: a blank in front (3), blanks as they are (4), each as U+2581 (5).
    return model + field(3, field(1, b"identity") + number(3, 1) + number(4, 0) + number(5, 1))


if __name__ == "__main__":
    main()
