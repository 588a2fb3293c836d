#!/usr/bin/env bash
# transformers 5.24.0 with torchao 0.18.0 and torch 2.15.0, on a CPU.
# GPT-2 loaded with a TorchAoConfig stays as it is: torchao takes what PyTorch calls a linear, and GPT-2's are transformers' own Conv1D.
# Nothing says so; the model counts as quantized (`is_quantized`, its `quantization_config`), and what it saves says torchao and is a
# little larger than what it was made from. bitsandbytes quantizes the same model.
# Seen: of 8 matrices in blocks 0 have codes by torchao, 8 by bitsandbytes; the saved file has 1.00 times the bytes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 transformers==5.24.0 torchao==0.18.0 bitsandbytes==0.50.2 accelerate==1.15.0 numpy
cd "$folder"
HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES='' "$folder/venv/bin/python" - >"$folder/log" 2>&1 <<'PYTHON' || { tail -n 20 "$folder/log"; exit 1; }
import json
import os

import torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel, TorchAoConfig

torch.manual_seed(0)
config = GPT2Config(vocab_size=64, n_positions=64, n_embd=128, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained("model")


def loaded(settings):
    return AutoModelForCausalLM.from_pretrained("model", quantization_config=settings, device_map="cpu", dtype=torch.bfloat16)


def with_codes(model):
    weights = [getattr(block.get_submodule(name), "weight") for block in model.transformer.h
               for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
    return sum(type(weight) is not torch.nn.Parameter or not weight.is_floating_point() for weight in weights), len(weights)


by_torchao = loaded(TorchAoConfig(Int8WeightOnlyConfig()))
by_bitsandbytes = loaded(BitsAndBytesConfig(load_in_8bit=True))
by_torchao.save_pretrained("saved")
says = json.load(open("saved/config.json"))["quantization_config"]["quant_method"]
ratio = os.path.getsize("saved/model.safetensors") / os.path.getsize("model/model.safetensors")
(n_torchao, n), (n_bitsandbytes, _) = with_codes(by_torchao), with_codes(by_bitsandbytes)
print(f"result: of {n} matrices {n_torchao} have codes by torchao, {n_bitsandbytes} by bitsandbytes; counted as quantized: "
      f"{by_torchao.is_quantized}; what is saved says {says} and has {ratio:.2f} times the bytes")
assert (n_torchao, n_bitsandbytes) == (0, n), "torchao takes them now"
assert by_torchao.is_quantized and says == "torchao" and ratio > 0.99
PYTHON
grep '^result' "$folder/log"
