#!/usr/bin/env python3
"""Runs the fuzz targets of `experiments/fuzz`: seeded with fixtures, for a number of seconds each, under limits of memory and time.

    rustup toolchain install nightly
    cargo install --locked cargo-fuzz
    scripts/check-fuzz.py build                      # everything; `--core` leaves out what needs the crate `experiments`
    scripts/check-fuzz.py run --seconds 60           # every target that is built; or some: `run gguf config`
    scripts/check-fuzz.py table

An input that ends in a panic, takes 10 s or more than its memory is a fault; it is kept below `target/fuzz/artifacts/`, and the target
alone takes its path to show it again. What was found of new inputs stays in `target/fuzz/corpus/`, and the next run goes on from there. The table adds up all runs since it was last begun anew (`run --anew`). The exit code is 1 where anything was wrong.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fuzz.seeds import ROOT, SEEDS, words_of

FUZZ = ROOT / "experiments/fuzz"
WORK = ROOT / "target/fuzz"
PROGRAMS = WORK / "x86_64-unknown-linux-gnu/release"
# Of a process; what readers hold is limited in `experiments/fuzz/src/lib.rs`.
MEMORY_MB, SECONDS_AN_INPUT = 2048, 10
# Of a process: the tokenizers library (0.23) keeps the words that it has seen of every tokenizer that it ever made. Each process reads the
# corpus again.
EXECUTIONS_OF_A_PROCESS = 1_000_000
EXECUTIONS_WITH_TOKENIZERS = 100_000
MAKE_TOKENIZERS = {"gguf", "tokenizer_json", "sentence_piece", "vocab_merges", "foreign", "chat_template"}
NOTHING = {"executions": 0, "seconds": 0, "edges": 0, "found": 0, "peak_mb": 0, "faults": 0}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "run", "table"])
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(SEEDS)}; all by default")
    parser.add_argument("--core", action="store_true", help="build: only readers of awq-core")
    parser.add_argument("--seconds", type=int, default=60, help="run: of each target")
    parser.add_argument("--executions", type=int, help="run: of each target at most, those of earlier runs counted")
    parser.add_argument("--anew", action="store_true", help="run: forget what earlier runs found and counted")
    arguments = parser.parse_intermixed_args()
    unknown = set(arguments.targets) - set(SEEDS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    return arguments


def build(arguments: argparse.Namespace) -> int:
    # Safe Rust needs no sanitizer; of panics, time and memory libFuzzer and the allocator know.
    command = ["cargo", "+nightly", "fuzz", "build", "--fuzz-dir", FUZZ, "--target-dir", WORK, "--release", "--sanitizer", "none"]
    return subprocess.run([*command, *([] if arguments.core else ["--features", "experiments"])], cwd=ROOT).returncode


def seed(target: str, corpus: Path) -> Path:
    """Puts seeds into the corpus, and their words into a dictionary beside."""
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = list(SEEDS[target]())
    for content in seeds:
        (corpus / hashlib.sha1(content).hexdigest()).write_bytes(content)
    dictionary = corpus.with_suffix(".dict")
    quoted = lambda word: word.decode().replace("\\", "\\\\").replace('"', '\\"')
    dictionary.write_text("".join(f'"{quoted(word)}"\n' for word in words_of(seeds)))
    return dictionary


def total_of(target: str) -> dict:
    """What was counted since it was last begun anew: in a file of its own, so that several targets can run at a time."""
    path = WORK / "artifacts" / target / "total.json"
    return json.loads(path.read_text()) if path.exists() else dict(NOTHING)


def run(target: str, arguments: argparse.Namespace) -> None:
    corpus, artifacts = WORK / "corpus" / target, WORK / "artifacts" / target
    if arguments.anew:
        for folder in (corpus, artifacts):
            shutil.rmtree(folder, ignore_errors=True)
    artifacts.mkdir(parents=True, exist_ok=True)
    total = total_of(target)
    options = [f"-dict={seed(target, corpus)}", f"-artifact_prefix={artifacts}/", "-print_final_stats=1"]
    most = EXECUTIONS_WITH_TOKENIZERS if target in MAKE_TOKENIZERS else EXECUTIONS_OF_A_PROCESS
    end, went_well = time.monotonic() + arguments.seconds, True
    while went_well and (seconds := end - time.monotonic()) > 1:
        left = (arguments.executions or sys.maxsize) - total["executions"]
        if left <= 0:
            return
        went_well = run_process(target, [*options, f"-runs={min(left, most)}"], int(seconds), total)
        # In one step: another process that prints the table may read it meanwhile.
        (artifacts / "total.new").write_text(json.dumps(total, indent=1))
        os.replace(artifacts / "total.new", artifacts / "total.json")


def run_process(target: str, options: list[str], seconds: int, total: dict) -> bool:
    """Runs one process, counts what it did, and says whether it met no fault."""
    corpus, artifacts = WORK / "corpus" / target, WORK / "artifacts" / target
    options = [*options, f"-rss_limit_mb={MEMORY_MB}", f"-timeout={SECONDS_AN_INPUT}", f"-max_total_time={seconds}"]
    shared_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=shared_memory) as folder:
        environment = os.environ | {"TMPDIR": folder, "RAYON_NUM_THREADS": "1"}
        ran = subprocess.run([PROGRAMS / target, *options, corpus], env=environment, cwd=folder, capture_output=True)
    said = ran.stderr.decode(errors="replace")
    number = lambda pattern: max((int(found) for found in re.findall(pattern, said)), default=0)
    total["executions"] += number(r"stat::number_of_executed_units: *(\d+)") or number(r"^#(\d+)\b")
    total["seconds"] += number(r"Done \d+ runs in (\d+) second")
    total["edges"] = max(total["edges"], number(r" cov: (\d+)"))
    total["found"] += number(r"stat::new_units_added: *(\d+)")
    total["peak_mb"] = max(total["peak_mb"], number(r"stat::peak_rss_mb: *(\d+)"))
    if ran.returncode != 0:
        total["faults"] += 1
        (artifacts / "last.txt").write_text(said)
        print(f"{target}: a fault\n" + "\n".join(said.splitlines()[-25:]), file=sys.stderr)
    return ran.returncode == 0


def table(totals: dict) -> str:
    head = ["target", "executions", "seconds", "edges", "new inputs", "peak MB", "faults"]
    lines = [head, ["---", *["--:"] * 6]]
    for target, total in totals.items():
        lines.append([target, *(f"{total[key]:,}" for key in ("executions", "seconds", "edges", "found", "peak_mb", "faults"))])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> int:
    arguments = parse()
    if arguments.what == "build":
        return build(arguments)
    if arguments.what == "run":
        built = [target for target in SEEDS if (PROGRAMS / target).exists()]
        wanted = arguments.targets or built
        for target in wanted:
            if target not in built:
                raise SystemExit(f"{target} is not built; run scripts/check-fuzz.py build")
            run(target, arguments)
    totals = {target: total for target in SEEDS if (total := total_of(target)) != NOTHING}
    print(table(totals))
    return min(1, sum(total["faults"] for total in totals.values()))


if __name__ == "__main__":
    sys.exit(main())
