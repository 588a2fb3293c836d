#!/usr/bin/env bash
# transformers 5.24.0 with torch 2.15.0, CPU.
# A Falcon model with ALiBi (Falcon-RW) gives other logits with `attn_implementation="eager"` than with "sdpa", the default: the
# biases are added to the causal mask, and eager attention adds them once more.
# Seen: the largest difference of two logits is 0.03 or more, and vanishes without ALiBi.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 transformers==5.24.0 numpy
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import AutoModelForCausalLM, FalconConfig

for alibi in (True, False):
    def model(attention):
        config = FalconConfig(
            vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=alibi, parallel_attn=False,
            multi_query=False, initializer_range=0.3, bias=True,
        )
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()

    eager, sdpa = model("eager"), model("sdpa")
    ids = torch.arange(24)[None]
    with torch.no_grad():
        difference = (eager(ids).logits - sdpa(ids).logits).abs().max().item()
    print(f"alibi={alibi}: the logits differ by {difference:.2g}")
    assert (difference > 0.03) == alibi, "they agree now"
PYTHON
