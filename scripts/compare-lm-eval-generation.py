#!/usr/bin/env python3
"""Generation tasks beside lm-eval itself, problem by problem: is what the model writes the same, and is it judged alike?

    pip install "lm-eval[hf]==0.4.13" torch==2.15.0 transformers==5.24.0
    cargo build -p experiments
    scripts/compare-lm-eval-generation.py MODEL DATA [--problems 20] [--max-len 2048] [--shots 5]

MODEL is a folder in Hugging Face layout, DATA one with `gsm8k_test.jsonl` and `gsm8k_train.jsonl` (their sha256 are in
`experiments/src/tasks/gsm8k.toml`). Both programs decode greedily in f32 on the CPU, one problem at a time. Prints a Markdown table; the
exit code is 1 where a text that is the same is judged otherwise, or more than one text in ten differs: two programs that add in other
orders may choose otherwise between two tokens that are all but equally likely.
"""

import argparse
import contextlib
import hashlib
import io
import json
import logging
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
question = "Does the model write what it writes under lm-eval?"
methods = [{{ rtn = {{}} }}]
[run]
device = "flex"
threads = {threads}
[[models]]
name = "model"
source = {{ path = {{ path = "{model}" }} }}
[grids]
bits = [8]
granularity = ["per_channel"]
symmetry = "asymmetric"
range_includes_zero = false
scale_dtype = "f32"
[tasks]
names = ["gsm8k"]
max_len = {max_len}
n_shots = {shots}
max_questions = {problems}
"""


def theirs(arguments: argparse.Namespace, folder: Path) -> list[dict]:
    """Samples of lm-eval, two of each problem: one a filter."""
    import pyarrow
    import pyarrow.parquet
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    files = {}
    for split in ("test", "train"):
        rows = [json.loads(line) for line in (arguments.data / f"gsm8k_{split}.jsonl").read_text().splitlines()]
        files[split] = str(folder / f"{split}.parquet")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), files[split])
    manager = TaskManager()
    spec = {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    model = str(arguments.model.resolve())
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        built = manager._factory._build_task(manager._entry("gsm8k"), spec)
        lm = HFLM(pretrained=model, dtype="float32", device="cpu", max_length=arguments.max_len, batch_size=1)
        result = simple_evaluate(model=lm, tasks=[built], num_fewshot=arguments.shots, limit=arguments.problems, bootstrap_iters=0)
    return next(iter(result["samples"].values()))


def ours(arguments: argparse.Namespace, folder: Path) -> dict[str, dict]:
    """Measurements of the model by metric."""
    config = folder / "experiment.toml"
    settings = vars(arguments) | {"model": arguments.model.resolve()}
    config.write_text(CONFIG.format(**settings))
    command = [str(arguments.program), str(config), "--out", str(folder / "out"), "--only", "method=fp", "--quiet"]
    environment = os.environ | {"AWQ_ASSETS": str(arguments.data), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    record = json.loads((folder / "out/records.jsonl").read_text().splitlines()[0])
    return {one["metric"]: one for one in record["outcome"]["done"]["measurements"]}


def digest(text: str) -> str:
    """As `written` of a record has it."""
    content = text.encode()
    return hashlib.sha256(struct.pack("<Q", len(content)) + content).hexdigest()[:8]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--problems", type=int, default=20)
    arguments.add_argument("--shots", type=int, default=5)
    arguments.add_argument("--max-len", type=int, default=2048)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--program", type=Path, default=ROOT / "target/debug/experiments")
    arguments = arguments.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        samples, measured = theirs(arguments, Path(folder)), ours(arguments, Path(folder))
    print("| filter | problems | lm-eval | here | texts that are the same | of these judged otherwise |")
    print("|---|--:|--:|--:|--:|--:|")
    bad = False
    for filter_name, metric in (("strict-match", "strict_match"), ("flexible-extract", "flexible_extract")):
        of_filter = sorted((one for one in samples if one["filter"] == filter_name), key=lambda one: one["doc_id"])
        here = measured[metric]
        same = [digest(one["resps"][0][0]) == written for one, written in zip(of_filter, here["written"], strict=True)]
        scores = [float(one["exact_match"]) for one in of_filter]
        others = sum(is_same and a != b for is_same, a, b in zip(same, scores, here["samples"]))
        bad |= others > 0 or sum(same) < 0.9 * len(same)
        mean = lambda values: f"{sum(values) / len(values):.4f}"
        print(f"| {filter_name} | {len(same)} | {mean(scores)} | {mean(here['samples'])} | {sum(same)} | {others} |", flush=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
