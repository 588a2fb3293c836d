"""A network that fails, two runs at once, files that were torn, and clocks that jump."""

import json
import os
import random
import shutil
import time
from pathlib import Path

from .cases import Group, Wrong, at_once, must_be_clear, must_be_kept, must_be_same, must_be_tidy
from .hub import Hub
from .pieces import Piece, finished, left, pieces
from .workshop import Workshop

# Where Debian's libfaketime has the library for programs of several threads.
FAKETIME = [f"/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1" for machine in ("x86_64", "aarch64")]


class At:
    """One piece of work, and what it leaves when nothing disturbs it."""

    def __init__(self, workshop: Workshop, piece: Piece, label: str = ""):
        self.workshop, self.piece, self.label = workshop, piece, label
        self.hub = Hub() if piece.needs_hub else None
        self.environment = piece.environment_with(self.hub)
        folder = self.folder("whole")
        self.must_end(folder)
        self.whole = left(folder, workshop)

    def folder(self, of: str) -> Path:
        return self.workshop.folder(f"{of} {self.label} {self.piece.kind}")

    def run(self, folder: Path, more: dict[str, str] | None = None) -> tuple[int, str]:
        code, _, said = self.workshop.run(folder, self.piece.arguments, self.environment | (more or {}))
        return code, said

    def must_end(self, folder: Path):
        code, said = self.run(folder)
        if not self.piece.has_ended(folder, code, said):
            raise Wrong(f"the next run: exit code {code}: {said.strip()[-500:]}")

    def must_be_whole(self, folder: Path):
        must_be_same(self.whole, left(folder, self.workshop))


def network(workshop: Workshop, patient: bool) -> list[Group]:
    """A server that refuses, breaks off or falls silent, once, or as often as it is asked; then the next run."""
    download = next(piece for piece in pieces() if piece.needs_hub)

    def of(fault: str) -> list[Group]:
        group = Group(f"the network: {fault}", download.kind)
        # Of each of the three files in turn, and more often than is tried. A silent server is waited for a minute, each time.
        for before, times in [(0, 1), (1, 1), (2, 1), *([(0, 2), (2, 2), (2, 4)] if fault != "silence" else [])]:
            group.add(f"{times} times behind {before} files", lambda b=before, t=times: failing(workshop, download, fault, b, t))
        return [group]

    def no_server() -> list[Group]:
        group = Group("the network: no server", download.kind)
        group.add("from the beginning", lambda: gone(workshop, download))
        return [group]

    faults = ["refuse", "reset", "cut", *(["silence"] if patient else [])]
    return at_once(len(faults) + 1, [*(lambda fault=fault: of(fault) for fault in faults), no_server])


def failing(workshop: Workshop, download: Piece, fault: str, before: int, times: int) -> bool:
    at = At(workshop, download, fault)
    folder = at.folder("network")
    at.hub.faults = [None] * before + [fault] * times
    code, said = at.run(folder)
    must_be_clear(code, said)
    done = finished(folder)
    at.must_end(folder)
    must_be_kept(done, folder)
    at.must_be_whole(folder)
    at.hub.close()
    return code != 0


def gone(workshop: Workshop, download: Piece) -> bool:
    at = At(workshop, download, "gone")
    folder = at.folder("network")
    code, said = at.run(folder, {"HF_ENDPOINT": "http://127.0.0.1:9"})
    must_be_clear(code, said)
    at.must_end(folder)
    at.must_be_whole(folder)
    at.hub.close()
    return code != 0


def two_at_once(workshop: Workshop, n_cases: int) -> list[Group]:
    """The same work begun again while it goes on: one ends well, the other too or with a word on why not."""
    groups = []
    for piece in pieces():
        at, rng = At(workshop, piece), random.Random(f"two {piece.kind}")
        group = Group("two runs at once", piece.kind)
        for n in range(n_cases):
            pause = rng.uniform(0.0, 0.15) if n % 2 else rng.uniform(0.0, 0.003)
            group.add(f"{1000 * pause:.1f} ms later", lambda pause=pause: two(at, pause))
        groups.append(group)
    return groups


def two(at: At, pause: float) -> bool:
    folder = at.folder("two")
    first = at.workshop.start(folder, at.piece.arguments, at.environment)
    time.sleep(pause)
    second = at.workshop.start(folder, at.piece.arguments, at.environment)
    ended = [(process.communicate()[1], process.returncode) for process in (first, second)]
    if all(code for _, code in ended):
        raise Wrong(f"neither ends well: {ended}")
    for said, code in ended:
        must_be_clear(code, said)
    at.must_end(folder)
    at.must_be_whole(folder)
    return any(code for _, code in ended)


