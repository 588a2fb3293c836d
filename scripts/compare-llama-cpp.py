#!/usr/bin/env python3
"""Prefill and decode speed beside llama.cpp: same model, prompt, threads and number of tokens, runs taking turns.

    pip install llama-cpp-python          # built for this CPU: see CMAKE_ARGS in its documentation
    cargo build --release -p experiments
    scripts/compare-llama-cpp.py MODEL.gguf --threads 2

llama.cpp runs the model requantized to Q4_0, which it repacks for the CPU at load. This project runs it rounded to the
nearest 4-bit code (speed does not depend on the codes). Each repetition is a new session on a loaded model in llama.cpp
and a new process here; loading is not timed in either. Prints a Markdown table with medians and ranges, and what the
weights of each take.
"""

import argparse
import ctypes
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What `experiments generate` says of a run.
SAID = re.compile(
    r"prefill (\d+) tokens at ([\d.]+) tokens/s, first token after [\d.]+ s; decode (\d+) tokens at ([\d.]+) tokens/s"
)
STEP = re.compile(r"a step reads ([\d.]+) MB")


def requantize(llama_cpp, source: Path, target: Path, threads: int) -> None:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    parameters.allow_requantize = True
    parameters.nthread = threads
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    if code != 0:
        sys.exit(f"{source}: llama.cpp cannot requantize it (code {code})")


class LlamaCpp:
    """llama.cpp with a model in memory."""

    def __init__(self, llama_cpp, path: Path, threads: int, context: int):
        self.model = llama_cpp.Llama(
            str(path), n_ctx=context, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False
        )

    def cut(self, text: str, n_tokens: int) -> str:
        """The beginning of `text` that is `n_tokens` tokens long, or one more or less."""
        ids = self.model.tokenize(text.encode(), add_bos=False)[:n_tokens]
        if len(ids) < n_tokens:
            sys.exit(f"the prompt's text has {len(ids)} tokens, {n_tokens} are needed: give a longer --text")
        return self.model.detokenize(ids).decode(errors="ignore")

    def run(self, prompt: str, n_new: int) -> tuple[float, float]:
        """Tokens a second of prefill and decoding."""
        ids = self.model.tokenize(prompt.encode(), add_bos=False)
        self.model.reset()
        start = time.perf_counter()
        self.model.eval(ids)
        token = self.model.sample(temp=0.0)
        prefill = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(n_new):
            self.model.eval([token])
            token = self.model.sample(temp=0.0)
        return len(ids) / prefill, n_new / (time.perf_counter() - start)


class Here:
    """`experiments generate`."""

    def __init__(self, binary: Path, model: Path, threads: int, options: list[str]):
        self.command = [str(binary), "generate", str(model), "--threads", str(threads), *options]
        self.megabytes = 0.0

    def run(self, prompt: str, n_new: int) -> tuple[float, float]:
        command = [*self.command, "--prompt", prompt, "--max-tokens", str(n_new + 1)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        found, step = SAID.search(said.stderr), STEP.search(said.stderr)
        if said.returncode != 0 or not found or not step:
            sys.exit(f"{' '.join(self.command)} failed:\n{said.stderr}")
        if int(found[3]) < n_new // 2:
            sys.exit(f"the model ended its text after {found[3]} tokens: give another --text")
        self.megabytes = float(step[1])
        return float(found[2]), float(found[4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/experiments")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--text", type=Path, default=ROOT / "README.md", help="text that the prompt is the beginning of")
    parser.add_argument("--json", type=Path, help="also write every single run there")
    arguments = parser.parse_args()
    try:
        import llama_cpp
    except ImportError:
        sys.exit("llama-cpp-python is not installed: pip install llama-cpp-python")

    with tempfile.TemporaryDirectory() as folder:
        q4_0 = Path(folder) / "q4_0.gguf"
        requantize(llama_cpp, arguments.model, q4_0, arguments.threads)
        context = arguments.prompt_tokens + arguments.new_tokens + 16
        peer = LlamaCpp(llama_cpp, q4_0, arguments.threads, context)
        q4_0_megabytes = q4_0.stat().st_size / 1e6
        prompt = peer.cut(arguments.text.read_text(), arguments.prompt_tokens)
        form = ["--quant", "rtn-w4g64"]
        here = lambda options: Here(arguments.binary, arguments.model, arguments.threads, options)
        arms = {
            f"llama.cpp {llama_cpp.__version__} (Python package), Q4_0": peer,
            "here, as the file has it": here([]),
            "here, W4A16 f32 g64, head W8": here([*form, "--activations", "f32", "--head-bits", "8"]),
            "here, W4A16 int16 g64, head W8": here([*form, "--activations", "int16", "--head-bits", "8"]),
            "here, W4A8 int8 g64, head W8": here([*form, "--activations", "int8", "--head-bits", "8"]),
        }
        runs = {name: [] for name in arms}
        for repeat in range(arguments.repeats + 1):
            for name, arm in arms.items():
                speeds = arm.run(prompt, arguments.new_tokens)
                # The first is a warm-up.
                if repeat > 0:
                    runs[name].append(speeds)

    print(
        f"{arguments.model.name}, {arguments.threads} threads, a prompt of {arguments.prompt_tokens} tokens, "
        f"{arguments.new_tokens} steps; medians [lowest, highest] of {arguments.repeats} runs.\n"
    )
    print("| | weights, MB | prefill tokens/s | decode tokens/s |\n|---|--:|--:|--:|")
    for name, arm in arms.items():
        cells = []
        for speeds in zip(*runs[name]):
            cells.append(f"{statistics.median(speeds):.0f} [{min(speeds):.0f}, {max(speeds):.0f}]")
        size = f"{q4_0_megabytes:.1f} (file)" if arm is peer else f"{arm.megabytes:.1f} (a step)"
        print(f"| {name} | {size} | {cells[0]} | {cells[1]} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
