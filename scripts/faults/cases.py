"""What must come of a fault: the right files, or a clear error and the right files from the next run; nothing that was done is lost."""

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from .pieces import differences, finished

# What a person is told to do about it.
REMEDY = re.compile(r"free space|choose |set (AWQ_CACHE|HF_HOME|TMPDIR)|is the disk full|wait for its end|run again|check the network|remove ")


@dataclass
class Group:
    """Faults of one kind, and what came of them."""

    fault: str
    work: str
    n_cases: int = 0
    n_unharmed: int = 0
    n_refused: int = 0
    wrong: list[str] = field(default_factory=list)

    def row(self) -> list[str]:
        return [self.fault, self.work, *map(str, (self.n_cases, self.n_unharmed, self.n_refused, len(self.wrong)))]

    def add(self, case: str, check: Callable[[], bool]):
        """Counts a case: `check` says whether the fault was refused, and raises where anything is wrong."""
        self.n_cases += 1
        try:
            refused = check()
        except Exception as error:  # noqa: BLE001: one case must not cost the others
            text = f"{self.fault}, {self.work}, {case}: {type(error).__name__}: {error}"
            print(text[:700], flush=True)
            self.wrong.append(text)
            return
        self.n_refused += refused
        self.n_unharmed += not refused


def at_once(n: int, jobs: list[Callable[[], list[Group]]]) -> list[Group]:
    """What comes of jobs that need nothing of each other, so many at the same time."""

    def shown(job: Callable[[], list[Group]]) -> list[Group]:
        groups = job()
        for group in groups:
            print(" | ".join(group.row()), flush=True)
        return groups

    with ThreadPoolExecutor(n) as pool:
        return [group for groups in pool.map(shown, jobs) for group in groups]


class Wrong(Exception):
    pass


def must_be_clear(code: int, said: str):
    """A run that did not end well says what to do, and does not fall over."""
    said = said.strip()
    if code not in (0, 1) or "panicked" in said:
        raise Wrong(f"exit code {code}: {said[-500:]}")
    if code == 1 and not REMEDY.search(said):
        raise Wrong(f"no remedy is named: {said[-500:]}")


def must_be_kept(before: set[str], folder: Path):
    if lost := before - finished(folder):
        raise Wrong(f"lost: {sorted(lost)}")


def must_be_tidy(folder: Path):
    """Nothing half made is left in a cache."""
    if half_made := sorted(path.name for path in folder.glob("cache/partial/*")):
        raise Wrong(f"left in the cache: {half_made}")


def must_be_same(whole: dict[str, object], found: dict[str, object], aside: Iterable[str] = ()):
    """All that counts of a folder: not the order in which cells came on record, nor what begins with a word of `aside`."""

    def counted(folder: dict[str, object]) -> dict[str, object]:
        kept = {name: content for name, content in folder.items() if not name.startswith(tuple(aside))}
        ordered = {name: content for name, content in kept.items() if name.endswith("records.jsonl")}
        return kept | {name: {**content, "order": None} for name, content in ordered.items()}

    if wrong := differences(counted(whole), counted(found)):
        raise Wrong("; ".join(wrong))
