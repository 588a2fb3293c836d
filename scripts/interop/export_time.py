#!/usr/bin/env python3
"""Wall time and peak memory of writing a model in 4 bits: this program beside AutoAWQ, gptqmodel and llama.cpp, in turns.

    venv/bin/python scripts/interop/export_time.py MODEL [--llama-cpp package/bins/linux-x64] [--runs 3] [--before FOLDER] \\
        [--only TEXT] [--page results/interop.md]

MODEL is a folder in bf16, or a GGUF file of a small model, of which transformers makes one; this program makes a GGUF file in f16 of
that, too: what all jobs begin with. FOLDER has this program as it was before a change, for another row; TEXT is part of what is
made, such as GGUF, and may be given again. Each job is a process of its own, from its start to its end, and rounds to nearest without calibration. AutoAWQ has no
such command: its own functions round, pack and save, without its search. --page puts the table in place of the model's in the section
of a page.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HEADING = "## Time and memory of an export"
GROUP_SIZE = 64


def by_autoawq(model: Path, out: Path) -> None:
    import torch
    from awq import AutoAWQForCausalLM
    from awq.models._config import AwqConfig
    from awq.quantize.quantizer import AwqQuantizer
    from awq.utils.module import get_named_linears

    made = AutoAWQForCausalLM.from_pretrained(str(model), device_map="cpu", torch_dtype=torch.float16)
    made.quant_config = AwqConfig(w_bit=4, q_group_size=GROUP_SIZE, zero_point=True, version="gemm")
    # Its constructor would calibrate.
    quantizer = AwqQuantizer.__new__(AwqQuantizer)
    quantizer.w_bit, quantizer.group_size, quantizer.zero_point, quantizer.version = 4, GROUP_SIZE, True, "gemm"
    for block in made.get_model_layers(made.model):
        quantizer._apply_quant(block, get_named_linears(block))
    made.save_quantized(str(out))


def by_gptqmodel(model: Path, out: Path) -> None:
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import GPTQModel
    from gptqmodel.quantization.config import RTNConfig

    settings = RTNConfig(bits=4, group_size=GROUP_SIZE, sym=True, offload_to_disk=False)
    made = GPTQModel.load(str(model), settings, device="cpu")
    made.quantize(calibration=None)
    made.save(str(out))


def by_llama_cpp(libraries: Path, model: Path, out: Path) -> None:
    import llama_cpp

    # Types of a file and of a tensor; this program leaves embedding and head as they are.
    q4_0, f16 = 2, 1
    llama_cpp.LlamaCpp(libraries).quantize(model, out, q4_0, embedding=f16)


OTHERS = {"autoawq": by_autoawq, "gptqmodel": by_gptqmodel}


def prepared(file: Path, programs: Path, work: Path) -> tuple[Path, Path]:
    """The model as a folder in bf16, and that as a GGUF file in f16."""
    import torch
    import transformers

    folder, half = work / "model", work / "model-f16.gguf"
    if file.is_dir():
        run([str(programs / "experiments"), "export", str(file), "--out", str(half), "--quiet"], work / "log")
        return file, half
    load = {"gguf_file": file.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.bfloat16, **load)
    # It is dense, and transformers 5.24 does not save it while it remembers the file.
    model.hf_quantizer.remove_quantization_config(model)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(file.parent, **load).save_pretrained(folder)
    run([str(programs / "experiments"), "export", str(folder), "--out", str(half), "--quiet"], work / "log")
    return folder, half


# A process begins with the peak of the one that it was forked from: this one is small.
LAUNCHER = """
import os, sys, time
begin = time.monotonic()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(child, 0)
print(f"launched: {time.monotonic() - begin} {used.ru_maxrss / 1024} {status}", flush=True)
"""


def run(command: list[str], log: Path) -> tuple[float, float]:
    """Seconds, and MiB of the most memory that was resident."""
    # Codes that this program has kept would spare it the work of the next turn.
    cache = log.parent / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    environment = os.environ | {"AWQ_CACHE": str(cache)}
    with log.open("w") as file:
        launch = [sys.executable, "-S", "-c", LAUNCHER, *command]
        subprocess.run(launch, env=environment, stdout=file, stderr=subprocess.STDOUT, check=True)
    seconds, memory, status = log.read_text().rsplit("launched: ", 1)[1].split()
    if status != "0":
        sys.exit(f"{command} failed:\n{log.read_text()[-2000:]}")
    return float(seconds), float(memory)


def size_of(out: Path) -> float:
    """MiB of the weights' files."""
    files = list(out.glob("*.safetensors")) if out.is_dir() else [out]
    return sum(file.stat().st_size for file in files) / 2**20


