#!/usr/bin/env bash
# optimum-quanto 0.2.7 with torch 2.15.0, on a CPU.
# A linear with one output, such as the gate of Qwen-MoE's shared expert, is not quantized by `qint4` and `qint2` but stored in more than
# twice its bits: for a matrix of one row the extremes are taken along the other axis, of one value each, so that every value has a scale
# of its own, which is 0, and a shift, which is the value. Beside them its code is stored in a byte. Two rows are quantized as they should
# be.
# Seen: 40 bits a weight and no error where the row was bf16; 4.25 bits and an error of 0.07 of two rows.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 optimum-quanto==0.2.7 ninja==1.13.2 numpy
# quanto builds a part of itself with ninja.
PATH="$folder/venv/bin:$PATH" CUDA_VISIBLE_DEVICES='' "$folder/venv/bin/python" - >"$folder/log" 2>&1 <<'PYTHON' || { tail -n 20 "$folder/log"; exit 1; }
import torch
from optimum.quanto import freeze, qint4, quantize

torch.manual_seed(0)


def stored(n_in, n_out):
    """Bits a weight of what `state_dict` has, the relative error, and the largest scale."""
    model = torch.nn.Sequential(torch.nn.Linear(n_in, n_out, bias=False)).to(torch.bfloat16)
    weight = model[0].weight.detach().clone()
    quantize(model, weights=qint4)
    freeze(model)
    parts = [value for name, value in model.state_dict().items() if ".weight." in name]
    bits = 8 * sum(value.numel() * value.element_size() for value in parts) / weight.numel()
    restored = model[0].weight.dequantize()
    error = (restored - weight).float().norm() / weight.float().norm()
    return bits, error.item(), model[0].weight._scale.abs().max().item()


for n_in, n_out, is_quantized in ((128, 1, False), (128, 2, True)):
    bits, error, scale = stored(n_in, n_out)
    print(f"result: {n_out} x {n_in}: {bits:.2f} bits a weight, relative error {error:.2f}, largest scale {scale:.3f}")
    assert (bits < 9 and error > 0.01 and scale > 0) if is_quantized else (bits, error, scale) == (40, 0, 0), "it changed"
PYTHON
grep '^result' "$folder/log"
