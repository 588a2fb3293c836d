#!/usr/bin/env bash
# nvidia-modelopt 0.47.0 with transformers 5.24.0 and torch 2.15.0, on an x86-64 CPU.
# INT4_AWQ_CFG gives every linear scales of its own, and with `awq_full` clipped ranges; that model is what is evaluated after `quantize`.
# `export_hf_checkpoint` writes another one of a Llama: q, k and v get the mean of their three vectors of scales, so do gate and up, folded
# into the norm before them, and their weights are rounded anew with ranges of their extremes. The scales that were searched and the clipping
# are gone from five linears of seven: after `awq_full` their bytes are those that `awq_lite` exports. Nothing says so, and no score of the
# model before its export is one of the folder. Layers of one input (o, down) are exported as they were, and so are all without AWQ.
# Seen, relative error of the logits (random weights): awq_full 0.27 as evaluated, 0.30 as exported, and 0.30 between both; awq_lite 0.35,
# 0.35 and 0.26; plain rounding 0.42 and 0.42. Weights of q, k, v, gate and up differ by 0.11 to 0.20 of their norm, as much as
# from the unquantized ones.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet nvidia-modelopt==0.47.0 transformers==5.24.0 torch==2.15.0 accelerate==1.15.0 requests==2.34.2 numpy
cd "$folder"
HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES='' venv/bin/python - >"$folder/log" 2>&1 <<'PYTHON' || { tail -n 20 "$folder/log"; exit 1; }
import copy

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

HIDDEN, GROUP = 256, 128
IDS = torch.randint(0, 64, (8, 64), generator=torch.Generator().manual_seed(1))


def model():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=HIDDEN, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, architectures=["LlamaForCausalLM"])
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        # Channels of different sizes, which AWQ has something to do with.
        for layer in made.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.copy_(torch.exp(torch.randn(HIDDEN)))
    return made


def rows_of(model):
    for row in IDS:
        model(row[None])


def of_file(tensors, name):
    """The weight of codes of 4 bits, two outputs in a byte, of scales a group, and of the scales of inputs where there are some."""
    packed, scale = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"].float()
    codes = torch.stack([packed & 15, packed >> 4], 1).reshape(-1, packed.shape[1]).to(torch.int8)
    codes = torch.where(codes > 7, codes - 16, codes)
    return codes * scale.repeat_interleave(GROUP, 1) * tensors.get(f"{name}.pre_quant_scale", 1)


@torch.no_grad()
def errors(method):
    """Of the evaluated and of the exported model, and between them; of the layers of the first block; the file's tensors."""
    settings = copy.deepcopy(mtq.INT4_AWQ_CFG)
    settings["algorithm"] = method
    made, dense, plain = mtq.quantize(model(), settings, rows_of), model(), model()
    expected, evaluated = plain(IDS).logits, made(IDS).logits
    weights = {}
    for name, module in made.named_modules():
        if name.endswith("_proj"):
            scale = getattr(module.input_quantizer, "pre_quant_scale", None)
            weights[name] = module.weight_quantizer(module.weight.detach()) * (1 if scale is None else scale)
    export_hf_checkpoint(made, export_dir=method)
    tensors, state, differences = load_file(f"{method}/model.safetensors"), dense.state_dict(), {}
    for name in state:
        linear = name.removesuffix(".weight")
        if name in tensors:
            state[name].copy_(of_file(tensors, linear) if linear in weights else tensors[name])
    for name, weight in weights.items():
        if name.startswith("model.layers.0."):
            found = state[f"{name}.weight"]
            if not name.endswith(("o_proj", "down_proj")):
                norm = "input_layernorm" if "self_attn" in name else "post_attention_layernorm"
                found = found * getattr(dense.model.layers[0], norm).weight / getattr(plain.model.layers[0], norm).weight
            differences[name[15:]] = ((found - weight).norm() / weight.norm()).item()
    exported = dense(IDS).logits
    return *[((one - other).norm() / expected.norm()).item()
             for one, other in ((evaluated, expected), (exported, expected), (exported, evaluated))], differences, tensors


found = {method: errors(method) for method in ("max", "awq_lite", "awq_full")}
for method, (evaluated, exported, between, differences, _) in found.items():
    layers = ", ".join(f"{name.split('.')[-1]} {value:.2f}" for name, value in differences.items())
    print(f"\nresult: {method}: error of logits evaluated {evaluated:.3f}, exported {exported:.3f}, between them {between:.3f}")
    print(f"result: {method}: differences of weights: {layers}")
shared = [name for name in found["awq_full"][4] if name.endswith(tuple(f"{part}_proj.weight" for part in ("q", "k", "v", "gate", "up")))]
are_equal = [torch.equal(found["awq_full"][4][name], found["awq_lite"][4][name]) for name in shared]
print(f"result: of {len(shared)} matrices of q, k, v, gate and up, {sum(are_equal)} have the same codes by awq_full and by awq_lite")
assert found["max"][2] < 1e-3, "plain rounding is exported otherwise, too"
for method in ("awq_lite", "awq_full"):
    assert found[method][2] > 0.5 * found[method][0], "the exported model is the evaluated one now"
    assert all((value > 0.05) != name.endswith(("o_proj", "down_proj")) for name, value in found[method][3].items()), "it changed"
assert len(shared) == 10 and all(are_equal), "the clipping is exported now"
PYTHON
grep '^result' "$folder/log"
