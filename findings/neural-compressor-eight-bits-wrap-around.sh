#!/usr/bin/env bash
# neural-compressor-pt 3.10 with transformers 5.24.0 and torch 2.15.0, on an x86-64 CPU.
# With free zero points at 8 bits a code lies up to 255 below or above its zero point; its layer keeps the difference in a signed byte as it
# restores the weight. All differences under -128 and over 127 come back with the other sign: in each group whose zero point is not 128
# the weights that are farthest from zero, one in 25 of normal numbers. Codes, scales and zero points are right, and restored by hand
# the weights are. So a model that RTN has quantized to 8 bits with `use_sym=False` is far worse, as it is evaluated there, than at 4 or 3
# bits, and not the one that its codes say.
# Seen, relative error of a linear of normal weights in groups of 32: 0.84 at 8 bits, where 4.0% of weights have the other sign, 0.08 at 4
# and 0.17 at 3; by hand from the same parts 0.005.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet neural-compressor-pt==3.10 transformers==5.24.0 torch==2.15.0 accelerate==1.15.0 numpy
# It leaves a folder where it runs.
cd "$folder"
HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES='' venv/bin/python - >"$folder/log" 2>&1 <<'PYTHON' || { tail -n 20 "$folder/log"; exit 1; }
import torch
from neural_compressor.torch.quantization import RTNConfig, convert, prepare

GROUP = 32
torch.manual_seed(0)
weight = torch.randn(64, 128)


@torch.no_grad()
def restored(bits):
    """The weight that a quantized linear multiplies by, its outputs for the unit vectors; and the one of its codes by hand."""
    model = torch.nn.Sequential(torch.nn.Linear(128, 64, bias=False)).eval()
    model[0].weight.copy_(weight)
    made = convert(prepare(model, RTNConfig(bits=bits, group_size=GROUP, use_sym=False)))
    parts = made[0].unpack()
    scale, zero = (parts[name].float().repeat_interleave(GROUP, 1) for name in ("scales", "zp"))
    return made(torch.eye(128)).T, (parts["int_weight"].float() - zero) * scale


def error(found):
    return ((found - weight).norm() / weight.norm()).item()


found = {bits: restored(bits) for bits in (3, 4, 8)}
for bits, (by_the_layer, by_hand) in found.items():
    print(f"\nresult: {bits} bits: relative error of the layer's weight {error(by_the_layer):.4f}, by hand {error(by_hand):.4f}")
by_the_layer, by_hand = found[8]
is_other = by_the_layer * by_hand < 0
print(f"result: 8 bits: {is_other.float().mean():.4f} of the weights have the other sign")
assert error(by_hand) < 0.01 and error(by_the_layer) > 4 * error(found[4][0]), "it changed"
assert is_other.float().mean() > 0.005, "no sign changes any more"
assert error(found[4][0] - found[4][1] + weight) < 1e-3, "4 bits are restored otherwise"
PYTHON
grep '^result' "$folder/log"
