#!/usr/bin/env python3
"""Tasks beside lm-eval itself, question by question: which answer is likeliest, and how likely the right one is.

    pip install "lm-eval[hf]==0.4.13" torch==2.15.0 transformers==5.24.0
    cargo build -p experiments
    scripts/compare-lm-eval-tasks.py MODEL DATA [--questions 500] [--tasks piqa,winogrande] [--batch-size 16]

MODEL is a folder in Hugging Face layout, DATA a folder with the tasks' files (their names and sha256 are in
`experiments/src/tasks/`). Rows are brought into the hub's layout and written as Parquet, which lm-eval reads; the program reads the
file of DATA, and once more that Parquet, from a hub's cache. Of tasks that have no file here a few rows, written for this script, are
compared. Prints a Markdown table; the exit code is 1 where a question is answered otherwise though its answers differ by more
than 0.001 in log-likelihood, or a log-likelihood differs by more than one part in 50,000: both programs add in f32, in other orders.
"""

import argparse
import contextlib
import io
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMIT = "0" * 40
TIE = 1e-3
TOLERANCE = 2e-5
CONFIG = """
question = "Do tasks give lm-eval's answers?"
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
"""
EVALUATION = """
[[evaluations]]
[evaluations.{metric}]
dataset = {{ task = "{task}" }}
protocol = {{ lm-eval-task = {{ max_len = {max_len} }} }}
max_windows = {questions}
"""


def arc(row: dict) -> dict:
    choices = row["question"]["choices"]
    texts, labels = [choice["text"] for choice in choices], [choice["label"] for choice in choices]
    return {"id": row["id"], "question": row["question"]["stem"], "choices": {"text": texts, "label": labels}, "answerKey": row["answerKey"]}


def boolq(row: dict) -> dict:
    passage, question = row["query"].removeprefix("Passage: ").rsplit("\nQuestion: ", 1)
    return {"question": question[:-1], "passage": passage, "label": row["gold"]}


def as_it_is(row: dict) -> dict:
    return row


# The hub's repository, configuration and split, the file in DATA, and what brings its rows into the hub's layout.
TASKS = {
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test", "ARC-Challenge-Test.jsonl", arc),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test", "ARC-Easy-Test.jsonl", arc),
    "boolq": ("aps/super_glue", "boolq", "validation", "boolq.jsonl", boolq),
    "hellaswag": ("Rowan/hellaswag", "default", "validation", "hellaswag_val_1000.jsonl", as_it_is),
    "lambada_openai": ("EleutherAI/lambada_openai", "default", "test", "lambada_test.jsonl", as_it_is),
    "piqa": ("baber/piqa", "default", "validation", "piqa_valid.jsonl", as_it_is),
    "winogrande": ("allenai/winogrande", "winogrande_xl", "validation", "winogrande_dev.jsonl", as_it_is),
}
# The same, with rows of our own in the hub's layout.
SAMPLES = {
    "openbookqa": ("allenai/openbookqa", "main", "test", [
        {"question_stem": "A kettle on a hot stove will", "choices": {"text": ["freeze", "whistle", "grow leaves", "fall asleep"], "label": ["A", "B", "C", "D"]}, "answerKey": "B"},
        {"question_stem": "The moon shines because", "choices": {"text": ["it burns", "it reflects light", "of its clouds", "of its seas"], "label": ["A", "B", "C", "D"]}, "answerKey": " B"},
    ]),
    "copa": ("aps/super_glue", "copa", "validation", [
        {"premise": "The lake froze over.", "choice1": "It was very cold.", "choice2": "Fish were caught.", "question": "cause", "label": 0},
        {"premise": "The baker overslept. ", "choice1": "He burned his hand.", "choice2": "The shop opened late.", "question": "effect", "label": 1},
    ]),
    "social_iqa": ("lighteval/siqa", "default", "validation", [
        {"context": "Mina lent her umbrella to a stranger.", "question": "How would you describe Mina?", "answerA": "selfish", "answerB": "kind", "answerC": "tired", "label": "2"},
        {"context": "Tom missed the last bus.", "question": "What will Tom do next?", "answerA": "walk home", "answerB": "buy the bus", "answerC": "sleep in school", "label": "1"},
    ]),
    "commonsense_qa": ("tau/commonsense_qa", "default", "validation", [
        {"question": "Where would you put a wet towel? ", "question_concept": "towel", "choices": {"label": ["A", "B", "C", "D", "E"], "text": ["oven", "line", "library", "desert", "wallet"]}, "answerKey": "B"},
        {"question": "What is a pencil for?", "question_concept": "pencil", "choices": {"label": ["A", "B", "C", "D", "E"], "text": ["eating", "flying", "writing", "sleeping", "digging"]}, "answerKey": "C"},
    ]),
    "mmlu": ("cais/mmlu", "all", "test", [
        {"question": " Which of these is a bone?", "subject": "anatomy", "choices": ["femur", "liver", "retina", "spleen"], "answer": 0},
        {"question": "What is 3 + 4?", "subject": "elementary_mathematics", "choices": ["5", "6", "7", "8"], "answer": 2},
    ]),
}
METRICS = {"acc": "accuracy", "acc_norm": "normalized_accuracy"}


