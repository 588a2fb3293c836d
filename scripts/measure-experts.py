#!/usr/bin/env python3
"""How much memory quantizing a Mixture-of-Experts model takes, by its number of experts.

    cargo build -p experiments
    scripts/measure-experts.py mixtral-half 2 4 8
    scripts/measure-experts.py qwen3-30b-a3b 16 32 64 128

Makes checkpoints of some blocks and random weights (`scripts/make-synthetic-checkpoint.py`), and has an experiment score, calibrate,
quantize (W4 g128) and score them again with RTN, AWQ and GPTQ on a few sequences of random words. Memory is what the process holds itself
(`RssAnon` of /proc, looked at every 20 ms); pages of the mapped files come on top, and the system takes them back at will. Prints a
Markdown table.
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METHODS = {"rtn": "{ rtn = {} }", "awq": '{ awq = "llm-awq" }', "gptq": '{ gptq = "in-order" }'}
EXPERIMENT = """
question = "How much memory do experts take?"
methods = [{method}]
[run]
device = "flex"
[[models]]
name = "experts"
source = {{ path = {{ path = "{model}" }} }}
[calibration]
dataset = {{ text_file = {{ name = "words", path = "{text}", sha256 = "{sha256}", documents = "none" }} }}
sampling = {{ random_crops = {{ n_sequences = {n_sequences}, seed = 0 }} }}
seq_len = {seq_len}
propagation = "full_precision"
[grids]
bits = [4]
granularity = [{{ per_group = 128 }}]
symmetry = "asymmetric"
range_includes_zero = true
scale_dtype = "f16"
[[evaluations]]
[evaluations.perplexity]
dataset = {{ text_file = {{ name = "words", path = "{text}", sha256 = "{sha256}", documents = "none" }} }}
protocol = {{ gptq = {{ seq_len = {seq_len} }} }}
max_windows = 1
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help="a shape with experts of scripts/make-synthetic-checkpoint.py")
    parser.add_argument("experts", type=int, nargs="+", help="numbers of experts")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--program", type=Path, default=ROOT / "target/debug/experiments")
    args = parser.parse_args()
    print("| shape | experts | blocks | checkpoint | a block in f32 | method | peak of own memory | seconds |\n| --- | --: | --: | --: | --: | --- | --: | --: |")
    for n_experts in args.experts:
        with tempfile.TemporaryDirectory() as temporary:
            measure(args, n_experts, Path(temporary))


def measure(args, n_experts, folder):
    maker = [ROOT / "scripts/make-synthetic-checkpoint.py", args.shape, "--blocks", str(args.blocks), "--experts", str(n_experts), "--out", folder / "model"]
    subprocess.run(maker, check=True, stdout=subprocess.DEVNULL)
    size = (folder / "model/model.safetensors").stat().st_size
    # Embedding and head, of 32,000 tokens in bf16.
    around = 2 * 32_000 * json.loads((folder / "model/config.json").read_text())["hidden_size"] * 2
    block_f32 = 2 * (size - around) / args.blocks
    words = random.Random(0)
    text = " ".join("".join(words.choices("aeioulnrst", k=words.randint(2, 7))) for _ in range(20_000))
    (folder / "words.txt").write_text(text)
    for method in args.methods:
        facts = {"model": folder / "model", "text": folder / "words.txt", "sha256": hashlib.sha256(text.encode()).hexdigest()}
        facts |= {"n_sequences": args.sequences, "seq_len": args.length, "method": METHODS[method]}
        (folder / "x.toml").write_text(EXPERIMENT.format(**facts))
        peak, seconds = watched([args.program.resolve(), folder / "x.toml", "--out", folder / "out", "--quiet"], folder)
        shutil.rmtree(folder / "out")
        print(f"| {args.shape} | {n_experts} | {args.blocks} | {size / 1e9:.1f} GB | {block_f32 / 1e9:.2f} GB | {method.upper()} | {peak / 1e9:.2f} GB | {seconds:.0f} |", flush=True)


def watched(command, folder):
    """Runs a command; the most memory of its own that it held, in bytes, and the seconds that it took."""
    started, peak = time.monotonic(), 0
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said, env={"PATH": "/usr/bin:/bin", "HOME": str(folder)})
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            own = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")]
            peak = max([peak, *own])
            time.sleep(0.02)
    if process.returncode != 0:
        raise SystemExit((folder / "said").read_text())
    return peak, time.monotonic() - started


if __name__ == "__main__":
    main()
