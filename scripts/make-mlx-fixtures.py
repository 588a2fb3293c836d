#!/usr/bin/env python3
"""Makes the checkpoints awq-core/tests/tools/mlx-*: tiny models that mlx-lm has quantized and saved, and what MLX itself restores of them.

    python3 -m venv venv
    venv/bin/pip install "mlx[cpu]==0.32.4" mlx-lm==0.32.2 transformers==5.24.0 torch==2.15.0 safetensors
    venv/bin/python scripts/make-mlx-fixtures.py

The files are those of make-tool-fixtures.py, which has no place for a library that does not live on PyTorch.
"""

import hashlib
import json
import pathlib
import shutil
import tempfile

import mlx.core as mx
import numpy as np
import safetensors.torch
import torch
from mlx_lm import convert
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3MoeConfig

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "awq-core" / "tests" / "tools"
N_SEQUENCES, SEQ_LEN, VOCAB = 2, 16, 32
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip


# Their router is rounded to 8 bits in groups of 64.
EXPERTS = {"hidden_size": 128, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 32}


def other_settings(path, _module):
    """Layers with settings of their own, and one that stays in floats."""
    own = {"down_proj": {"bits": 8, "group_size": 32}, "q_proj": {"bits": 6, "group_size": 32}, "o_proj": {"bits": 5, "group_size": 32}}
    last = path.split(".")[-1]
    return False if last == "up_proj" else own.get(last, True)


FORMATS = {
    "mlx-4": ({"q_bits": 4}, {"tie_word_embeddings": False}),
    # Codes cross bytes and words.
    "mlx-3": ({"q_bits": 3}, {"tie_word_embeddings": False}),
    "mlx-4-experts": ({"q_bits": 4}, EXPERTS),
    "mlx-mixed": ({"q_bits": 2, "quant_predicate": other_settings, "dtype": "float16"}, {"tie_word_embeddings": True}),
}


def base_model(folder, generator, settings):
    config = Qwen3MoeConfig if "num_experts" in settings else LlamaConfig
    model = AutoModelForCausalLM.from_config(config(**SIZES | {"tie_word_embeddings": False} | settings)).to(torch.bfloat16)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 1.5 / parameter.shape[-1] ** 0.5 if parameter.dim() == 2 else 0.3
        parameter.data = (noise * scale + (1 if parameter.dim() == 1 else 0)).to(torch.bfloat16)
    model.save_pretrained(folder)
    # mlx-lm reads these under their names of before.
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "rope_theta": 10000.0, **saved}))
    words = Tokenizer(models.WordLevel({f"w{token}": token for token in range(VOCAB)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w1").save_pretrained(folder)


def restored(folder):
    """Each weight as MLX restores it, by name."""
    stored = mx.load(str(folder / "model.safetensors"))
    settings = json.loads((folder / "config.json").read_text())["quantization"]
    weights = {}
    for name, codes in stored.items():
        layer = name.removesuffix(".weight")
        if codes.dtype == mx.uint32:
            scales, biases = stored[f"{layer}.scales"], stored[f"{layer}.biases"]
            own = settings | (settings.get(layer) or {})
            values = mx.dequantize(codes, scales, biases, group_size=own["group_size"], bits=own["bits"])
            weights[name] = torch.from_numpy(np.array(values.astype(mx.float32)))
    return weights


def of_experts(weights):
    """With the linears of experts under names of their own, and as transformers has them in memory."""
    apart, together = {}, {}
    for name, value in weights.items():
        before, _, linear = name.removesuffix(".weight").partition(".switch_mlp.")
        if not linear:
            apart[name] = together[name] = value
            continue
        for expert, matrix in enumerate(value):
            apart[f"{before}.experts.{expert}.{linear}.weight"] = matrix
        if linear == "down_proj":
            together[f"{before}.experts.down_proj"] = value
        if linear == "gate_proj":
            up = weights[f"{before}.switch_mlp.up_proj.weight"]
            together[f"{before}.experts.gate_up_proj"] = torch.cat([value, up], 1)
    return apart, together


@torch.no_grad()
def make(name, generator, base):
    settings, shape = FORMATS[name]
    base_model(base, generator, shape)
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    convert(str(base), str(folder), quantize=True, q_group_size=32, **settings)
    for left in folder.iterdir():
        if left.name not in ["config.json", "model.safetensors"]:
            left.unlink()
    weights, in_memory = of_experts(restored(folder))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    floats = {key: value for key, value in safetensors.torch.load_file(folder / "model.safetensors").items() if value.is_floating_point()}
    floats = {key: value.float() for key, value in floats.items() if key in plain.state_dict()}
    unknown = set(in_memory) - set(plain.state_dict())
    assert not unknown, unknown
    plain.load_state_dict(floats | in_memory, strict=False)
    ids = torch.randint(0, VOCAB, (N_SEQUENCES, SEQ_LEN), generator=generator)
    expected = {"ids": ids.to(torch.int32), "logits": plain(ids).logits.float().contiguous()}
    sums = {f"sha256 {key}": hashlib.sha256((value + 0.0).contiguous().numpy().tobytes()).hexdigest() for key, value in weights.items()}
    safetensors.torch.save_file(expected, folder / "expected.safetensors", metadata=sums)
    print(f"{name}: {len(sums)} weights, logits {expected['logits'].min():.2f} to {expected['logits'].max():.2f}")


def main():
    with tempfile.TemporaryDirectory() as work:
        for seed, name in enumerate(FORMATS):
            make(name, torch.Generator().manual_seed(4100 + seed), pathlib.Path(work) / name)


if __name__ == "__main__":
    main()
