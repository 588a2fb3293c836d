#!/usr/bin/env python3
"""Compares the records of a fresh run with those that are committed, cell by cell.

    cargo run -p experiments -- configs/quickstart.toml --out /tmp/fresh
    scripts/check-golden.py results/reference/quickstart /tmp/fresh

Every cell of the first folder must be in the second, with the same codes (sha256) and the same numbers, bit for bit. Products in
bf16, which AWQ's search begins with, are computed otherwise on a CPU without the instruction set of the committed run (AVX-512
here), and on one that has tiles (AMX): there numbers may differ by a thousandth, and codes that lie between two are not compared.
"""

import json
import math
import platform
import sys
from pathlib import Path

TOLERANCE_ELSEWHERE = 1e-3


def finished(folder: Path) -> dict[str, dict]:
    """The newest finished record of each cell."""
    lines = (folder / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {record["cell_id"]: record for record in records if "done" in record["outcome"]}


def has_the_instructions() -> bool:
    """Whether products in bf16 are added up as on the CPU of the committed run."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text() if platform.machine() == "x86_64" and cpu.exists() else ""
    return " avx512f " in flags and " amx_bf16 " not in flags


def differences(golden: dict, fresh: dict, strict: bool) -> list[str]:
    """What is not as it was, in words."""
    golden, fresh = golden["outcome"]["done"], fresh["outcome"]["done"]
    found = []
    codes = [(done.get("quantization") or {}).get("codes_sha256") for done in (golden, fresh)]
    if strict and codes[0] != codes[1]:
        found.append(f"codes {codes[1]}, not {codes[0]}")
    before, after = (
        {(m["metric"], m["dataset"], m["protocol"]): m["value"] for m in done["measurements"]} for done in (golden, fresh)
    )
    if before.keys() != after.keys():
        found.append(f"other measurements: {sorted(after)}, not {sorted(before)}")
    for key in before.keys() & after.keys():
        same = before[key] == after[key] if strict else math.isclose(before[key], after[key], rel_tol=TOLERANCE_ELSEWHERE)
        if not same:
            found.append(f"{' '.join(map(str, key))}: {after[key]!r}, not {before[key]!r}")
    return found


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    golden, fresh = (finished(Path(folder)) for folder in sys.argv[1:])
    strict = has_the_instructions()
    problems = []
    for cell_id, record in golden.items():
        label = " ".join(map(str, record["labels"].values()))
        if cell_id not in fresh:
            problems.append(f"{label}: not in {sys.argv[2]}")
            continue
        problems += [f"{label}: {problem}" for problem in differences(record, fresh[cell_id], strict)]
    if problems:
        sys.exit("\n".join(problems) + "\nIf this is meant, run the committed experiment again and say so in CHANGELOG.md")
    how = "bit for bit" if strict else f"within {TOLERANCE_ELSEWHERE:g}, on other instructions"
    print(f"{len(golden)} cells are those of {sys.argv[1]}, {how}")


if __name__ == "__main__":
    main()
