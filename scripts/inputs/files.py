"""GGUF files: rotary keys, biases, buffers, parts, types."""

import math

import gguf
import numpy as np

from . import gguf_file
from .models import model, perplexity, tokenizer
from .rows import Row, Says

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def rows(program, folder, text, ids):
    """`ids` are those of `text`."""
    score = lambda file: lambda: program.score(file, text)
    tokens, plain = tokenizer(), model()
    linear = model(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})
    scaled, unscaled = perplexity(linear, ids), perplexity(plain, ids)

    def typed(writer, kind=gguf.RopeScalingType.LINEAR):
        writer.add_rope_scaling_type(kind)
        writer.add_rope_scaling_factor(4.0)

    for index, (name, keys, right) in enumerate(
        [
            ("`rope.scaling.type` linear and a factor", typed, scaled),
            ("`rope.scaling.factor` without a type", lambda writer: writer.add_rope_scaling_factor(4.0), scaled),
            ("the old key `rope.scale_linear`", lambda w: w.add_float32("llama.rope.scale_linear", 4.0), scaled),
            ("`rope.scaling.type` none and a factor", lambda w: typed(w, gguf.RopeScalingType.NONE), unscaled),
            ("`rope.scaling.type` yarn", lambda w: typed(w, gguf.RopeScalingType.YARN), Says("yarn")),
            ("experts", lambda writer: writer.add_expert_count(8), Says("expert_used_count")),
            ("one part of a split file", lambda writer: writer.add_uint16("split.count", 3), Says("split.count", "3")),
            ("a scale of logits", lambda writer: writer.add_logit_scale(0.5), Says("logit_scale")),
        ]
    ):
        file = gguf_file.write(folder / f"keys-{index}.gguf", plain, tokens, keys=keys)
        yield Row(f"GGUF: {name}", right, "the model" if isinstance(right, float) else "must be named", score(file))

    biased = model(attention_bias=True, mlp_bias=True)
    file = gguf_file.write(folder / "biased.gguf", biased, tokens)
    yield Row("GGUF: biases of all linears", perplexity(biased, ids), "the model", score(file))
    lone = model(attention_bias=True)
    for name, weight in lone.named_parameters():
        if name.endswith("o_proj.bias"):
            weight.data.zero_()
    without = lambda arrays: {name: array for name, array in arrays.items() if "attn_output.bias" not in name}
    file = gguf_file.write(folder / "lone.gguf", lone, tokens, tensors=without)
    yield Row("GGUF: biases of q, k and v alone", perplexity(lone, ids), "the model", score(file))

    stretched = model(rope_parameters=LLAMA3)
    with_divisors = lambda arrays: arrays | {"rope_freqs.weight": divisors()}
    file = gguf_file.write(folder / "divisors.gguf", stretched, tokens, tensors=with_divisors, theta=500.0)
    right = perplexity(stretched, ids)
    yield Row("GGUF: `rope_freqs`", right, "the model", score(file))

    def packed():
        out = folder / "packed"
        status, _, said = program.run("quantize", file, "--method", "rtn", "--bits", 8, "--out", out, "--quiet")
        return "written" if status == 0 else said.strip()[-300:]

    yield Row("GGUF: `quantize` of a file with `rope_freqs`", "written", "must work", packed)

    wide = model(hidden_size=256)
    stored = (np.zeros((256, 292), dtype=np.uint8), gguf.GGMLQuantizationType.Q8_K)
    of_other_type = lambda arrays: arrays | {"blk.1.attn_output.weight": stored}
    path = gguf_file.write(folder / "type.gguf", wide, tokens, tensors=of_other_type)
    yield Row("GGUF: a type that is not read, in the last block", Says("Q8_K"), "must be named", score(path))


def divisors():
    """What llama.cpp's converter stores for `LLAMA3`."""
    width, original = 16, LLAMA3["original_max_position_embeddings"]
    low, high, factor = (LLAMA3[key] for key in ("low_freq_factor", "high_freq_factor", "factor"))

    def divisor(frequency):
        turns = original * frequency / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        return 1 / (kept + (1 - kept) / factor)

    frequencies = LLAMA3["rope_theta"] ** (-np.arange(0, width, 2) / width)
    return np.array([divisor(frequency) for frequency in frequencies], dtype=np.float32)
