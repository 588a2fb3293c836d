#!/usr/bin/env bash
# lm-eval 0.4.13, no model.
# Expected: of COPA, as of its other tasks of answers to choose from, lm-eval scores an answer behind one blank: "The lake froze over
# because" + " it was very cold.". Instead two blanks stand before it: the task's choices begin with one, and the delimiter that is put
# between question and answer is another. A tokenizer may make a token of the first blank, or of both, that no text of this kind has;
# an accuracy of COPA from a program that puts one blank there is of other tokens.
# Seen: continuations '  it was very cold.' and '  fish were caught.'; of PIQA, in the same way, ' with a towel' and ' with a brick'.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet lm-eval==0.4.13
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" - "$folder" <<'PYTHON'
import logging
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
from lm_eval.tasks import TaskManager

logging.disable(logging.WARNING)
manager = TaskManager()


def continuations(name, row):
    """What is scored of the answers to one question, whose row lies in a file of ours."""
    path = str(Path(sys.argv[1]) / f"{name}.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    files = {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": {"validation": path}}}
    splits = {"training_split": None, "validation_split": "validation", "test_split": None, "fewshot_split": None}
    built = manager._factory._build_task(manager._entry(name), files | splits)
    built.build_all_requests(limit=1, rank=0, world_size=1)
    return [instance.args[1] for instance in built.instances]


copa = continuations("copa", {"premise": "The lake froze over.", "choice1": "It was very cold.", "choice2": "Fish were caught.",
                              "question": "cause", "idx": 0, "label": 0})
piqa = continuations("piqa", {"goal": "How do you dry a plate?", "sol1": "with a towel", "sol2": "with a brick", "label": 0})
print("COPA:", copa, "PIQA:", piqa)
assert copa == ["  it was very cold.", "  fish were caught."], "answers of COPA stand behind other blanks now"
assert piqa == [" with a towel", " with a brick"], "answers of PIQA stand behind other blanks now"
PYTHON
