#!/usr/bin/env bash
# transformers 5.24.0 with gptqmodel 7.7.0, optimum 2.3.0 and torch 2.15.0, on a CPU.
# A Mixture-of-Experts model (Qwen3-MoE) that gptqmodel has quantized loads in transformers without an error, and its experts are drawn
# at random: the folder has a packed linear an expert (`experts.0.gate_proj.qweight`), the model one tensor of all
# (`experts.gate_up_proj`), which nothing fills. A report lists the names as unexpected and missing; the model runs. gptqmodel's own
# loader has all experts.
# Seen: two loads of one folder have the same attention and other experts, about equally large.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 transformers==5.24.0 gptqmodel==7.7.0 optimum==2.3.0 accelerate==1.15.0 numpy
# gptqmodel leaves logs where it runs, and asks for more workers than two cores have.
cd "$folder"
export HF_HUB_OFFLINE=1 GPTQMODEL_CPU_WORKERS=2 CUDA_VISIBLE_DEVICES=''
"$folder/venv/bin/python" - >"$folder/log" 2>&1 <<'PYTHON' || { tail -n 20 "$folder/log"; exit 1; }
import torch
from gptqmodel import GPTQModel
from gptqmodel.quantization.config import RTNConfig
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

torch.manual_seed(0)
config = Qwen3MoeConfig(vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
                        num_key_value_heads=4, head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained("model")
words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
PreTrainedTokenizerFast(tokenizer_object=words, eos_token="a", pad_token="b").save_pretrained("model")
made = GPTQModel.load("model", RTNConfig(bits=4, group_size=32, offload_to_disk=False), device="cpu")
made.quantize(calibration=None)
made.save("made")
PYTHON
# Another process: gptqmodel's own loader changes the classes of transformers.
"$folder/venv/bin/python" - >>"$folder/log" 2>&1 <<'PYTHON' || { tail -n 20 "$folder/log"; exit 1; }
import torch
from transformers import AutoModelForCausalLM


def loaded(seed):
    torch.manual_seed(seed)
    layer = AutoModelForCausalLM.from_pretrained("made", dtype=torch.float16).model.layers[0]
    return layer.self_attn.o_proj.dequantize_weight().float(), layer.mlp.experts.gate_up_proj.float()


(attention, experts), (attention_again, experts_again) = loaded(1), loaded(2)
difference = ((experts - experts_again).abs().mean() / experts.abs().mean()).item()
print(f"result: two loads have the same attention: {torch.equal(attention, attention_again)}; "
      f"their experts differ by {difference:.2f} of their mean size")
assert torch.equal(attention, attention_again), "the attention differs, too"
assert difference > 0.5, "experts are loaded now"
PYTHON
grep '^result' "$folder/log"
