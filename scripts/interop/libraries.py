"""Quantization libraries that save what they compute with: bitsandbytes, torchao, quanto and HQQ. Each quantizes and saves a model, and
says what it restores of the weights."""

import os
import shutil
import sys
from pathlib import Path

import theirs
import torch
import transformers

# quanto builds a part of itself with ninja.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


class Dense(theirs.Scored):
    """A model in f32 with a library's own restored weights in place of what it has quantized."""

    def __init__(self, model: Path, quantized: torch.nn.Module):
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.folder, self.model = model, load(model, dtype=torch.float32).eval()
        self.n_restored = 0
        with torch.no_grad():
            for name, module in quantized.named_modules():
                weight = restored(module)
                if weight is not None:
                    dense = self.model.get_submodule(name)
                    turned = type(dense).__name__ == "Conv1D"
                    dense.weight.data = (weight.T if turned else weight).float().contiguous().reshape(dense.weight.shape)
                    self.n_restored += 1
        if self.n_restored == 0:
            raise RuntimeError("the library has quantized nothing")

    def hashes(self) -> dict[str, str]:
        """sha256 of each tensor in f32; a head that is tied to the embedding has its name here as well."""
        return {name: theirs.sha256(parameter) for name, parameter in self.model.named_parameters()}


def restored(module: torch.nn.Module) -> torch.Tensor | None:
    """The weight that a module computes with, by its library's own code; `None` for one that is not quantized."""
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    from bitsandbytes.functional import dequantize_blockwise, int8_vectorwise_dequant

    if type(module).__name__ == "HQQLinear":
        return module.dequantize()
    weight = getattr(module, "weight", None)
    kind = type(weight).__name__
    if kind == "Params4bit":
        # Its kernel for CPUs takes other scales where rows are no multiple of a block long.
        state = weight.quant_state
        scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
        codes = weight.data.view(torch.uint8).reshape(-1)
        return _dequantize_4bit_compute(codes, scales.float(), state.code, state.blocksize, state.shape, state.dtype)
    if kind == "Int8Params":
        return int8_vectorwise_dequant(weight.data, weight.SCB)
    for held in (weight, getattr(weight, "data", None)):
        if held is not None and type(held) not in (torch.nn.Parameter, torch.Tensor) and hasattr(held, "dequantize"):
            return held.dequantize()
    return None


def by_transformers(settings):
    """Quantized, saved and loaded again by transformers."""

    def make(model: Path, out: Path) -> torch.nn.Module:
        load = transformers.AutoModelForCausalLM.from_pretrained
        load(model, quantization_config=settings(), device_map="cpu", dtype=torch.bfloat16).save_pretrained(out)
        return load(out, device_map="cpu", dtype=torch.bfloat16)

    return make


def by_quanto(weights: str):
    def make(model: Path, out: Path) -> torch.nn.Module:
        import optimum.quanto as quanto

        dense = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        quantized = quanto.QuantizedModelForCausalLM.quantize(dense, weights=getattr(quanto, weights), exclude="lm_head")
        quantized.save_pretrained(out)
        return dense

    return make


def by_hqq(bits: int, group_size: int, axis: int = 1):
    def make(model: Path, out: Path) -> torch.nn.Module:
        from hqq.core.quantize import BaseQuantizeConfig
        from hqq.models.hf.base import AutoHQQHFModel

        dense = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        settings = BaseQuantizeConfig(nbits=bits, group_size=group_size, axis=axis)
        AutoHQQHFModel.quantize_model(dense, settings, compute_dtype=torch.bfloat16, device="cpu")
        AutoHQQHFModel.save_to_safetensors(dense, str(out))
        return dense

    return make


def bitsandbytes(**settings):
    return by_transformers(lambda: transformers.BitsAndBytesConfig(**settings))


def torchao(name: str, **settings):
    def config():
        import torchao.quantization as library
        from torchao.quantization.granularity import PerGroup

        if "group_size" in settings:
            return transformers.TorchAoConfig(getattr(library, name)(weight_dtype=torch.int4, granularity=PerGroup(settings["group_size"])))
        return transformers.TorchAoConfig(getattr(library, name)())

    return by_transformers(config)


# What is said of it, its package, and what makes the folder.
FOLDERS = [
    ("bitsandbytes: NF4", "bitsandbytes", bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    (
        "bitsandbytes: NF4, nested scales", "bitsandbytes",
        bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    ),
    ("bitsandbytes: 8 bit", "bitsandbytes", bitsandbytes(load_in_8bit=True)),
    ("torchao: Int8WeightOnlyConfig", "torchao", torchao("Int8WeightOnlyConfig")),
    ("torchao: IntxWeightOnlyConfig, int4 in bytes, groups of 32", "torchao", torchao("IntxWeightOnlyConfig", group_size=32)),
    ("quanto: qint4", "optimum-quanto", by_quanto("qint4")),
    ("quanto: qint8", "optimum-quanto", by_quanto("qint8")),
    ("hqq: 4 bit, groups of 64", "hqq", by_hqq(4, 64)),
    ("hqq: 3 bit, groups of 64", "hqq", by_hqq(3, 64)),
]  # fmt: skip


# Folders of families whose linears lie otherwise than those of Llama, or are more of them.
OF_FAMILIES = {
    "gpt2": [folder for folder in FOLDERS if folder[0] in ("bitsandbytes: NF4", "bitsandbytes: 8 bit")],
    "mixtral": [folder for folder in FOLDERS if folder[0] == "hqq: 4 bit, groups of 64"],
    "qwen2_moe": [folder for folder in FOLDERS if folder[0] in ("quanto: qint4", "hqq: 4 bit, groups of 64")],
}


def into_here(table, program, name: str, model: Path, text: Path, work: Path, sizes, folders) -> None:
    """A row a folder: what the library restores and what is read here."""
    for index, (what, package, make) in enumerate(folders):
        out = work / f"{name}-library-{index}"

        def numbers(make=make, out=out):
            dense = Dense(model, make(model, out))
            for file in ["tokenizer.json", "tokenizer_config.json"]:
                shutil.copy(model / file, out / file)
            there, here = dense.hashes(), program.hashes(out)
            if name in OF_FAMILIES:
                # A tensor that holds several linears has no name of its own here.
                there = {name: digest for name, digest in there.items() if name in here}
            different = [name for name in sorted(there) if here.get(name) != there[name]]
            if different:
                print(f"differ: {different[:4]}", flush=True)
            perplexity = dense.measured(theirs.ids_of(model, text), *sizes)
            return len(there) - len(different), len(there), (perplexity, "dense"), program.perplexity(out, text, *sizes)

        if not table.has("in", what, name):
            table.add("in", what, f"{package} {theirs.version(package)}", name, numbers)
