#!/usr/bin/env bash
# bitsandbytes 0.50.2 with torch 2.15.0, on an x86-64 CPU with AVX-512.
# `Linear4bit` takes the scales of other blocks for weights whose rows are a multiple of 16 long and not of the block size, 64: blocks
# run over the flat weight where it is quantized, and not where the CPU's kernel restores it. Rows of 72 and of 128 come out right, and
# so does the library's own implementation in tensor operations.
# Seen: rows of 96 and 160 have more than twice the error of rows of 72 and 128.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 bitsandbytes==0.50.2 numpy
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import bitsandbytes

torch.manual_seed(0)
for n_in, is_right in ((72, True), (128, True), (96, False), (160, False)):
    weight = torch.randn(64, n_in)
    linear = bitsandbytes.nn.Linear4bit(n_in, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    linear.weight = bitsandbytes.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
    linear = linear.to("cpu")
    inputs = torch.randn(32, n_in)
    expected = inputs @ weight.T
    error = ((linear(inputs) - expected).norm() / expected.norm()).item()
    print(f"rows of {n_in}: relative error of the outputs {error:.3f}")
    assert (error < 0.15) == is_right, "it changed"
PYTHON
