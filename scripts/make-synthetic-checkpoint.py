#!/usr/bin/env python3
"""Writes a checkpoint of a Llama shape with random bf16 weights: to measure time and memory where the real one cannot be had.

    scripts/make-synthetic-checkpoint.py llama-2-70b --blocks 2 --out target/synthetic/llama-2-70b

Needs nothing but Python. The tokenizer is that of the bundled model, whose ids all have a row in the embedding. Perplexities of
such a model mean nothing; its blocks are as large, and take as long, as those of the model whose shape it has.
"""

import argparse
import json
import random
import shutil
import struct
from pathlib import Path

# hidden, intermediate, heads, key heads, blocks
SHAPES = {
    "tiny": (256, 704, 8, 4, 2),
    "llama-2-7b": (4096, 11008, 32, 32, 32),
    "llama-2-70b": (8192, 28672, 64, 8, 80),
}
VOCAB_SIZE = 32000
TOKENIZER = Path(__file__).parent.parent / "experiments/assets/bundled/tokenizer.json"
# Bytes that are made at a time.
CHUNK = 1 << 24
# Upper bytes of bf16 numbers of either sign between 1/128 and 1/32.
UPPER = bytes(0x3C if byte < 128 else 0xBC for byte in range(256))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--blocks", type=int, help="fewer blocks than the model has")
    parser.add_argument("--shards", type=int, default=1, help="files to spread the tensors over")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    hidden, intermediate, n_heads, n_kv_heads, n_blocks = SHAPES[args.shape]
    n_blocks = args.blocks or n_blocks
    args.out.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": n_blocks,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 199,
        "torch_dtype": "bfloat16",
    }
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copyfile(TOKENIZER, args.out / "tokenizer.json")
    write_shards(args.out, list(tensors(config)), args.shards)


def tensors(config):
    """Names and shapes, in the order of the file."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    kv_width = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", [VOCAB_SIZE, hidden]
    for block in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{block}"
        yield f"{prefix}.input_layernorm.weight", [hidden]
        yield f"{prefix}.self_attn.q_proj.weight", [hidden, hidden]
        yield f"{prefix}.self_attn.k_proj.weight", [kv_width, hidden]
        yield f"{prefix}.self_attn.v_proj.weight", [kv_width, hidden]
        yield f"{prefix}.self_attn.o_proj.weight", [hidden, hidden]
        yield f"{prefix}.post_attention_layernorm.weight", [hidden]
        yield f"{prefix}.mlp.gate_proj.weight", [intermediate, hidden]
        yield f"{prefix}.mlp.up_proj.weight", [intermediate, hidden]
        yield f"{prefix}.mlp.down_proj.weight", [hidden, intermediate]
    yield "model.norm.weight", [hidden]
    yield "lm_head.weight", [VOCAB_SIZE, hidden]


def write_shards(folder, named, n_shards):
    """One file, or several with an index, as Hugging Face's tools write them."""
    if n_shards == 1:
        write_tensors(folder / "model.safetensors", named)
        return
    per_shard = -(-len(named) // n_shards)
    places = {}
    for index in range(n_shards):
        name = f"model-{index + 1:05}-of-{n_shards:05}.safetensors"
        own = named[index * per_shard : (index + 1) * per_shard]
        write_tensors(folder / name, own, seed=index)
        places |= {tensor: name for tensor, _ in own}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def write_tensors(path, named, seed=0):
    header, offset = {}, 0
    for name, shape in named:
        n_bytes = 2
        for size in shape:
            n_bytes *= size
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + n_bytes]}
        offset += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers = random.Random(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in named:
            start, end = header[name]["data_offsets"]
            if len(shape) == 1:
                # Ones, and eights in one channel of 128: the outliers that AWQ looks for.
                file.write(b"".join(b"\x00\x41" if i % 128 == 0 else b"\x80\x3f" for i in range(shape[0])))
                continue
            for first in range(start, end, CHUNK):
                chunk = bytearray(numbers.randbytes(min(CHUNK, end - first)))
                chunk[1::2] = chunk[1::2].translate(UPPER)
                file.write(chunk)
    print(f"{path}: {(8 + len(text) + offset) / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
