#!/usr/bin/env python3
"""What CUDA's compiler makes of the kernels for packed weights: registers, spills and instructions, read without a GPU.

    python3 -m venv venv && venv/bin/pip install cbor2 nvidia-cuda-nvdisasm nvidia-cuda-nvrtc==13.0.* \\
        nvidia-cuda-runtime==13.0.* nvidia-cuda-cccl==13.0.* nvidia-cuda-nvcc==13.0.* nvidia-cuda-crt==13.0.*
    CUDARC_CUDA_VERSION=13000 cargo build -p awq-core --features cuda --example packed_kernels
    venv/bin/python scripts/gpu_sass.py target/debug/examples/packed_kernels --out results/sass.md

CubeCL compiles the kernels with NVRTC, as on a machine with an H100 for which scripts/gpu/driver.c stands in, and keeps the PTX. ptxas and
nvdisasm do the rest. A loop's numbers are those of the longest one: what a thread does for the codes that it reads at a time.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import cbor2

ARCH = "sm_90a"
# Registers of a multiprocessor, and in how many a warp's are given out.
REGISTERS, UNIT = 65536, 256
MOST_WARPS = 64

# Columns of a loop: a heading and which instructions it counts.
COLUMNS = [
    ("all", r".*"),
    ("tensor", r"HMMA"),
    ("load 16 B", r"LDG\.\S*128"),
    ("8 B", r"LDG\.\S*64"),
    ("4 B", r"LDG\.E(?!\S*(64|128|U16|U8))"),
    ("2 B", r"LDG\.\S*U16"),
    ("async", r"LDGSTS|UTMA|UBLKCP"),
    ("shared", r"LDS|STS"),
    ("bits", r"LOP3|SHF|PRMT|BFE|SGXT"),
    ("convert", r"I2F|F2F|I2FP|HADD2\.F32"),
    ("f16", r"HADD2(?!\.F32)|HMUL2|HFMA2"),
    ("f32", r"FADD|FMUL|FFMA"),
    ("address", r"IMAD|IADD|LEA|ISETP|SEL|IMNMX|VIMNMX|VIADD"),
]


def kernels(program: Path, toolkit: Path) -> list[tuple[str, dict]]:
    """Labels and what CubeCL kept, by the example of that name."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        libraries, kept = folder / "lib", folder / "kept"
        libraries.mkdir()
        driver = Path(__file__).parent / "gpu/driver.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", libraries / "libcuda.so", driver], check=True)
        nvrtc = next((toolkit / "lib").glob("libnvrtc.so.*"))
        (libraries / "libnvrtc.so").symlink_to(nvrtc)
        env = os.environ | {"CUDA_PATH": str(toolkit), "LD_LIBRARY_PATH": f"{libraries}:{nvrtc.parent}"}
        command = [program.resolve(), kept]
        said = subprocess.run(command, env=env, cwd=folder, check=True, text=True, stdout=subprocess.PIPE).stdout
        chunk = next(kept.glob("cuda/*/ptx/chunk0.cbor"))
        entries = []
        with open(chunk, "rb") as file:
            while file.tell() < chunk.stat().st_size:
                entries.append(cbor2.load(file)["value"])
    labelled = [line.split("\t") for line in said.splitlines()]
    return [(label, entries[int(number)]) for label, number in labelled]


def compiled(toolkit: Path, ptx: bytes) -> tuple[str, str]:
    """What ptxas says, and the machine's instructions."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_bytes(ptx)
        ptxas = [toolkit / "bin/ptxas", "-v", f"-arch={ARCH}", source, "-o", cubin]
        said = subprocess.run(ptxas, check=True, text=True, capture_output=True).stderr
        dump = subprocess.run([toolkit / "bin/nvdisasm", "-c", cubin], check=True, text=True, capture_output=True)
        return said, dump.stdout


def instructions(sass: str) -> tuple[list[str], dict[str, int], list[tuple[int, str]]]:
    """Names of instructions, where labels stand among them, and branches."""
    names, labels, branches = [], {}, []
    for line in sass.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(names)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", line):
            if target := re.search(r"`\((\.L_x_\d+)\)", found[2]):
                branches.append((len(names), target[1]))
            names.append(found[1])
    return names, labels, branches


def longest_loop(sass: str) -> list[str]:
    """Instructions of the longest loop that has no other in it; all where there is none."""
    names, labels, branches = instructions(sass)
    loops = [(labels[target], at + 1) for at, target in branches if labels.get(target, at + 1) <= at]
    # The trap behind the end branches to itself.
    loops = [(start, end) for start, end in loops if end - start > 8]
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    start, end = max(inner, key=lambda loop: loop[1] - loop[0], default=(0, len(names)))
    return names[start:end]


def row(label: str, entry: dict, toolkit: Path) -> list[str]:
    ptx = bytes(value & 255 for value in entry["ptx"]).rstrip(b"\0")
    said, sass = compiled(toolkit, ptx)
    number = lambda pattern: int(match[1]) if (match := re.search(pattern, said)) else 0
    registers, spilled = number(r"Used (\d+) registers"), number(r"(\d+) bytes spill stores")
    threads = [int(n) for n in re.search(rb"\.(?:max|req)ntid ([\d, ]+)", ptx)[1].split(b",")]
    warps = -(-eval_product(threads) // 32)
    of_warp = -(-registers * 32 // UNIT) * UNIT
    resident = min(MOST_WARPS, REGISTERS // (of_warp * warps) * warps)
    loop = longest_loop(sass)
    counts = Counter()
    for name in loop:
        counts.update(heading for heading, pattern in COLUMNS if re.match(pattern, name))
    shared = entry["shared_mem_bytes"]
    return [label, *map(str, (registers, spilled, shared, f"{resident}/{MOST_WARPS}")), *(str(counts[name]) for name, _ in COLUMNS)]


def eval_product(factors: list[int]) -> int:
    product = 1
    for factor in factors:
        product *= factor
    return product


def version(command: list) -> str:
    said = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    return re.search(r"V(\d+\.\d+\.\d+)", said)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, help="the example packed_kernels")
    parser.add_argument("--toolkit", type=Path, help="the folder of CUDA; default: that of this Python's packages")
    parser.add_argument("--out", type=Path, help="file for the table; default: standard output")
    args = parser.parse_args()
    toolkit = args.toolkit or next(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cu13"))
    rows = [row(label, entry, toolkit) for label, entry in kernels(args.program, toolkit)]
    headings = ["kernel", "registers", "spilled B", "shared B", "warps", *(name for name, _ in COLUMNS)]
    table = [headings, ["---"] + ["--:"] * (len(headings) - 1), *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in table)
    versions = f"ptxas {version([toolkit / 'bin/ptxas', '--version'])}, nvdisasm {version([toolkit / 'bin/nvdisasm', '--version'])}"
    text = f"# Kernels for packed weights as {ARCH} runs them\n\nBy scripts/gpu_sass.py with {versions}. Groups of 128, 4096 input channels.\n\n{text}"
    if args.out:
        args.out.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
