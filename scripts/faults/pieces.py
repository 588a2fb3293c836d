"""Pieces of work, what each leaves when nothing disturbs it, and what of that may differ.

Compared are all files below the folder of the work, by name and byte for byte, but for what says when and how fast: in records and
in the logs of blocks the keys of ASIDE, in stored blocks the seal over them. A record counts once for its cell, the newest. A report
holds times, too: it is held against one that the program makes of the same records.
"""

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from .hub import REPO, Hub
from .workshop import Workshop, sha256

# Times, memory, and the hash of a text that holds times.
ASIDE = {"cost", "seconds", "shared_seconds", "unix_time", "memory_bytes", "blocks_sha256"}
# Files of a report, and of a run, that say how long cells took.
WITH_TIMES = {"records.parquet", "report.html", "table.csv", "progress.json"}


@dataclass
class Piece:
    """A piece of work: the program's arguments, and the place that it makes."""

    kind: str
    arguments: list[str]
    out: str
    environment: dict[str, str] = field(default_factory=dict)
    needs_hub: bool = False

    def environment_with(self, hub: Hub | None) -> dict[str, str]:
        of_hub = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"} if hub and self.needs_hub else {}
        return self.environment | of_hub

    def has_ended(self, folder: Path, code: int, said: str) -> bool:
        """Whether a start that was not killed found the work done: by itself, or by one that was killed behind its end."""
        refusals = ("is not empty; choose another folder", "exists already; choose another file")
        return code == 0 or (any(refusal in said for refusal in refusals) and (folder / self.out).exists())


def pieces() -> list[Piece]:
    quantize = ["quantize", "model", "--method", "awq", "--bits", "4", "--group-size", "32", "--calibration", "calibration.txt"]
    export = ["export", "model", "--calibration", "calibration.txt"]
    one = ["--threads", "1"]
    return [
        Piece("experiment", ["experiment.toml", "--out", "out", *one], "out"),
        Piece("experiment, no codes kept", ["experiment.toml", "--out", "out", *one], "out", {"AWQ_CODES_GIB": "0"}),
        Piece("quantize, packed", [*quantize, "--out", "packed", *one], "packed"),
        Piece("quantize, AutoAWQ", [*quantize, "--format", "awq", "--out", "awq", *one], "awq"),
        Piece("quantize, GGUF", [*quantize, "--format", "gguf", "--out", "model.gguf", *one], "model.gguf"),
        Piece("export", [*export, "--scales-for", "w4g32", "--imatrix", "seen.gguf", "--out", "f16.gguf", *one], "f16.gguf"),
        Piece("download", ["inspect", REPO], "hub", needs_hub=True),
    ]  # fmt: skip


def left(folder: Path, workshop: Workshop) -> dict[str, object]:
    """What a folder holds, by path, as it is to be compared."""
    found = {}
    inputs = {entry.name for entry in workshop.inputs.iterdir()}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in inputs:
            continue
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = comparable(path)
        elif not any(path.iterdir()):
            found[name] = "an empty folder"
    return found


def wrong_report(folder: Path, workshop: Workshop) -> list[str]:
    """Files of a report that are not what the records in the same folder come to."""
    before = {path: path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
    code, _, said = workshop.run(folder, ["report", "out"])
    if code:
        return [f"report: {said}"]
    return [f"{path.name} is not of its records" for path, content in before.items() if path.read_bytes() != content]


def comparable(path: Path) -> object:
    if path.name == "records.jsonl":
        return records(path)
    if path.name == "blocks.jsonl.zst":
        # Of frames that no record names there may be more: what records name is compared with them.
        return "logs of blocks"
    if path.name in WITH_TIMES:
        return "a report"
    content = path.read_bytes()
    if path.name == "quantized.json":
        return without_times(json.loads(content))
    if path.name == "sha256" and (path.parent / "quantized.json").exists():
        return "a seal"
    return sha256(content)


def finished(folder: Path) -> set[str]:
    """What is done, and must not be lost: cells on record, stored blocks, contents of the hub, the folder or file itself."""
    done = {f"block {path.parent.name[:8]}/{path.name}" for path in folder.glob("cache/codes/*/*") if path.is_dir()}
    done |= {str(path.name) for path in folder.glob("hub/hub/*/blobs/*") if path.suffix != ".incomplete"}
    if (path := folder / "out/records.jsonl").exists():
        whole = path.read_bytes().rpartition(b"\n")[0]
        done |= {json.loads(line)["cell_id"] for line in whole.splitlines()}
    return done | {place for place in ("packed", "awq", "model.gguf", "f16.gguf") if (folder / place).exists()}


def records(path: Path) -> dict[str, object]:
    """The newest record of each cell, with the logs of its blocks in it; the order of the newest."""
    logs = block_logs(path.with_name("blocks.jsonl.zst"))
    newest: dict[str, object] = {}
    for line in path.read_bytes().splitlines():
        record = json.loads(line)
        quantization = record["outcome"].get("done", {}).get("quantization")
        if quantization and (named := quantization.get("blocks_sha256")):
            quantization["blocks"] = logs[named]
        newest.pop(record["cell_id"], None)
        newest[record["cell_id"]] = without_times(record)
    return newest | {"order": list(newest)}


def block_logs(path: Path) -> dict[str, object]:
    if not path.exists():
        return {}
    text = subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout
    return {sha256(line): json.loads(line) for line in text.splitlines(keepends=True)}


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in ASIDE}
    if isinstance(value, list):
        return [without_times(inner) for inner in value]
    return value


def differences(whole: dict[str, object], found: dict[str, object]) -> list[str]:
    """In words: what one folder has and the other has not, or otherwise."""
    missing = [f"{name} is missing" for name in whole if name not in found]
    more = [f"{name} is left over" for name in found if name not in whole]
    return missing + more + [f"{name} differs" for name in whole if name in found and whole[name] != found[name]]
