"""Pieces of work killed at random moments and started again until they end; what is left is held against an undisturbed run."""

import random
import subprocess
import threading
import time
from dataclasses import dataclass, field

from .hub import Hub
from .pieces import Piece, differences, finished, left, wrong_report
from .workshop import Workshop

# A round ends undisturbed after so many kills.
MOST_KILLS = 6
PATIENCE = 120


@dataclass
class Tally:
    """What came of one kind of work."""

    kind: str
    whole_seconds: float = 0.0
    n_kills: int = 0
    n_rounds: int = 0
    moments: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def row(self) -> list[str]:
        first, last = (min(self.moments), max(self.moments)) if self.moments else (0.0, 0.0)
        return [
            self.kind, f"{self.whole_seconds:.2f}", str(self.n_kills), str(self.n_rounds),
            f"{1000 * first:.0f} to {1000 * last:.0f} ms", str(len(self.wrong)),
        ]  # fmt: skip


def undisturbed(piece: Piece, workshop: Workshop) -> tuple[dict[str, object], float]:
    """What an undisturbed run leaves, and how long the longer of two took."""
    runs = []
    for index in range(2):
        folder = workshop.folder(f"{piece.kind}-whole-{index}")
        hub = Hub()
        start = time.monotonic()
        code, _, said = workshop.run(folder, piece.arguments, piece.environment_with(hub))
        seconds = time.monotonic() - start
        hub.close()
        assert code == 0, f"{piece.kind}: an undisturbed run failed: {said}"
        runs.append((left(folder, workshop), seconds))
    (whole, first), (again, second) = runs
    assert not differences(whole, again), f"{piece.kind}: two undisturbed runs differ: {differences(whole, again)}"
    return whole, max(first, second)


class Kills:
    """Kills of one kind of work, until there are enough of them."""

    def __init__(self, piece: Piece, workshop: Workshop, seed: int, n_kills: int):
        self.piece, self.workshop, self.seed, self.n_wanted = piece, workshop, seed, n_kills
        self.tally = Tally(piece.kind)
        self.lock = threading.Lock()
        self.n_begun = 0

    def run(self, n_at_once: int) -> Tally:
        self.whole, self.tally.whole_seconds = undisturbed(self.piece, self.workshop)
        workers = [threading.Thread(target=self.rounds) for _ in range(n_at_once)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        print(" | ".join(self.tally.row()), flush=True)
        return self.tally

    def rounds(self):
        while True:
            with self.lock:
                if self.tally.n_kills >= self.n_wanted:
                    return
                index, self.n_begun = self.n_begun, self.n_begun + 1
            try:
                wrong = self.round(index)
            except Exception as error:  # noqa: BLE001: one round must not cost the others
                wrong = [f"{type(error).__name__}: {error}"]
            with self.lock:
                self.tally.n_rounds += 1
                if wrong:
                    text = f"{self.piece.kind}, round {index}: {'; '.join(wrong)}"
                    print(text[:500], flush=True)
                    self.tally.wrong.append(text)

    def round(self, index: int) -> list[str]:
        """Starts the work until it ends, killing it on the way; what is wrong then."""
        rng = random.Random(f"{self.seed} {self.piece.kind} {index}")
        folder = self.workshop.folder(f"{self.piece.kind}-{index}")
        hub = Hub() if self.piece.needs_hub else None
        environment = self.piece.environment_with(hub)
        done, n_kills = set(), 0
        while True:
            process = self.workshop.start(folder, self.piece.arguments, environment)
            moment = rng.uniform(0.0, 1.1 * self.tally.whole_seconds) if n_kills < MOST_KILLS else PATIENCE
            try:
                _, said = process.communicate(timeout=moment)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                n_kills += 1
                with self.lock:
                    self.tally.n_kills += 1
                    self.tally.moments.append(moment)
                now = finished(folder)
                if lost := done - now:
                    return [f"lost after kill {n_kills}: {sorted(lost)}"]
                done = now
                continue
            if not self.piece.has_ended(folder, process.returncode, said):
                return [f"after {n_kills} kills: {said.strip()[-500:]}"]
            break
        wrong = differences(self.whole, left(folder, self.workshop))
        if self.piece.out == "out":
            wrong += wrong_report(folder, self.workshop)
        if hub:
            hub.close()
        if not wrong:
            self.workshop.remove(folder)
        return wrong
