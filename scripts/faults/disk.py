"""Disks that are full at every size and at every file, folders that cannot be written, and system calls that fail one by one."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from .cases import Group, Wrong, must_be_clear, must_be_kept, must_be_same, must_be_tidy
from .hub import Hub
from .pieces import Piece, finished, left, pieces
from .workshop import Workshop

PAGE_KIB, LEAST_KIB = 4, 128
# Enough for every piece of work.
ROOMY = "size=64m,nr_inodes=100k"

# What a program does to files, and how that may fail.
CALLS = {
    "write": ("write,pwrite64,writev,copy_file_range,sendfile", "ENOSPC"),
    "sync": ("fsync,fdatasync", "EIO"),
    "rename": ("rename,renameat,renameat2", "EIO"),
    "open": ("openat", "EMFILE"),
    "create a folder, cut, link": ("mkdir,ftruncate,symlink,linkat", "ENOSPC"),
    "read": ("read,pread64", "EIO"),
}


def on_disks() -> list[tuple[Piece, str]]:
    """Each piece of work, and the folder that is a disk of its own meanwhile."""
    by_kind = {piece.kind: piece for piece in pieces()}
    found = [(by_kind["experiment"], "out"), (by_kind["experiment"], "cache"), (by_kind["experiment, no codes kept"], "cache")]
    for piece in by_kind.values():
        if piece.arguments[0] in ("quantize", "export"):
            before = ["", *piece.arguments]
            names = zip(piece.arguments, before, strict=False)
            moved = [f"disk/{word}" if option in ("--out", "--imatrix") else word for word, option in names]
            found.append((Piece(piece.kind, moved, f"disk/{piece.out}", piece.environment), "disk"))
    return [*found, (by_kind["quantize, packed"], "cache"), (by_kind["download"], "hub")]


@contextlib.contextmanager
def disk(place: Path, options: str):
    """A file system in memory at `place`, which is made."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "faults", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def change(place: Path, options: str):
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


