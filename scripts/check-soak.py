#!/usr/bin/env python3
"""Keeps the program at work for hours and says what it holds and leaves: memory, open files and threads of one process that runs a small
experiment over and over, and of many processes, one after the other, that share a cache, memory and files.

    cargo build -p experiments --example soak && cargo build -p experiments
    scripts/check-soak.py --hours 6

The pieces of work are those of check-faults.py; what each leaves must be what its first run left, byte for byte but for times. Prints
two Markdown tables, each a tenth of the time a row; the exit code is 1 where a file differs or is left over, or where the last tenth has
a tenth more of anything than the second.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from faults.pieces import Piece, differences, left, pieces
from faults.workshop import Workshop

ROOT = Path(__file__).resolve().parent.parent
# Rows of a table.
PARTS = 10


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=6)
    parser.add_argument("--program", type=Path, default=ROOT / "target/debug/experiments", help="the program, built before")
    parser.add_argument("--soak", type=Path, default=ROOT / "target/debug/examples/soak", help="the example, built before")
    return parser.parse_args()


def table(head: list[str], rows: list[list[object]]) -> str:
    lines = [head, ["--:"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def part_of(elapsed: float, seconds: float) -> int:
    """The tenth of the time; what ends a little later is in the last."""
    return min(int(elapsed * PARTS / seconds), PARTS - 1)


def grown(head: list[str], rows: list[list[object]]) -> list[str]:
    """Columns behind the second whose last row is a tenth beyond their second one; at the beginning caches are filled."""
    if len(rows) < 3:
        return []
    return [f"{name}: {rows[1][i]} first, {rows[-1][i]} at the end" for i, name in enumerate(head) if i > 1 and float(rows[-1][i]) > 1.1 * float(rows[1][i])]


class OneProcess(threading.Thread):
    """The example at work, and what it said."""

    def __init__(self, program: Path, workshop: Workshop, seconds: float):
        super().__init__()
        self.seconds, self.lines, self.code, self.said = seconds, [], 0, ""
        self.folder = workshop.folder("one")
        command = [program.resolve(), "experiment.toml", self.folder, str(int(seconds))]
        environment = workshop.environment(self.folder, {"RAYON_NUM_THREADS": "1", "AWQ_CODES_GIB": "0"})
        self.files_before = self.n_files()
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def n_files(self) -> int:
        return sum(1 for path in self.folder.rglob("*") if path.is_file() and path.name != "settings")

    def run(self):
        for line in self.process.stderr:
            if line.startswith("soak "):
                self.lines.append([int(number) for number in line.split()[1:]])
            elif len(self.said) < 10_000:
                self.said += line
        self.code = self.process.wait()

    def rows(self) -> list[list[object]]:
        """Of each part of the time: runs by its end, and the most that was held."""
        rows = []
        for part in range(PARTS):
            held = [line for line in self.lines if part_of(line[0], self.seconds) == part]
            if held:
                most = [max(column) for column in zip(*held)]
                rows.append([f"{most[0] / 3600:.2f}", f"{most[1]:,}", f"{most[2] / 1024:.1f}", most[3], most[4]])
        return rows


class ManyProcesses:
    """Each piece of work in turn, in a folder that keeps its cache."""

    def __init__(self, workshop: Workshop, seconds: float):
        self.workshop, self.seconds, self.began = workshop, seconds, time.monotonic()
        self.works = [(piece, workshop.folder(f"many-{number}")) for number, piece in enumerate(pieces()) if not piece.needs_hub]
        self.first: dict[str, dict[str, object]] = {}
        self.rounds: list[tuple[float, int, float, int]] = []
        self.wrong: list[str] = []

    def run(self, has_failed):
        n_processes = 0
        while (elapsed := time.monotonic() - self.began) < self.seconds and not has_failed():
            most = 0
            for piece, folder in self.works:
                most = max(most, self.work(piece, folder))
                n_processes += 1
            held = [path for _, folder in self.works for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
            self.rounds.append((elapsed, n_processes, most / 1024, len(held)))

    def work(self, piece: Piece, folder: Path) -> int:
        """Runs it, compares what it leaves, and removes that but for the cache; returns its peak memory in KiB."""
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                [self.workshop.program, *piece.arguments], cwd=folder, env=self.workshop.environment(folder, piece.environment),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip
            # `wait` would not tell its memory.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            errors.seek(0)
            said = errors.read()
        found = left(folder, self.workshop)
        if process.returncode:
            self.wrong.append(f"{piece.kind}: exit code {process.returncode}: {said[-500:]}")
        whole = self.first.setdefault(piece.kind, found)
        self.wrong += [f"{piece.kind}: {problem}" for problem in differences(whole, found)]
        for entry in folder.iterdir():
            if not entry.is_symlink() and entry.name != "cache":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return usage.ru_maxrss

    def rows(self) -> list[list[object]]:
        rows = []
        for part in range(PARTS):
            of_part = [row for row in self.rounds if part_of(row[0], self.seconds) == part]
            if of_part:
                most = [max(column) for column in zip(*of_part)]
                rows.append([f"{most[0] / 3600:.2f}", f"{most[1]:,}", f"{most[2]:.1f}", most[3]])
        return rows


def main():
    arguments = parse()
    seconds = arguments.hours * 3600
    with tempfile.TemporaryDirectory() as scratch:
        workshop = Workshop(arguments.program, Path(scratch))
        one, many = OneProcess(arguments.soak, workshop, seconds), ManyProcesses(workshop, seconds)
        one.start()
        many.run(lambda: one.code != 0)
        one.join()
        heads = [["hours", "experiments in one process", "MiB held", "open files", "threads"], ["hours", "processes", "MiB at their peak", "files kept"]]
        wrong = many.wrong + ([f"one process: exit code {one.code}: {one.said[-500:]}"] if one.code else [])
        for head, rows in zip(heads, (one.rows(), many.rows())):
            print(table(head, rows))
            wrong += grown(head, rows)
        if more := one.n_files() - one.files_before:
            wrong.append(f"one process: {more} files are left over")
        print(f"{len(wrong)} wrong")
    
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
