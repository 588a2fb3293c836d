#!/usr/bin/env python3
"""Makes the tiny checkpoints below awq-core/tests/tools: models quantized and saved by each of six libraries, and what the library
itself restores of the weights.

    python3 -m venv venv
    venv/bin/pip install transformers==5.24.0 torch==2.15.0 accelerate bitsandbytes==0.50.2 torchao==0.18.0 optimum-quanto==0.2.7 \
        hqq==0.2.8.post1 ninja safetensors gptqmodel==7.7.0 autoawq==0.2.9
    venv/bin/python scripts/make-tool-fixtures.py [NAME ...]

One folder a format: config.json and model.safetensors as the library writes them, and expected.safetensors with `ids` and `logits` of the
restored weights in f32, and in its metadata the sha256 of each restored weight (f32, little-endian, zeros
without their signs), as `sha256 NAME`.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import sys
import tempfile

# On two cores the workers of gptqmodel would be more than there are.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute  # noqa: E402
from bitsandbytes.functional import dequantize_blockwise, int8_vectorwise_dequant  # noqa: E402
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear  # noqa: E402
from hqq.models.hf.base import AutoHQQHFModel  # noqa: E402
from optimum.quanto import QuantizedModelForCausalLM, qfloat8, qint2, qint4, qint8  # noqa: E402
from torchao.quantization import (  # noqa: E402
    Float8WeightOnlyConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
)
from torchao.quantization.granularity import PerGroup  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    TorchAoConfig,
)

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "awq-core" / "tests" / "tools"
N_SEQUENCES, SEQ_LEN, VOCAB = 2, 16, 32
# Blocks of 64 cross rows of 72 weights, and the last one of a matrix may end short.
CONFIG = LlamaConfig(
    vocab_size=VOCAB, hidden_size=72, intermediate_size=160, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=32, tie_word_embeddings=False,
)
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32, "tie_word_embeddings": False,
}  # fmt: skip
GPT2 = GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=64, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
SMALL = {"num_experts": 3, "moe_intermediate_size": 32, "decoder_sparse_step": 1, "shared_expert_intermediate_size": 64}
# Those of folders of other models than that one.
CONFIGS = {
    "bitsandbytes-nf4-gpt2": GPT2,
    "bitsandbytes-int8-gpt2": GPT2,
    "gptqmodel-gpt2": GPT2,
    "gptqmodel-gemma3": Gemma3TextConfig(
        **SIZES | {"num_hidden_layers": 2, "tie_word_embeddings": True}, head_dim=32, query_pre_attn_scalar=32, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    # The gate of its shared expert has one row.
    "quanto-int4-one-row": Qwen2MoeConfig(**SIZES, **SMALL, num_experts_per_tok=2),
    "hqq-4-experts": MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2),
    "autoawq-neox": GPTNeoXConfig(**SIZES | {"intermediate_size": 128}),
}  # fmt: skip


def base_model(folder, generator, config):
    """A model of random weights in bf16, saved."""
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
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


def with_words(folder):
    """Gives a model a tokenizer, without which some tools do not open it."""
    words = Tokenizer(models.WordLevel({f"w{token}": token for token in range(VOCAB)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w1").save_pretrained(folder)


def gptqmodel(base, folder):
    """Rounded to nearest: how its codes lie does not depend on how they were chosen."""
    from gptqmodel import GPTQModel
    from gptqmodel.quantization.config import RTNConfig

    with_words(base)
    model = GPTQModel.load(str(base), RTNConfig(bits=4, group_size=32, offload_to_disk=False), device="cpu")
    model.quantize(calibration=None)
    model.save(str(folder))
    # What is in memory has its zero points as they are saved, less one, until it is loaded.
    return GPTQModel.load(str(folder), device="cpu", dtype=torch.float16).model


def autoawq(base, folder):
    from awq import AutoAWQForCausalLM

    model = AutoAWQForCausalLM.from_pretrained(str(base), device_map="cpu", torch_dtype=torch.float32)
    ids = torch.randint(0, VOCAB, (16, 16), generator=torch.Generator().manual_seed(4000)).tolist()
    config = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    limits = {"max_calib_samples": 16, "max_calib_seq_len": 16}
    # Its search of a clip wants multiples of 64 outputs.
    model.quantize(None, quant_config=config, calib_data=ids, apply_clip=False, **limits)
    model.save_quantized(str(folder))
    return model.model


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
    "bitsandbytes-nf4-gpt2": bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "bitsandbytes-int8-gpt2": bitsandbytes(load_in_8bit=True),
    "gptqmodel-gpt2": gptqmodel,
    "gptqmodel-gemma3": gptqmodel,
    "quanto-int4-one-row": quanto(qint4),
    "hqq-4-experts": hqq(4, 32, 1),
    "autoawq-neox": autoawq,
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
    if type(module).__name__ == "WQLinear_GEMM":
        from awq.utils.packing_utils import dequantize_gemm

        return dequantize_gemm(module.qweight, module.qzeros, module.scales, module.w_bit, module.group_size).T
    if hasattr(module, "dequantize_weight"):
        return module.dequantize_weight().T
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
    base_model(base, generator, CONFIGS.get(name, CONFIG))
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model = FORMATS[name](base, folder)
    for left in folder.iterdir():
        if left.name not in ["config.json", "model.safetensors", "quanto_qmap.json"]:
            left.unlink()
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    # AutoAWQ changes norms and biases as well.
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    floats = {key: value for key, value in stored.items() if value.is_floating_point() and key in plain.state_dict()}
    plain.load_state_dict(floats, strict=False)
    sums = {}
    for key, module in model.named_modules():
        weight = restored(module)
        if type(module).__name__ == "ScaledActivation":
            plain.set_submodule(key, module)
        elif weight is not None:
            turned = type(plain.get_submodule(key)).__name__ == "Conv1D"
            plain.get_submodule(key).weight.data = (weight.T if turned else weight).float().contiguous()
            sums[f"sha256 {key}.weight"] = sha256(weight)
    ids = torch.randint(0, VOCAB, (N_SEQUENCES, SEQ_LEN), generator=generator)
    expected = {"ids": ids.to(torch.int32), "logits": plain(ids).logits.float().contiguous()}
    safetensors.torch.save_file(expected, folder / "expected.safetensors", metadata=sums)
    print(f"{name}: {len(sums)} weights, logits {expected['logits'].min():.2f} to {expected['logits'].max():.2f}")


def main(names):
    # gptqmodel leaves logs where it runs.
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        for seed, name in enumerate(FORMATS):
            if not names or name in names:
                make(name, torch.Generator().manual_seed(3000 + seed), pathlib.Path(work) / f"base-{name}")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main(sys.argv[1:])