def split_of(task: str) -> tuple[str, str, str]:
    return (TASKS.get(task) or SAMPLES[task])[:3]


def rows_of(task: str, data: Path) -> list[dict]:
    if task in SAMPLES:
        return SAMPLES[task][3]
    _, _, _, name, layout = TASKS[task]
    return [layout(json.loads(line)) for line in (data / name).read_text().splitlines() if line.strip()]


def write_cache(task: str, rows: list[dict], cache: Path) -> Path:
    """The rows as Parquet, where the hub's client would keep them."""
    import pyarrow
    import pyarrow.parquet

    repository, config, split = split_of(task)
    folder = cache / ("datasets--" + repository.replace("/", "--"))
    revision = folder / "refs/refs/convert/parquet"
    revision.parent.mkdir(parents=True, exist_ok=True)
    revision.write_text(COMMIT)
    path = folder / "snapshots" / COMMIT / config / split / "0000.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def theirs(lm, task: str, path: Path, questions: int) -> tuple[list[dict], float]:
    """Samples of lm-eval, and seconds."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    # MMLU is a group of tasks, one a subject, which differ in the description that they begin with.
    subjects = sorted({row["subject"] for row in SAMPLES["mmlu"][3]}) if task == "mmlu" else [None]
    samples, seconds = [], 0.0
    for subject in subjects:
        name = task if subject is None else f"mmlu_{subject}"
        split = split_of(task)[2]
        spec = {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": {split: str(path)}}}
        spec |= {"training_split": None, "validation_split": None, "test_split": None, f"{split}_split": split, "fewshot_split": None}
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            # A registered task with its data from elsewhere: the public interface takes whole definitions only.
            built = manager._factory._build_task(manager._entry(name), spec)
        start = time.monotonic()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            result = simple_evaluate(model=lm, tasks=[built], num_fewshot=0, limit=questions, bootstrap_iters=0)
        seconds += time.monotonic() - start
        found = next(iter(result["samples"].values()))
        samples += [sample for sample in found if subject is None or sample["doc"]["subject"] == subject]
    return samples, seconds


def right_answer(task: str, sample: dict) -> int:
    """Its place among the answers: the target is that, or, with some tasks, the answer itself."""
    if task == "winogrande":
        return int(sample["doc"]["answer"]) - 1
    target = str(sample["target"])
    if target.isdigit():
        return int(target)
    arguments = sample["arguments"]
    pairs = [arguments[key] for key in sorted(arguments)] if isinstance(arguments, dict) else arguments
    answers = [pair["arg_1"] if isinstance(pair, dict) else pair[1] for pair in pairs]
    return [answer.strip() for answer in answers].index(target.strip())


def ours(program: Path, model: Path, task: str, metrics: list[str], settings: dict, folder: Path, environment: dict) -> tuple[dict, float]:
    """Measurements of the model by metric, and seconds of the scoring pass."""
    folder.mkdir()
    config = folder / "experiment.toml"
    evaluations = (EVALUATION.format(metric=metric, task=task, **settings) for metric in metrics)
    config.write_text(CONFIG.format(model=model, threads=settings["threads"]) + "".join(evaluations))
    command = [str(program), str(config), "--out", str(folder / "out"), "--only", "method=fp", "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | environment)
    records = [json.loads(line) for line in (folder / "out/records.jsonl").read_text().splitlines()]
    base = next(record for record in records if record["cell"].get("quantization") is None)
    measured = base["outcome"]["done"]["measurements"]
    return {one["metric"]: one for one in measured}, measured[0]["seconds"]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--questions", type=int, default=500)
    arguments.add_argument("--tasks", default=",".join([*TASKS, *SAMPLES]))
    arguments.add_argument("--max-len", type=int, default=2048)
    arguments.add_argument("--batch-size", type=int, default=16)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--program", type=Path, default=ROOT / "target/debug/experiments")
    arguments = arguments.parse_args()
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)
    model = arguments.model.resolve()
    lm = HFLM(pretrained=str(model), dtype="float32", device="cpu", max_length=arguments.max_len, batch_size=arguments.batch_size)
    settings = {"max_len": arguments.max_len, "questions": arguments.questions, "threads": arguments.threads}
    print("| task | questions | acc: lm-eval | here | acc_norm: lm-eval | here | answered otherwise | largest relative difference of a right answer's log-likelihood | questions a second: lm-eval | here | ratio |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    bad = False
    with tempfile.TemporaryDirectory() as temporary:
        temporary = Path(temporary)
        for task in arguments.tasks.split(","):
            cache = temporary / f"hub-{task}"
            path = write_cache(task, rows_of(task, arguments.data), cache)
            samples, their_seconds = theirs(lm, task, path, arguments.questions)
            is_completion = task == "lambada_openai"
            names = {"acc": "greedy_accuracy"} if is_completion else {key: name for key, name in METRICS.items() if key in samples[0]}
            loss = "target_perplexity" if is_completion else "target_nll"
            metrics = [*names.values(), loss]
            of_hub = {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "AWQ_ASSETS": ""}
            measured, seconds = ours(arguments.program, model, task, metrics, settings, temporary / f"hub-of-{task}", of_hub)
            if task in TASKS:
                of_folder = {"AWQ_ASSETS": str(arguments.data), "HF_HUB_OFFLINE": "1"}
                again, again_seconds = ours(arguments.program, model, task, metrics, settings, temporary / f"data-of-{task}", of_folder)
                seconds = min(seconds, again_seconds)
                if again[loss]["text_sha256"] != measured[loss]["text_sha256"]:
                    sys.exit(f"{task}: the questions of the file in DATA are not those of the hub's layout")
            log_likelihoods = [[float(response[0][0]) for response in sample["resps"]] for sample in samples]
            right = [lls[0 if is_completion else right_answer(task, sample)] for lls, sample in zip(log_likelihoods, samples)]
            differences = [abs(ll + nll) / max(1.0, abs(ll)) for ll, nll in zip(right, measured[loss]["samples"])]
            others = 0
            for key, name in names.items():
                for sample, lls, value in zip(samples, log_likelihoods, measured[name]["samples"]):
                    if float(sample[key]) != value:
                        others += 1
                        best = sorted(lls, reverse=True)
                        bad |= key == "acc" and len(best) > 1 and best[0] - best[1] > TIE
            bad |= max(differences) > TOLERANCE or len(samples) != len(measured[loss]["samples"])
            number = lambda values: f"{sum(values) / len(values):.4f}"
            cells = []
            for key in ("acc", "acc_norm"):
                cells += [number([float(s[key]) for s in samples]), number(measured[names[key]]["samples"])] if key in names else ["", ""]
            speed = ["", "", ""]
            if task in TASKS:
                speed = [f"{len(samples) / their_seconds:.2f}", f"{len(samples) / seconds:.2f}", f"{their_seconds / seconds:.2f}"]
            row = [task, str(len(samples)), *cells, str(others), f"{max(differences):.1e}", *speed]
            print("| " + " | ".join(row) + " |", flush=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
