#!/usr/bin/env python3
"""Kills the program at random moments and lets everything around it fail; what is left must be what an undisturbed run leaves.

    cargo build -p experiments
    scripts/check-faults.py kills --kills 1000
    sudo scripts/check-faults.py faults

An experiment, `quantize` in three formats, `export` and a download from a hub on this machine are killed with SIGKILL and started
again until they end. Then all files are compared, byte for byte but for times; nothing may be left over, and nothing that was done
may be lost on the way. Faults are full disks, folders that cannot be written, a network that fails, two runs at once, torn files
and clocks that jump: each must end in a clear error or in the right files, and the next run in the right files. Prints Markdown
tables; the exit code is 1 where anything was wrong. Needs zstd; faults need root (for file systems of their own), strace and
libfaketime, and say what they leave out without.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from faults import disk, others
from faults.cases import Group, at_once
from faults.kills import Kills
from faults.pieces import pieces
from faults.workshop import Workshop

# Set where file systems are mounted for this process alone.
OWN_MOUNTS = "FAULTS_OWN_MOUNTS"
ROOT = Path(__file__).resolve().parent.parent


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "faults"])
    parser.add_argument("--program", type=Path, default=ROOT / "target/debug/experiments", help="the program, built before")
    parser.add_argument("--kills", type=int, default=1000, help="kills in all, shared by the kinds of work")
    parser.add_argument("--steps", type=int, default=60, help="faults of a kind, at most about so many of each piece of work")
    parser.add_argument("--patient", action="store_true", help="also wait for servers that fall silent, some minutes")
    parser.add_argument("--only", help="of kills the kinds of work whose name holds this word, of faults one of disks, calls, network, two, torn and clocks")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other moments")
    parser.add_argument("--at-once", type=int, default=2, help="pieces of work at the same time")
    parser.add_argument("--keep", type=Path, help="folder to work in, where folders of what went wrong stay")
    return parser.parse_args()


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def kills(arguments: argparse.Namespace, workshop: Workshop) -> int:
    wanted = [piece for piece in pieces() if not arguments.only or arguments.only in piece.kind]
    share = -(-arguments.kills // len(wanted))
    tallies = [Kills(piece, workshop, arguments.seed, share).run(arguments.at_once) for piece in wanted]
    head = ["work", "seconds undisturbed", "kills", "rounds", "moments", "rounds that ended wrong"]
    print(table(head, [tally.row() for tally in tallies]))
    print(f"{sum(tally.n_kills for tally in tallies)} kills")
    return sum(len(tally.wrong) for tally in tallies)


def faults(arguments: argparse.Namespace, workshop: Workshop) -> int:
    n_at_once, n_steps = arguments.at_once, arguments.steps
    on_disk = lambda piece, place: disk.Disks(workshop, piece, place, n_steps).all()
    families = {
        "disks": lambda: at_once(n_at_once, [lambda piece=piece, place=place: on_disk(piece, place) for piece, place in disk.on_disks()]),
        "calls": lambda: at_once(n_at_once, [lambda piece=piece: disk.Calls(workshop, piece, n_steps).fail() for piece in pieces()]),
        "network": lambda: others.network(workshop, arguments.patient),
        "two": lambda: others.two_at_once(workshop, n_steps),
        "torn": lambda: others.torn(workshop, n_steps),
        "clocks": lambda: others.clocks(workshop, n_at_once),
    }
    missing = disk.missing()
    groups: list[Group] = []
    for family, run in families.items():
        if arguments.only not in (None, family):
            continue
        if missing and family in ("disks", "calls"):
            print(f"{family}: left out, needs {', '.join(missing)}")
            continue
        groups += run()
    head = ["fault", "work", "cases", "no harm", "refused, then right", "wrong"]
    print(table(head, [group.row() for group in groups]))
    print(f"{sum(group.n_cases for group in groups)} faults")
    return sum(len(group.wrong) for group in groups)


def main():
    arguments = parse()
    if arguments.what == "faults" and not disk.missing() and OWN_MOUNTS not in os.environ:
        # What is mounted goes with this process, however it ends.
        os.execvpe("unshare", ["unshare", "--mount", sys.executable, *sys.argv], os.environ | {OWN_MOUNTS: "1"})
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=arguments.keep) as scratch:
        n_wrong = {"kills": kills, "faults": faults}[arguments.what](arguments, Workshop(arguments.program, Path(scratch)))
    print(f"{time.monotonic() - start:.0f} s")
    sys.exit(1 if n_wrong else 0)


if __name__ == "__main__":
    main()
