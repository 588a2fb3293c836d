#!/usr/bin/env python3
"""Makes awq-core/tests/data/nvfp4.json and ternary.json: weights that compressed-tensors quantized to NVFP4 and PyPI's gguf to TQ2_0, with
codes, scales and restored weights.

    pip install torch==2.15.0 compressed-tensors==0.20.1 gguf==0.19.0 numpy
    python scripts/make-table-fixtures.py awq-core/tests/data

Codes are one a weight, counted from the smallest value on (4-bit floats have two zeros; both are code 7). A scale of NVFP4 is what is
stored for its group over what is stored for the matrix. Floats are written as the integers that their bits are. Restored weights are
codes times scales in f32: compressed-tensors rounds them to bf16, and gguf the scales to f16.
"""

import importlib.metadata
import json
import pathlib
import sys

import gguf
import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

VERSIONS = {"torch": "2.15.0", "compressed-tensors": "0.20.1", "gguf": "0.19.0"}
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
# The nibble of each value to its place among all values.
PLACES = torch.tensor([7 + i for i in range(8)] + [7 - i for i in range(8)])


def bits(tensor):
    return torch.as_tensor(tensor).detach().float().contiguous().view(torch.int32).reshape(-1).tolist()


def case(weight, group, codes, scales, values):
    restored = values[codes] * scales.reshape(-1, 1).repeat(1, group).reshape(codes.shape)
    # A zero has no sign here.
    restored = torch.where(codes == len(values) // 2, torch.zeros(()), restored)
    return {
        "shape": list(weight.shape), "group": group, "weight": bits(weight), "codes": codes.reshape(-1).tolist(),
        "scales": bits(scales), "restored": bits(restored),
    }


def nvfp4(weight):
    args = QuantizationArgs(
        num_bits=4, type="float", symmetric=True, dynamic=False, strategy="tensor_group", group_size=16,
        scale_dtype=torch.float8_e4m3fn,
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format="nvfp4-pack-quantized")
    over = generate_gparam(weight.min(), weight.max())
    largest = weight.reshape(weight.shape[0], -1, 16).abs().amax(dim=-1)
    scale, _ = calculate_qparams(-largest, largest, args, over)
    compressor = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
    state = compressor.compress({"weight": weight, "weight_scale": scale, "weight_global_scale": over}, scheme)
    packed = state["weight_packed"].to(torch.int64)
    codes = PLACES[torch.stack([packed & 15, packed >> 4], dim=-1).reshape(weight.shape)]
    stored = state["weight_scale"].float() / state["weight_global_scale"]
    values = torch.tensor([-x for x in reversed(E2M1[1:])] + E2M1)
    return case(weight, 16, codes, stored, values)


def on_bounds():
    """Middles of neighbouring values and their neighbours in f32, in groups whose largest weight is 6."""
    middles = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    below, above = (torch.nextafter(middles, torch.full_like(middles, end)) for end in (-9.0, 9.0))
    rows = [torch.cat([part, -part, torch.tensor([6.0, 448.0 * 0])]) for part in (middles, below, above)]
    row = torch.cat(rows)
    return torch.stack([row, row * 3.0, row * 0.7, row * 1e-3, row * 1e-6])


def ternary(weight):
    packed = gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType.TQ2_0).reshape(-1, 66)
    parts = [(packed[:, :64].reshape(-1, 2, 32) >> shift) & 3 for shift in (0, 2, 4, 6)]
    codes = torch.tensor(np.stack(parts, axis=2).reshape(weight.shape).astype(np.int64))
    scales = weight.reshape(-1, 256).abs().amax(dim=-1)
    stored = torch.tensor(packed[:, 64:].copy().view(np.float16).reshape(-1).astype(np.float32))
    assert torch.equal(scales.half().float(), stored), "a scale is not the largest magnitude"
    return case(weight, 256, codes, scales, torch.tensor([-1.0, 0.0, 1.0]))


def main(folder):
    found = {name: importlib.metadata.version(name).split("+")[0] for name in VERSIONS}
    assert found == VERSIONS, f"found {found}, the fixtures are made with {VERSIONS}"
    generator = torch.Generator().manual_seed(6)
    normal = torch.randn(6, 96, generator=generator) * 0.05
    normal[2, 64:80] = 0.0
    normal[3, 7] = 4.0
    normal[4] *= 1e-6
    halves = torch.randn(3, 512, generator=generator)
    halves[1, :256] = 0.0
    halves[2] = torch.round(2 * halves[2]) / 2
    halves[2, ::256] = 4.0
    halves[2, 1::2] = 2.0
    cases = {"nvfp4": [nvfp4(normal), nvfp4(on_bounds()), nvfp4(torch.zeros(2, 32))], "ternary": [ternary(halves), ternary(-halves), ternary(halves * 0.3)]}
    for name, of_table in cases.items():
        text = json.dumps({"versions": VERSIONS, "cases": of_table}) + "\n"
        (pathlib.Path(folder) / f"{name}.json").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1])