class Disks:
    """Faults of disks for one piece of work."""

    def __init__(self, workshop: Workshop, piece: Piece, place: str, n_steps: int):
        self.workshop, self.piece, self.place, self.n_steps = workshop, piece, place, n_steps
        self.hub = Hub() if piece.needs_hub else None
        self.environment = piece.environment_with(self.hub)
        # Where the cache is too small or cannot be written, codes are elsewhere meanwhile.
        self.aside = ("cache",) if place == "cache" else ()
        folder = self.folder()
        with disk(folder / place, ROOMY):
            self.must_end(folder)
            self.whole = left(folder, workshop)
            usage = os.statvfs(folder / place)
            # Scratch files are gone by now.
            self.n_kib = max((usage.f_blocks - usage.f_bfree) * usage.f_frsize // 1024, LEAST_KIB)
            self.n_inodes = usage.f_files - usage.f_ffree

    def folder(self) -> Path:
        return self.workshop.folder(f"disk {self.piece.kind} {self.place}")

    def must_end(self, folder: Path):
        code, _, said = self.workshop.run(folder, self.piece.arguments, self.environment)
        if not self.piece.has_ended(folder, code, said):
            raise Wrong(f"the next run: exit code {code}: {said.strip()[-500:]}")

    def all(self) -> list[Group]:
        return [*self.full(), self.read_only()]

    def full(self) -> list[Group]:
        """Every size from nothing to more than is needed, and every number of files."""
        # While it writes it needs up to twice what it leaves.
        most, step = 3 * self.n_kib, max(PAGE_KIB, 3 * self.n_kib // self.n_steps // PAGE_KIB * PAGE_KIB)
        sizes = [f"size={kib}k" for kib in range(PAGE_KIB, most + PAGE_KIB, step)]
        inodes = [f"size=64m,nr_inodes={n}" for n in range(2, self.n_inodes + 12, max(1, self.n_inodes // self.n_steps))]
        groups = []
        for fault, options in (("a full disk", sizes), ("no room for files", inodes)):
            group = Group(f"{fault} at {self.place}/", self.piece.kind)
            for option in options:
                group.add(option, lambda option=option: self.on(option, ROOMY))
            groups.append(group)
        return groups

    def read_only(self) -> Group:
        """Nothing there yet, and everything."""
        group = Group(f"{self.place}/ cannot be written", self.piece.kind)
        group.add("empty", lambda: self.on(f"{ROOMY},ro", "rw"))
        group.add("full", self.read_only_at_the_end)
        return group

    def on(self, options: str, remedy: str) -> bool:
        folder = self.folder()
        with disk(folder / self.place, options):
            code, _, said = self.workshop.run(folder, self.piece.arguments, self.environment)
            must_be_clear(code, said)
            done = finished(folder)
            change(folder / self.place, remedy)
            self.must_end(folder)
            must_be_kept(done, folder)
            must_be_same(self.whole, left(folder, self.workshop), self.aside)
            must_be_tidy(folder)
            return code != 0

    def read_only_at_the_end(self) -> bool:
        folder = self.folder()
        with disk(folder / self.place, ROOMY):
            self.must_end(folder)
            change(folder / self.place, "ro")
            code, _, said = self.workshop.run(folder, self.piece.arguments, self.environment)
            must_be_clear(code, said)
            must_be_same(self.whole, left(folder, self.workshop), self.aside)
            return code != 0


class Calls:
    """System calls of one piece of work that fail once: the first, the second and so on, of each thread."""

    def __init__(self, workshop: Workshop, piece: Piece, n_steps: int):
        self.workshop, self.piece, self.n_steps = workshop, piece, n_steps
        self.hub = Hub() if piece.needs_hub else None
        self.environment = piece.environment_with(self.hub)
        self.at_end = workshop.folder(f"calls at the end {piece.kind}")
        self.must_end(self.at_end)
        self.whole = left(self.at_end, workshop)

    def folder(self) -> Path:
        return self.workshop.folder(f"calls {self.piece.kind}")

    def must_end(self, folder: Path):
        code, _, said = self.workshop.run(folder, self.piece.arguments, self.environment)
        if not self.piece.has_ended(folder, code, said):
            raise Wrong(f"the next run: exit code {code}: {said.strip()[-500:]}")

    def folder_with_codes(self) -> Path:
        """As a run leaves it that was killed behind the long work."""
        folder = self.folder()
        for place in ("cache", "hub/hub/models--owner--tiny/blobs"):
            if (self.at_end / place).exists():
                shutil.copytree(self.at_end / place, folder / place)
        return folder

    def n_calls(self, calls: str, start: Callable[[], Path]) -> int:
        """How often the thread that makes most of them makes them."""
        log = self.workshop.scratch / "calls.log"
        self.workshop.run(start(), self.piece.arguments, self.environment, ["strace", "-f", "-o", log, "-e", f"trace={calls}"])
        threads = re.findall(r"^(\d+) +\w+\(", log.read_text(), re.MULTILINE)
        return max((threads.count(thread) for thread in set(threads)), default=0)

    def fail(self) -> list[Group]:
        groups = []
        for name, (calls, error) in CALLS.items():
            group = Group(f"{name} fails ({error})", self.piece.kind)
            # From the beginning, and where an earlier run has left codes or contents: they must not be lost.
            for start in (self.folder, self.folder_with_codes):
                n_calls = self.n_calls(calls, start)
                for n in range(1, n_calls + 1, max(1, 2 * n_calls // self.n_steps)):
                    case = f"call {n}, {start.__name__}"
                    group.add(case, lambda n=n, c=calls, e=error, s=start: self.one(c, e, n, s()))
            groups.append(group)
        return groups

    def one(self, calls: str, error: str, n: int, folder: Path) -> bool:
        before = finished(folder)
        inject = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}:when={n}"]
        code, shown, said = self.workshop.run(folder, self.piece.arguments, self.environment, inject)
        said = shown + said
        if "error while loading shared libraries" in said:
            return True
        if code not in (0, 1) or "panicked" in said:
            raise Wrong(f"exit code {code}: {said.strip()[-500:]}")
        if code == 1 and "error" not in said and "FAILED" not in said:
            raise Wrong(f"says nothing of it: {said.strip()[-500:]}")
        must_be_kept(before, folder)
        done = finished(folder)
        self.must_end(folder)
        must_be_kept(done, folder)
        # Without room for a lock, a file of the hub is downloaded without.
        must_be_same(self.whole, left(folder, self.workshop), ("cache", "hub/hub/.locks"))
        must_be_tidy(folder)
        return code != 0


def missing() -> list[str]:
    """What is missing for the faults of this file."""
    lacking = [] if os.geteuid() == 0 else ["root, for file systems of their own"]
    return lacking + [tool for tool in ("strace", "mount", "unshare") if not shutil.which(tool)]
