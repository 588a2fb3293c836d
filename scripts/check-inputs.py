#!/usr/bin/env python3
"""Runs the program on inputs that went wrong in some tool of the field, and writes a table: input, right value, value now.

Every input is made here from a seed. What is right comes from transformers, from the model that was written, from
llama-perplexity's rules (its source, b10605), or is an error that must name something. It takes about ten minutes on two cores:

    pip install torch==2.15.0 transformers==5.24.0 tokenizers==0.23.3 safetensors==0.8.0 gguf==0.19.0 numpy
    cargo build --release -p experiments
    scripts/check-inputs.py target/release/experiments --out results/inputs/README.md

`--before OTHER` adds a column with what another build of the program makes of the same inputs.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from inputs import files, folders, models, tokens, work
from inputs.program import Program
from inputs.rows import is_right, shown

TITLE = """# Inputs that go wrong elsewhere

Made by `scripts/check-inputs.py` (small models of random weights, windows of 64 tokens; the first lines of the script say which
packages compute what is right). Right means within {tolerance:.0e} of the right number, the same text, or an error
that holds the words.

"""


def main():
    arguments = parse()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        text = scratch / "text.txt"
        text.write_text(models.prose())
        ids = models.tokenizer().encode(text.read_text()).ids
        builds = [Program(binary, scratch / f"build-{index}") for index, binary in enumerate(arguments.builds)]
        lines, n_wrong = [], 0
        for area in (folders, files, tokens, work):
            folder = scratch / area.__name__
            folder.mkdir()
            # The same inputs for every build; an area's rows come in one order.
            of_builds = [list(area.rows(build, folder, text, ids)) for build in builds]
            for of_row in zip(*of_builds):
                found = [attempt(row) for row in of_row]
                row, verdict = of_row[-1], is_right(of_row[-1].right, found[-1])
                n_wrong += not verdict
                found = [value.replace(f"{scratch}/", "") if isinstance(value, str) else value for value in found]
                cells = [row.input, shown(row.right), row.source, *map(shown, found), "yes" if verdict else "**no**"]
                lines.append("| " + " | ".join(cells) + " |")
                print(lines[-1], flush=True)
    before = ["before"] if len(builds) > 1 else []
    head = ["input", "right", "by", *before, "now", "right now"]
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines]
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(TITLE.format(tolerance=2e-4) + "\n".join(table) + "\n")
    print(f"{len(lines) - n_wrong} of {len(lines)} right")
    sys.exit(n_wrong > 0)


def attempt(row):
    """The value now; what the program or this script raised is shown in the table like any other value."""
    try:
        return row.now()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, help="the built program")
    parser.add_argument("--before", type=Path, help="another build, for a column before")
    parser.add_argument("--out", type=Path, help="the table")
    arguments = parser.parse_args()
    arguments.builds = [build for build in (arguments.before, arguments.program) if build]
    return arguments


if __name__ == "__main__":
    main()
