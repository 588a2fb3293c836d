#!/usr/bin/env python3
"""Makes awq-core/tests/pickled: checkpoints as PyTorch pickles them, of tensors that lie beside them as safetensors.

    python3 -m venv venv && venv/bin/pip install torch safetensors
    venv/bin/python scripts/make-pickled-fixtures.py

`llama-single` and `llama-sharded` are the fixture llama-tiny, in bf16 in one file and in f32 in two. `opt` is opt-tiny the way
facebook/opt-125m is stored: f16, names without `model.`, and the tied head a second name of the embedding's storage. `views`
holds tensors that are not all of their storage in row-major order, and types that no weight has; `expected.safetensors` is a
copy of each that is.
"""

import collections
import json
import pathlib

import safetensors.torch
import torch

TESTS = pathlib.Path(__file__).resolve().parent.parent / "awq-core" / "tests"
FIXTURES, PICKLED = TESTS / "fixtures", TESTS / "pickled"


def save(tensors, name):
    """Writes a state dict, which has the versions of its modules as an attribute."""
    state = collections.OrderedDict(tensors)
    state._metadata = collections.OrderedDict([("", {"version": 1})])
    file = PICKLED / name
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)


def llama():
    tensors = safetensors.torch.load_file(FIXTURES / "llama-tiny" / "model.safetensors")
    save({name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}, "llama-single/pytorch_model.bin")
    names = sorted(tensors)
    half = len(names) // 2
    homes = {}
    for shard, part in enumerate([names[:half], names[half:]], start=1):
        file = f"pytorch_model-{shard:05}-of-00002.bin"
        save({name: tensors[name].float() for name in part}, f"llama-sharded/{file}")
        homes |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(4 * tensor.numel() for tensor in tensors.values())}, "weight_map": homes}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (PICKLED / "llama-sharded" / "pytorch_model.bin.index.json").write_text(text)


def opt():
    tensors = safetensors.torch.load_file(FIXTURES / "opt-tiny" / "model.safetensors")
    halves = {name.removeprefix("model."): tensor.half() for name, tensor in tensors.items()}
    save(halves | {"lm_head.weight": halves["decoder.embed_tokens.weight"]}, "opt/pytorch_model.bin")


def views():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 10, generator=generator)
    tensors = {
        "whole": matrix,
        "transposed": matrix.t(),
        "rows": matrix[2:5],
        "columns": matrix[:, 3:7],
        "stepped": matrix[1::2, ::3],
        "permuted": torch.randn(2, 3, 4, generator=generator).permute(2, 0, 1),
        "half": matrix.half().t(),
        "bf16": matrix.bfloat16()[:, 1:],
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(3, 0),
        "double": matrix.double()[:1],
        "ids": torch.arange(5)[1:],
        "mask": torch.tensor([True, False]),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "words": torch.tensor([1, 2], dtype=torch.uint16),
        "fp8": torch.ones(4).to(torch.float8_e4m3fn),
    }
    save(tensors, "views/pytorch_model.bin")
    copies = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    versions = {"made_with": f"torch {torch.__version__}"}
    safetensors.torch.save_file(copies, PICKLED / "views" / "expected.safetensors", metadata=versions)


if __name__ == "__main__":
    llama()
    opt()
    views()