def jobs(folder: Path, half: Path, programs: dict[str, Path], libraries: Path | None):
    """What is made, by what, its command without the place, and what it begins with."""
    import theirs

    quantize = {name: [str(place / "experiments"), "quantize"] for name, place in programs.items()}
    rtn = ["--method", "rtn", "--bits", "4", "--quiet"]
    groups = ["--group-size", str(GROUP_SIZE)]
    itself = [sys.executable, str(Path(__file__).resolve()), "--job"]
    for name, command in quantize.items():
        yield "AWQ folder", name, [*command, str(folder), *rtn, *groups, "--format", "awq", "--out"]
    yield "AWQ folder", f"autoawq {theirs.version('autoawq')}", [*itself, "autoawq", str(folder)]
    full = ["--symmetry", "full"]
    for name, command in quantize.items():
        yield "GPTQ folder", name, [*command, str(folder), *rtn, *groups, *full, "--format", "gptq", "--out"]
    yield "GPTQ folder", f"gptqmodel {theirs.version('gptqmodel')} (RTNConfig)", [*itself, "gptqmodel", str(folder)]
    if libraries:
        import llama_cpp

        version = llama_cpp.LlamaCpp(libraries).version()
        q4_0 = ["--group-size", "32", *full, "--format", "gguf", "--out"]
        for name, command in quantize.items():
            yield "GGUF file, Q4_0, from F16", name, [*command, str(half), *rtn, *q4_0]
        yield "GGUF file, Q4_0, from F16", version, [*itself, f"llama.cpp:{libraries}", str(half)]


def section(name: str, rows: list[list[str]], n_runs: int) -> str:
    heading = ["what", "program", "seconds", "peak memory, MiB", "weights, MiB"]
    lines = [heading, ["---", "---", "--:", "--:", "--:"], *rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"### {name}, {n_runs} runs in turns\n\n{table}"


def put(page: str, name: str, text: str) -> str:
    """The page with the table of this model in the section, in place of an older one or at its end."""
    before, _, of_section = page.partition(HEADING)
    if not of_section:
        return f"{page.rstrip()}\n\n{HEADING}\n\n{text}"
    prose, *tables = of_section.split("\n### ")
    tables = [table.strip() for table in tables if not table.startswith(f"{name}, ")] + [text.removeprefix("### ").strip()]
    return before + HEADING + prose.rstrip() + "".join(f"\n\n### {table}" for table in tables) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("--llama-cpp", type=Path)
    arguments.add_argument("--programs", type=Path, default=ROOT / "target/debug")
    arguments.add_argument("--before", type=Path)
    arguments.add_argument("--only", action="append")
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--page", type=Path)
    arguments.add_argument("--job", help=argparse.SUPPRESS)
    arguments.add_argument("out", type=Path, nargs="?", help=argparse.SUPPRESS)
    arguments = arguments.parse_args()
    if arguments.job:
        tool, _, libraries = arguments.job.partition(":")
        make = OTHERS.get(tool)
        make(arguments.model, arguments.out) if make else by_llama_cpp(Path(libraries), arguments.model, arguments.out)
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder, half = prepared(arguments.model.resolve(), arguments.programs, work)
        programs = {"this program": arguments.programs}
        if arguments.before:
            programs["this program, before"] = arguments.before
        is_asked = lambda what: not arguments.only or any(only in what for only in arguments.only)  # noqa: E731
        todo = [job for job in jobs(folder, half, programs, arguments.llama_cpp) if is_asked(job[0])]
        measured = [[] for _ in todo]
        for turn in range(arguments.runs):
            for index, (what, _, command) in enumerate(todo):
                out = work / f"{turn}-{index}{'.gguf' if what.startswith('GGUF') else ''}"
                measured[index].append((*run([*command, str(out)], work / "log"), size_of(out)))
                print(f"{todo[index][:2]}: {measured[index][-1]}", flush=True)
                shutil.rmtree(out) if out.is_dir() else out.unlink()
    rows = []
    for (what, program, _), values in zip(todo, measured, strict=True):
        seconds, memory, sizes = zip(*values, strict=True)
        spread = lambda numbers, digits: (  # noqa: E731
            f"{statistics.median(numbers):.{digits}f} ({min(numbers):.{digits}f} to {max(numbers):.{digits}f})"
        )
        rows.append([what, program, spread(seconds, 1), spread(memory, 0), f"{sizes[0]:.1f}"])
    name = arguments.model.resolve().stem
    text = section(name, rows, arguments.runs)
    print(text)
    if arguments.page:
        arguments.page.write_text(put(arguments.page.read_text(), name, text))


if __name__ == "__main__":
    main()
