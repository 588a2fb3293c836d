#!/usr/bin/env bash
# transformers 5.24.0 with torch 2.15.0 and safetensors 0.8.0, CPU.
# Two shards hold a tensor of the same name, and model.safetensors.index.json names the first of them. transformers takes the
# other one without a word: the index decides which files are opened, not from which of them a tensor comes.
# Seen: the head has the values of the second shard (all 2), not those of the shard that the index names (all 1).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 transformers==5.24.0 safetensors==0.8.0 numpy
HF_HUB_OFFLINE=1 MODEL="$folder/model" "$folder/venv/bin/python" - <<'PYTHON'
import json, os
from pathlib import Path
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

folder = Path(os.environ["MODEL"])
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
model = LlamaForCausalLM(config)
model.save_pretrained(folder)
(folder / "model.safetensors").unlink()
state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
head = torch.ones(64, 32)
rest = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
save_file({"lm_head.weight": head}, folder / first, metadata={"format": "pt"})
save_file(rest | {"lm_head.weight": 2 * head}, folder / second, metadata={"format": "pt"})
index = {"lm_head.weight": first} | {name: second for name in rest}
(folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
values = LlamaForCausalLM.from_pretrained(folder).lm_head.weight.unique().tolist()
print(f"the index names {index['lm_head.weight']} (all 1) for the head; it has the values {values}")
assert values == [2.0], "the index decides now"
PYTHON
