#!/usr/bin/env python3
"""Makes the tiny checkpoints below awq-core/tests/tools: a model quantized and saved by each of four libraries, and what the library
itself restores of the weights.

    python3 -m venv venv
    venv/bin/pip install transformers==5.24.0 torch==2.15.0 accelerate bitsandbytes==0.50.2 torchao==0.18.0 optimum-quanto==0.2.7 \
        hqq==0.2.8.post1 ninja safetensors
    venv/bin/python scripts/make-tool-fixtures.py [NAME ...]

One folder a format: config.json and model.safetensors as the library writes them, and expected.safetensors with `ids` and `logits` of the
restored weights in f32, and in its metadata the sha256 of each restored weight (f32, little-endian, zeros
without their signs), as `sha256 NAME`.
"""

import hashlib
import pathlib
import shutil
import sys

import safetensors.torch
import torch
import transformers
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.functional import dequantize_blockwise, int8_vectorwise_dequant
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from hqq.models.hf.base import AutoHQQHFModel
from optimum.quanto import QuantizedModelForCausalLM, qfloat8, qint2, qint4, qint8
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig
from torchao.quantization.granularity import PerGroup
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, TorchAoConfig

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "awq-core" / "tests" / "tools"
N_SEQUENCES, SEQ_LEN, VOCAB = 2, 16, 32
# Blocks of 64 cross rows of 72 weights, and the last one of a matrix may end short.
CONFIG = LlamaConfig(
    vocab_size=VOCAB, hidden_size=72, intermediate_size=160, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=32, tie_word_embeddings=False,
)


def base_model(folder, generator):
    """A model of random weights in bf16, saved."""
    model = AutoModelForCausalLM.from_config(CONFIG).to(torch.bfloat16)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 1.5 / parameter.shape[-1] ** 0.5 if parameter.dim() == 2 else 0.3
        parameter.data = (noise * scale + (1 if parameter.dim() == 1 else 0)).to(torch.bfloat16)
    model.save_pretrained(folder)


def by_transformers(settings):
    def save(base, folder):
        model = AutoModelForCausalLM.from_pretrained(
            base, quantization_config=settings, device_map="cpu", dtype=torch.bfloat16
        )
        model.save_pretrained(folder)
        return model

    return save


def bitsandbytes(**settings):
    return by_transformers(BitsAndBytesConfig(**settings))


def torchao(settings):
    return by_transformers(TorchAoConfig(settings))


def quanto(weights):
    def save(base, folder):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        quantized = QuantizedModelForCausalLM.quantize(model, weights=weights, exclude="lm_head")
        quantized.save_pretrained(folder)
        return model

    return save


def hqq(bits, group_size, axis):
    def save(base, folder):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        settings = BaseQuantizeConfig(nbits=bits, group_size=group_size, axis=axis)
        AutoHQQHFModel.quantize_model(model, settings, compute_dtype=torch.bfloat16, device="cpu")
        AutoHQQHFModel.save_to_safetensors(model, str(folder))
        return model

    return save


FORMATS = {
    "bitsandbytes-nf4": bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bitsandbytes-nf4-nested": bitsandbytes(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
    # Bytes of codes under another type's name.
    "bitsandbytes-fp4-in-bf16": bitsandbytes(
        load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_quant_storage=torch.bfloat16
    ),
    "bitsandbytes-int8": bitsandbytes(load_in_8bit=True),
    "torchao-int8": torchao(Int8WeightOnlyConfig()),
    "torchao-int4-in-int8": torchao(IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(8))),
    "torchao-fp8": torchao(Float8WeightOnlyConfig()),
    "quanto-int2": quanto(qint2),
    "quanto-int4": quanto(qint4),
    "quanto-int8": quanto(qint8),
    "quanto-fp8": quanto(qfloat8),
    "hqq-2": hqq(2, 24, 1),
    # Groups of a number that no word of ten codes divides.
    "hqq-3": hqq(3, 24, 1),
    "hqq-4": hqq(4, 24, 1),
    # A group is a column of the matrix of groups.
    "hqq-4-columns": hqq(4, 72, 0),
    "hqq-1-columns": hqq(1, 72, 0),
    "hqq-8": hqq(8, 72, 1),
}


def of_four_bits(codes, state):
    """By the library's implementation in tensor operations: its own kernel for CPUs takes blocks of rows of 160 for others."""
    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    codes = codes.view(torch.uint8).reshape(-1)
    return _dequantize_4bit_compute(codes, scales.float(), state.code, state.blocksize, state.shape, state.dtype)


def restored(module):
    """The weight that a module computes with, as its library restores it; None for one that is not quantized."""
    if isinstance(module, HQQLinear):
        return module.dequantize()
    weight = getattr(module, "weight", None)
    kind = type(weight).__name__
    if kind == "Params4bit":
        return of_four_bits(weight.data, weight.quant_state)
    if kind == "Int8Params":
        return int8_vectorwise_dequant(weight.data, weight.SCB)
    if weight is not None and type(weight) is not torch.nn.Parameter and hasattr(weight, "dequantize"):
        return weight.dequantize()
    data = getattr(weight, "data", None)
    if data is not None and type(data) is not torch.Tensor and hasattr(data, "dequantize"):
        return data.dequantize()
    return None


def sha256(tensor):
    """Of the values, zeros without their signs."""
    return hashlib.sha256((tensor.detach().float() + 0.0).contiguous().numpy().tobytes()).hexdigest()


@torch.no_grad()
def make(name, generator, base):
    base_model(base, generator)
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model = FORMATS[name](base, folder)
    for left in ["generation_config.json", "README.md"]:
        (folder / left).unlink(missing_ok=True)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    sums = {}
    for key, module in model.named_modules():
        weight = restored(module)
        if weight is not None:
            plain.get_submodule(key).weight.data = weight.float().reshape(plain.get_submodule(key).weight.shape)
            sums[f"sha256 {key}.weight"] = sha256(weight)
    ids = torch.randint(0, VOCAB, (N_SEQUENCES, SEQ_LEN), generator=generator)
    expected = {"ids": ids.to(torch.int32), "logits": plain(ids).logits.float().contiguous()}
    safetensors.torch.save_file(expected, folder / "expected.safetensors", metadata=sums)
    print(f"{name}: {len(sums)} weights, logits {expected['logits'].min():.2f} to {expected['logits'].max():.2f}")


def main(names):
    base = FOLDER / "base"
    for seed, name in enumerate(FORMATS):
        if not names or name in names:
            make(name, torch.Generator().manual_seed(3000 + seed), base)
    shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main(sys.argv[1:])
