#!/usr/bin/env bash
# transformers 5.24.0 with gguf 0.19.0 and torch 2.15.0, on a CPU.
# A GGUF file says how positions are rotated in its keys `rope.scaling.type` and `.factor`, and, as llama.cpp's converter writes Llama
# 3.1 and later, in a tensor `rope_freqs.weight` that divides the frequencies. llama.cpp obeys both. transformers drops both without a
# word: the model that it makes of such a file has unscaled frequencies, and other logits than in llama.cpp or from safetensors. The
# base, `rope.freq_base`, it takes over.
# Seen: of files that differ only in these, the same frequencies (1, 0.1, 0.01, 0.001); base 500000 changes them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0 transformers==5.24.0 gguf==0.19.0 accelerate==1.15.0 numpy
HF_HUB_OFFLINE=1 FOLDER="$folder" "$folder/venv/bin/python" - <<'PYTHON' 2>"$folder/log" || { tail -n 20 "$folder/log"; exit 1; }
import os
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM

FOLDER = Path(os.environ["FOLDER"])
HIDDEN, HEADS, FEED, WORDS = 32, 4, 64, ["<s>", "a", "b", "c"]


def frequencies(name, base=10000.0, factor=None, divisors=None):
    file = FOLDER / f"{name}.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(base)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(WORDS)
    writer.add_token_scores([0.0] * len(WORDS))
    writer.add_token_types([1] * len(WORDS))
    if factor:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(factor)
    random = np.random.default_rng(0)
    matrix = lambda *shape: random.standard_normal(shape, dtype=np.float32)
    tensors = {"token_embd": matrix(len(WORDS), HIDDEN), "output": matrix(len(WORDS), HIDDEN)}
    tensors |= {f"blk.0.attn_{part}": matrix(HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")}
    tensors |= {"blk.0.ffn_gate": matrix(FEED, HIDDEN), "blk.0.ffn_up": matrix(FEED, HIDDEN), "blk.0.ffn_down": matrix(HIDDEN, FEED)}
    tensors |= {norm: np.ones(HIDDEN, np.float32) for norm in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")}
    if divisors:
        tensors["rope_freqs"] = np.array(divisors, np.float32)
    for tensor, values in tensors.items():
        writer.add_tensor(f"{tensor}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=file.name, dtype=torch.float32)
    found = model.model.rotary_emb.inv_freq.tolist()
    print(f"{name}: frequencies {[f'{value:.2g}' for value in found]}, {model.config.rope_parameters}")
    return found


plain = frequencies("plain")
scaled = frequencies("linear scaling by 4", factor=4.0)
divided = frequencies("frequencies divided by 1, 2, 8, 8", divisors=[1, 2, 8, 8])
rebased = frequencies("base 500000", base=500000.0)
assert plain == scaled, "linear scaling is obeyed now"
assert plain == divided, "the tensor of frequencies is obeyed now"
assert plain != rebased, "the base is not obeyed, either"
PYTHON
