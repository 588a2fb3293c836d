#!/usr/bin/env bash
# transformers 5.24.0 with torch 2.15.0, CPU.
# A Llama configuration that carries the key `sliding_window` (as files converted from Mistral do): a forward pass over a whole text
# ignores the key, token-by-token decoding through the default cache obeys it. So the same model gives two different next-token
# scores for one text, depending on how it is run, once the text is longer than the window.
# Seen: largest difference of the last logits 5e-6 without the key, 8.2 with it (a tiny model of random weights).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 transformers==5.24.0 numpy
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

def difference(**more):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                         max_position_embeddings=128, initializer_range=0.5, **more)
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 64, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(ids).logits[0, -1]
        cache = None
        for token in ids[0]:
            step = model(token.view(1, 1), past_key_values=cache, use_cache=True)
            cache = step.past_key_values
        return (whole - step.logits[0, -1]).abs().max().item()

without, with_key = difference(), difference(sliding_window=8)
print(f"largest difference of the last logits: {without:.2e} without the key, {with_key:.2e} with sliding_window = 8")
assert without < 1e-4, "decoding through the cache differs without a window, too"
assert with_key > 0.1, "the two ways of running agree now"
PYTHON