def torn(workshop: Workshop, n_steps: int) -> list[Group]:
    """The last record cut at every byte, the logs of blocks too, and what a power loss leaves: zeros, half a line in the middle."""
    experiment = next(piece for piece in pieces() if piece.out == "out")
    at = At(workshop, experiment)
    whole = at.folder("torn whole")
    at.must_end(whole)
    groups = []
    for name in ("records.jsonl", "blocks.jsonl.zst"):
        content = (whole / "out" / name).read_bytes()
        last = len(content.rstrip(b"\n").rpartition(b"\n")[0]) if name.endswith("jsonl") else len(content) - 400
        group = Group(f"{name} cut short", experiment.kind)
        for n in range(last, len(content), max(1, (len(content) - last) // n_steps)):
            group.add(f"at byte {n}", lambda n=n, name=name, content=content: again(at, whole, name, content[:n]))
        groups.append(group)
    content = (whole / "out/records.jsonl").read_bytes()
    group = Group("zeros behind the records", experiment.kind)
    for n in (1, 100, 4096):
        group.add(f"{n} bytes", lambda n=n: again(at, whole, "records.jsonl", content + bytes(n)))
    groups.append(group)
    return groups


def again(at: At, whole: Path, name: str, content: bytes) -> bool:
    """The experiment run again over a torn file."""
    folder = at.folder("torn")
    for place in ("out", "cache"):
        shutil.copytree(whole / place, folder / place)
    before = json.loads((whole / "out/records.jsonl").read_bytes().splitlines()[0])["cell_id"]
    (folder / "out" / name).write_bytes(content)
    at.must_end(folder)
    if name == "records.jsonl":
        at.must_be_whole(folder)
    elif before not in finished(folder):
        raise Wrong("a record is lost")
    return False


def clocks(workshop: Workshop, n_at_once: int) -> list[Group]:
    """A clock that is wrong, that jumps between two runs, and that two runs at once see otherwise."""
    library = next((path for path in FAKETIME if os.path.exists(path)), None)
    if library is None:
        print("libfaketime is not installed: clocks that jump are left out")
        return []
    wrong = {"LD_PRELOAD": library, "DONT_FAKE_MONOTONIC": "1"}

    def of(piece: Piece) -> list[Group]:
        at = At(workshop, piece)
        groups = [Group("a clock that jumps between starts", piece.kind), Group("another clock in another run", piece.kind)]
        for offset in ("-40y", "-57y", "-2d", "+2d", "+300y"):
            groups[0].add(offset, lambda offset=offset: killed_and_again(at, wrong | {"FAKETIME": offset}))
            groups[1].add(offset, lambda offset=offset: beside(at, wrong | {"FAKETIME": offset}))
        return groups

    return at_once(n_at_once, [lambda piece=piece: of(piece) for piece in pieces()])


def killed_and_again(at: At, wrong: dict[str, str]) -> bool:
    """Killed in its middle under the wrong clock, then killed under the right one, then run to its end under the wrong one."""
    folder = at.folder("clock")
    for environment in (wrong, {}, wrong):
        process = at.workshop.start(folder, at.piece.arguments, at.environment | environment)
        time.sleep(0.1)
        process.kill()
        process.communicate()
    code, said = at.run(folder, wrong)
    if not at.piece.has_ended(folder, code, said):
        raise Wrong(f"exit code {code}: {said.strip()[-500:]}")
    at.must_be_whole(folder)
    return False


def beside(at: At, wrong: dict[str, str]) -> bool:
    """Runs with the right clock, while others with a wrong one begin and end in the same cache."""
    folder = at.folder("clock")
    process = at.workshop.start(folder, at.piece.arguments, at.environment)
    while process.poll() is None:
        at.workshop.run(folder, ["quantize", "model", "--method", "rtn", "--bits", "4", "--out", "other"], wrong)
        shutil.rmtree(folder / "other", ignore_errors=True)
    _, said = process.communicate()
    if process.returncode:
        raise Wrong(f"exit code {process.returncode}: {said.strip()[-500:]}")
    must_be_same(at.whole, left(folder, at.workshop), ("cache",))
    must_be_tidy(folder)
    return False
