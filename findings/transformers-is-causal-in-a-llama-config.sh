#!/usr/bin/env bash
# transformers 5.24.0 with torch 2.15.0, CPU.
# `"is_causal": false` in the config.json of a Llama model is obeyed although Llama's own configuration has no such key: the causal
# mask is left out, so that each token sees those after it. Nothing warns. A perplexity of such a folder is not that of a decoder.
# Seen: logits of the first token change by 10.7 when only a later token changes; without the key they do not change.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 transformers==5.24.0 numpy
HF_HUB_OFFLINE=1 MODEL="$folder/model" "$folder/venv/bin/python" - <<'PYTHON'
import json, os
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM

folder = Path(os.environ["MODEL"])
torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                     max_position_embeddings=64, initializer_range=0.5)
LlamaForCausalLM(config).save_pretrained(folder)

def influence_of_a_later_token():
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        one, other = (model(torch.tensor([[5, 9, 11, last]])).logits[0, 0] for last in (3, 40))
    return (one - other).abs().max().item()

plain = influence_of_a_later_token()
keys = json.loads((folder / "config.json").read_text())
(folder / "config.json").write_text(json.dumps(keys | {"is_causal": False}))
unmasked = influence_of_a_later_token()
print(f"change of the first token's logits by a later token: {plain:.2e}, with is_causal false {unmasked:.2e}")
assert plain == 0.0, "a plain Llama looks ahead"
assert unmasked > 0.1, "the key is not obeyed any more"
PYTHON
