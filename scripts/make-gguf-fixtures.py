#!/usr/bin/env python3
"""Makes what the GGUF reader takes from PyPI's gguf: the codebooks of the IQ types, and blocks of every type with their values.

    python3 -m venv venv && venv/bin/pip install gguf==0.19.0 safetensors
    venv/bin/python scripts/make-gguf-fixtures.py

`awq-core/src/load/gguf/dequant/grids.bin` holds the codebooks, 16 bits a row (see codebooks.rs). Of every block type
`awq-core/tests/data/gguf-blocks.safetensors` has `ID.NAME.blocks` [n_blocks, bytes] (u8), random bytes whose scales go from the
smallest denormal to the largest f16, of both signs; `ID.NAME.values` [5, block_len] (f32), what gguf makes of the first ones; and
`ID.NAME.sha256`, the digest of the values of all, which are so many that nearly every row of a codebook is met.
"""

import hashlib
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants
from safetensors.numpy import save_file

CORE = pathlib.Path(__file__).resolve().parent.parent / "awq-core"
N_WITH_VALUES = 5

# In the order of the constants in codebooks.rs.
GRIDS = [quants.IQ2_XXS, quants.IQ2_XS, quants.IQ2_S, quants.IQ1_S, quants.IQ3_XXS, quants.IQ3_S]

# Where f16 scales stand in a block. Of IQ1_M, see `with_scales`; MXFP4 has no f16.
SCALES = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0], Type.Q2_K: [80, 82],
    Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208], Type.IQ2_XXS: [0], Type.IQ2_XS: [0],
    Type.IQ3_XXS: [0], Type.IQ1_S: [0], Type.IQ4_NL: [0], Type.IQ3_S: [0], Type.IQ2_S: [0], Type.IQ4_XS: [0],
    Type.IQ1_M: [], Type.TQ1_0: [52], Type.TQ2_0: [64], Type.MXFP4: [],
}
N_BLOCKS = {Type.IQ1_S: 640, Type.IQ2_S: 320, Type.IQ2_XS: 160, Type.IQ3_S: 80, Type.IQ2_XXS: 80, Type.IQ3_XXS: 40}
# Smallest and largest denormals, the largest number, zeros.
EXTREMES = [0x0001, 0x8001, 0x7BFF, 0xFBFF, 0x03FF, 0x8000, 0x0000]


def packed_grid(cls):
    """Each row of a codebook in 16 bits, the first weight in the lowest ones."""
    cls.init_grid()
    rows = cls.grid.reshape(cls.grid_shape)
    bits = 16 // cls.grid_shape[1]
    codes = np.searchsorted(np.array(cls.grid_map), rows).astype(np.uint16)
    return (codes << (np.arange(cls.grid_shape[1], dtype=np.uint16) * bits)).sum(axis=1).astype("<u2")


def with_scales(block_type, blocks, rng):
    """Blocks whose scales are finite: ordinary ones of both signs, among them the extremes."""
    for index, block in enumerate(blocks):
        for which, at in enumerate(SCALES[block_type]):
            ordinary = np.float16(rng.normal() * 0.02).view(np.uint16)
            is_extreme = index % 2 == 1
            scale = EXTREMES[(index // 2 + which) % len(EXTREMES)] if is_extreme else ordinary
            block[at : at + 2] = np.frombuffer(np.uint16(scale).tobytes(), np.uint8)
        if block_type == Type.IQ1_M:
            scale = EXTREMES[index // 2 % len(EXTREMES)] if index % 2 else int(np.float16(rng.normal() * 0.02).view(np.uint16))
            for word in range(4):
                at = 49 + 2 * word
                block[at] = block[at] & 0x0F | (scale >> (4 * word) & 0x0F) << 4
        if block_type == Type.MXFP4 and index % 2:
            block[0] = [0, 1, 2, 255, 254][index // 2 % 5]
    return blocks


def main():
    rng = np.random.default_rng(0)
    packed = np.concatenate([packed_grid(cls) for cls in GRIDS])
    (CORE / "src/load/gguf/dequant/grids.bin").write_bytes(packed.tobytes())
    tensors = {}
    for block_type in SCALES:
        block_len, block_bytes = gguf.GGML_QUANT_SIZES[block_type]
        shape = (N_BLOCKS.get(block_type, 24), block_bytes)
        blocks = with_scales(block_type, rng.integers(0, 256, shape, dtype=np.uint8), rng)
        with np.errstate(over="ignore"):
            values = quants.dequantize(blocks, block_type).astype("<f4")
        assert values.shape == (shape[0], block_len) and not np.isnan(values).any(), block_type.name
        name = f"{block_type.value}.{block_type.name}"
        tensors[f"{name}.blocks"] = blocks
        tensors[f"{name}.values"] = values[:N_WITH_VALUES].copy()
        tensors[f"{name}.sha256"] = np.frombuffer(hashlib.sha256(values.tobytes()).digest(), np.uint8)
        print(f"{block_type.name}: {shape[0]} blocks, {np.nanmin(values):.3g} to {np.nanmax(values):.3g}")
    made_with = {"made_with": "gguf 0.19.0"}
    save_file(tensors, CORE / "tests/data/gguf-blocks.safetensors", metadata=made_with)


if __name__ == "__main__":
    main()
