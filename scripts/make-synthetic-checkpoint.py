#!/usr/bin/env python3
"""Writes a checkpoint of a known shape with random bf16 weights: to measure time and memory where the real one cannot be had.

    scripts/make-synthetic-checkpoint.py llama-2-70b --blocks 2 --out target/synthetic/llama-2-70b
    scripts/make-synthetic-checkpoint.py qwen3-30b-a3b --blocks 2 --experts 32 --out target/synthetic/qwen3-moe

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
    "mixtral-8x7b": (4096, 14336, 32, 8, 32),
    # Half as wide: a Hessian of the inputs of its down projections takes 0.2 GB in place of 0.8.
    "mixtral-half": (2048, 7168, 16, 4, 32),
    "qwen3-30b-a3b": (2048, 768, 32, 4, 48),
}
# Class, experts, experts a token, width of a head where it does not follow from the others, and what experts are called.
EXPERTS = {
    "mixtral-8x7b": ("MixtralForCausalLM", 8, 2, None, "block_sparse_moe", ("w1", "w3", "w2")),
    "mixtral-half": ("MixtralForCausalLM", 8, 2, None, "block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3-30b-a3b": ("Qwen3MoeForCausalLM", 128, 8, 128, "mlp", ("gate_proj", "up_proj", "down_proj")),
}
TYPES = {"MixtralForCausalLM": "mixtral", "Qwen3MoeForCausalLM": "qwen3_moe"}
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
    parser.add_argument("--experts", type=int, help="of each block, where the shape has experts")
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
    if args.shape in EXPERTS:
        architecture, n_experts, n_used, head_dim, _, _ = EXPERTS[args.shape]
        n_experts = args.experts or n_experts
        config |= {"architectures": [architecture], "model_type": TYPES[architecture], "num_experts_per_tok": n_used}
        if architecture.startswith("Mixtral"):
            config |= {"num_local_experts": n_experts}
        else:
            config |= {"num_experts": n_experts, "moe_intermediate_size": intermediate, "head_dim": head_dim, "norm_topk_prob": True}
            config |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.copyfile(TOKENIZER, args.out / "tokenizer.json")
    write_shards(args.out, list(tensors(config, EXPERTS.get(args.shape))), args.shards)


def tensors(config, experts):
    """Names and shapes, in the order of the file."""
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    width, kv_width = (head_dim * config[f"num_{kind}_heads"] for kind in ("attention", "key_value"))
    yield "model.embed_tokens.weight", [VOCAB_SIZE, hidden]
    for block in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{block}"
        yield f"{prefix}.input_layernorm.weight", [hidden]
        yield f"{prefix}.self_attn.q_proj.weight", [width, hidden]
        yield f"{prefix}.self_attn.k_proj.weight", [kv_width, hidden]
        yield f"{prefix}.self_attn.v_proj.weight", [kv_width, hidden]
        yield f"{prefix}.self_attn.o_proj.weight", [hidden, width]
        if config["model_type"].startswith("qwen3"):
            yield f"{prefix}.self_attn.q_norm.weight", [head_dim]
            yield f"{prefix}.self_attn.k_norm.weight", [head_dim]
        yield f"{prefix}.post_attention_layernorm.weight", [hidden]
        module, names, owners = "mlp", ("gate_proj", "up_proj", "down_proj"), [""]
        if experts:
            *_, module, names = experts
            n_experts = config.get("num_local_experts", config.get("num_experts"))
            yield f"{prefix}.{module}.gate.weight", [n_experts, hidden]
            owners = [f"experts.{expert}." for expert in range(n_experts)]
        gate, up, down = names
        for owner in owners:
            yield f"{prefix}.{module}.{owner}{gate}.weight", [intermediate, hidden]
            yield f"{prefix}.{module}.{owner}{up}.weight", [intermediate, hidden]
            yield f"{prefix}.{module}.{owner}{down}.weight", [hidden, intermediate]
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
