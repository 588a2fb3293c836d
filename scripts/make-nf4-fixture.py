"""Makes awq-core/tests/data/nf4.json: weights that bitsandbytes quantized to NF4, with its codes, scales and restored weights.

    pip install torch==2.15.0 bitsandbytes==0.50.2
    python scripts/make-nf4-fixture.py awq-core/tests/data/nf4.json

Codes are one a weight. Floats are written as the integers that their bits are: the comparison is bit for bit.
"""

import json
import sys

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit, get_4bit_type, quantize_4bit

VERSIONS = {"torch": "2.15.0", "bitsandbytes": "0.50.2"}
GROUP = 64


def bits(tensor):
    return tensor.detach().float().contiguous().view(torch.int32).reshape(-1).tolist()


def quantized(weight, group):
    packed, state = quantize_4bit(weight, blocksize=group, quant_type="nf4")
    packed = packed.reshape(-1).to(torch.int64)
    codes = torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[: weight.numel()]
    restored = dequantize_4bit(packed.to(torch.uint8).reshape(-1, 1), state)
    return {
        "shape": list(weight.shape),
        "group": group,
        "weight": bits(weight),
        "codes": codes.tolist(),
        "scales": bits(state.absmax),
        "restored": bits(restored),
    }


def on_bounds():
    """Middles of neighbouring values, and their neighbours in f32: where ties and the rounding of 1/absmax show."""
    values = get_4bit_type("nf4", device="cpu")
    middles = (values[1:] + values[:-1]) / 2
    below, above = (torch.nextafter(middles, torch.full_like(middles, end)) for end in (-2.0, 2.0))
    row = torch.cat([middles, below, above, values, torch.ones(3)])
    return torch.stack([row, row * 3.0, row * 0.7, row * 1e-30])


def main(path):
    found = {"torch": torch.__version__.split("+")[0], "bitsandbytes": bitsandbytes.__version__}
    assert found == VERSIONS, f"found {found}, the fixture is made with {VERSIONS}"
    generator = torch.Generator().manual_seed(5)
    normal = torch.randn(6, 192, generator=generator) * 0.05
    normal[2, 64:128] = 0.0
    normal[3, 7] = 4.0
    cases = [quantized(normal, GROUP), quantized(normal, 32), quantized(on_bounds(), GROUP)]
    with open(path, "w") as file:
        json.dump({"versions": VERSIONS, "cases": cases}, file)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
