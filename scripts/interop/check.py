#!/usr/bin/env python3
"""Folders of this program in other people's code, and theirs in this one: weights bit for bit, perplexity on the same windows.

    python3 -m venv venv && venv/bin/pip install -r scripts/interop/requirements.txt
    cargo build -p experiments && cargo build -p awq-core --example hash_tensors
    npm pack @node-llama-cpp/linux-x64@3.22.1 && tar xzf node-llama-cpp-linux-x64-3.22.1.tgz
    venv/bin/python scripts/interop/check.py TEXT [--llama-cpp package/bins/linux-x64] [--by-others DIR] [--model FOLDER] \\
        [--out results/interop.md]

TEXT is a text of some 100 kB, such as the beginning of WikiText-2. Tiny seeded models are quantized here in every format, loaded by
transformers with gptqmodel or compressed-tensors, and unpacked by AutoAWQ; gptqmodel, AutoAWQ and compressed-tensors quantize them,
and the folders are read here. With --llama-cpp, the folder with its shared libraries, GGUF files are made too: transformers restores
their tensors, llama.cpp dequantizes, scores and continues them. DIR holds folders that other tools have written, FOLDER another model for the first half. Prints a
Markdown table; the exit code is 1 where a tensor differs in a bit or a perplexity by more than 1e-3 of itself (where llama.cpp rounds
the inputs of its products to 8 bits, 5e-2).
"""

import argparse
import contextlib
import math
import sys
import tempfile
import traceback
from pathlib import Path

import gguf_files
import llama_cpp
import ours
import theirs

ROOT = Path(__file__).resolve().parent.parent.parent
SEQ_LEN, N_WINDOWS = 128, 8
TOLERANCE = 1e-3

# Format, and how the model is quantized.
EXPORTS = [
    ("awq", "--method rtn --bits 4 --group-size 32"),
    ("awq", "--method awq --bits 4 --group-size 32"),
    ("awq", "--method rtn --bits 4"),
    ("awq", "--method rtn --bits 4 --group-size 32 --override *.v_proj=fp"),
    *[(f"gptq{v}", f"--method rtn --bits {b} --group-size 32") for v in ("", "_v2") for b in (2, 3, 4, 8)],
    ("gptq_v2", "--method rtn --bits 4"),
    ("gptq_v2", "--method rtn --bits 4 --group-size 64"),
    ("gptq", "--method gptq --bits 4 --group-size 32"),
    ("gptq", "--method gptq:act-order-dynamic --bits 4 --group-size 32"),
    ("gptq_v2", "--method gptq:act-order-dynamic --bits 3 --group-size 32"),
    *[("compressed-tensors", f"--method rtn --bits {b} --group-size 32") for b in (2, 3, 4, 5, 6, 7, 8)],
    ("compressed-tensors", "--method awq --bits 4 --group-size 32"),
    ("compressed-tensors", "--method rtn --bits 4"),
    ("compressed-tensors", "--method rtn --bits 4 --group-size 32 --override *.v_proj=w8 --override *.down_proj=fp"),
]


class Table:
    """Rows, and whether any of them is wrong."""

    def __init__(self):
        self.rows, self.n_wrong = [], 0

    def add(self, direction: str, what: str, tool: str, model: str, numbers, tolerance: float = TOLERANCE):
        try:
            n_equal, n_all, (there, note), here = numbers()
        except Exception as error:  # noqa: BLE001: one row must not cost the others
            traceback.print_exc()
            self.n_wrong += 1
            text = f"{type(error).__name__}: {error}".replace("\n", " ").replace("|", "/")[:160]
            self.row([direction, what, tool, model, "failed", "", "", text])
            return
        difference = abs(math.log(here / there))
        if n_equal < n_all or difference > tolerance:
            self.n_wrong += 1
        shown = f"{there:.4f}{f' ({note})' if note else ''}"
        tensors = f"{n_equal} of {n_all}" if n_all else ""
        self.row([direction, what, tool, model, tensors, shown, f"{here:.4f}", f"{difference:.1e}"])

    def row(self, cells: list[str]):
        self.rows.append(cells)
        print(" | ".join(cells), flush=True)

    def document(self, command: str) -> str:
        """The page that is kept in `results`."""
        tools = [f"{name} {theirs.version(name)}" for name in theirs.PACKAGES]
        return (
            "# Folders of other programs, there and here\n\n"
            "Written by `scripts/interop/check.py`, which says what is done; run as\n\n"
            f"```sh\n{command}\n```\n\n"
            f"with {', '.join(tools)} on a CPU. Perplexity of the first {N_WINDOWS} windows of {SEQ_LEN} tokens of the text, in f32. Direction "
            "`out`: quantized and written here, loaded there; `in`: written there. Tensors are compared as what a model multiplies with, in f32: "
            "codes, scales and zero points restored by the tool's own code, and all else; bit for bit, but for the sign of zeros. Of auto-round's "
            "folders only quantized linears are, for its loader casts all else to f16. `(dense)`: the tool's kernels take no such groups, and "
            "dense products with its restored weights do. GGUF files are dequantized by transformers with gguf, and by llama.cpp to f32, of which the "
            "perplexity and the greedy text are (`in f32`); as llama.cpp runs the file itself, it rounds the inputs of products to 8 bits. Models without trained weights have the perplexity of noise: what counts is that both "
            f"sides have the same. {len(self.rows) - self.n_wrong} of {len(self.rows)} rows agree: every tensor, and perplexity within {TOLERANCE}.\n\n"
            f"{self.markdown()}"
        )

    def markdown(self) -> str:
        heading = ["direction", "format", "tool", "model", "tensors equal", "perplexity there", "here", "ln ratio"]
        lines = [heading, ["---"] * 5 + ["--:"] * 3, *self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def compare(program: ours.Program, folder: Path, text: Path):
    """Tensors that are equal, of how many, and the two perplexities."""
    loaded = theirs.Loaded(folder)
    there, here = loaded.hashes(), program.hashes(folder)
    different = [name for name in sorted(there) if here.get(name) != there[name]]
    if different:
        print(f"differ: {different[:4]}", file=sys.stderr)
    perplexity = loaded.perplexity(theirs.ids_of(folder, text), SEQ_LEN, N_WINDOWS)
    return len(there) - len(different), len(there), perplexity, program.perplexity(folder, text, SEQ_LEN, N_WINDOWS)


def out_of_here(table: Table, program: ours.Program, name: str, model: Path, text: Path, work: Path, cases):
    for index, (key, case) in enumerate(cases):
        folder = work / f"{name}-{index}"
        refused = program.quantize(model, folder, [*case.split(), "--format", key], text)
        what = f"{key}: " + case.replace("--", "").replace("*", "\\*")
        if refused:
            table.n_wrong += 1
            table.row(["out", what, "", name, "refused", "", "", refused.replace("\n", " ")[:160]])
            continue
        table.add("out", what, theirs.tool_of(folder), name, lambda folder=folder: compare(program, folder, text))


def into_here(table: Table, program: ours.Program, model: Path, text: Path, work: Path):
    texts = [text.read_text()[start : start + 1500] for start in range(0, 24000, 1500)]
    gptq = {"group_size": 32, "offload_to_disk": False}
    makers = [
        ("gptq", theirs.by_gptqmodel, gptq | {"bits": 4, "sym": True, "desc_act": False}),
        ("gptq", theirs.by_gptqmodel, gptq | {"bits": 4, "sym": False, "desc_act": True}),
        ("gptq", theirs.by_gptqmodel, gptq | {"bits": 3, "sym": False, "desc_act": False}),
        ("gptq", theirs.by_gptqmodel, gptq | {"bits": 8, "sym": True, "desc_act": True}),
        ("gptq_v2", theirs.by_gptqmodel, gptq | {"bits": 2, "sym": False, "desc_act": False, "format": "gptq_v2"}),
        ("awq", theirs.by_autoawq, {"q_group_size": 32}),
    ]
    for bits, symmetric, size in [(4, True, 32), (4, False, 32), (3, False, 32), (5, True, 32), (8, False, None)]:
        settings = {"num_bits": bits, "symmetric": symmetric} | ({"group_size": size} if size else {})
        makers.append(("compressed-tensors", lambda model, out, texts, **s: theirs.by_compressed_tensors(model, out, **s), settings))
    for index, (key, make, settings) in enumerate(makers):
        folder = work / f"theirs-{index}"
        shown = ", ".join(f"{name} {value}" for name, value in settings.items() if name != "offload_to_disk")

        def numbers(make=make, folder=folder, settings=settings):
            make(model, folder, texts, **settings)
            return compare(program, folder, text)

        tool = {"gptq": "gptqmodel", "gptq_v2": "gptqmodel", "awq": "autoawq"}.get(key, "compressed-tensors")
        table.add("in", f"{key}: {shown}", f"{tool} {theirs.version(tool)}", "llama", numbers)


def folders_of_others(table: Table, program: ours.Program, by_others: Path, text: Path):
    for config in sorted(by_others.rglob("config.json")):
        folder = config.parent
        if "quantization_config" in config.read_text():
            name = str(folder.relative_to(by_others))
            tool = f"loaded by {theirs.tool_of(folder)}"
            table.add("in", theirs.method_of(folder), tool, name, lambda folder=folder: compare(program, folder, text))


def tiny_models(table: Table, program: ours.Program, llama_libraries: llama_cpp.LlamaCpp | None, text: Path, work: Path, only_gguf: bool):
    llama = theirs.tiny_model(work / "llama", text, "llama", tied=False)
    qwen2 = theirs.tiny_model(work / "qwen2", text, "qwen2", tied=True)
    if llama_libraries:
        sizes = (SEQ_LEN, N_WINDOWS)
        gguf_files.out_of_here(table, program, llama_libraries, "llama", llama, text, work, gguf_files.CASES, sizes)
        tied = gguf_files.CASES[:3]
        gguf_files.out_of_here(table, program, llama_libraries, "qwen2 (biases, tied head)", qwen2, text, work, tied, sizes)
        qwen3 = theirs.tiny_model(work / "qwen3", text, "qwen3", tied=False)
        gguf_files.out_of_here(table, program, llama_libraries, "qwen3 (norms of heads)", qwen3, text, work, tied, sizes)
        for family in gguf_files.OTHER_FAMILIES:
            # llama.cpp expects tokens of Phi-3 in a model that is named so.
            other = theirs.tiny_model(work / family.replace("phi3", "phi_3"), text, family, tied=family.startswith("gemma"))
            cases = gguf_files.CASES[3:4]
            gguf_files.out_of_here(table, program, llama_libraries, family, other, text, work, cases, sizes)
        wide = theirs.tiny_model(work / "wide", text, "llama", tied=False, width=256)
        gguf_files.k_quants(table, program, llama_libraries, "llama, width 256", wide, text, work, sizes)
    if only_gguf:
        return
    out_of_here(table, program, "llama", llama, text, work, EXPORTS)
    methods = ("awq --bits 4 --group-size 32", "act-order-dynamic --bits 4 --group-size 32")
    biased = [case for case in EXPORTS if case[1].endswith(methods)]
    out_of_here(table, program, "qwen2 (biases, tied head)", qwen2, text, work, biased)
    into_here(table, program, llama, text, work)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("text", type=Path)
    arguments.add_argument("--llama-cpp", type=Path, help="folder with its shared libraries")
    arguments.add_argument("--only-gguf", action="store_true", help="of the tiny models GGUF files only")
    arguments.add_argument("--by-others", type=Path)
    arguments.add_argument("--model", type=Path)
    arguments.add_argument("--model-case", action="append", default=[], metavar="FORMAT:ARGUMENTS")
    arguments.add_argument("--programs", type=Path, default=ROOT / "target/debug", help="folder with the built programs")
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--only-model", action="store_true", help="leave the tiny models out")
    arguments = arguments.parse_args()
    table = Table()
    for name in ("text", "llama_cpp", "by_others", "model", "programs", "out"):
        path = getattr(arguments, name)
        setattr(arguments, name, path and path.resolve())
    # Some of the tools leave logs where they run.
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        work = Path(temporary)
        text = work / "text.txt"
        text.write_text(arguments.text.read_text()[:100_000])
        program = ours.Program(arguments.programs, work)
        llama = llama_cpp.LlamaCpp(arguments.llama_cpp) if arguments.llama_cpp else None
        if not arguments.only_model:
            tiny_models(table, program, llama, text, work, arguments.only_gguf)
        if arguments.by_others:
            folders_of_others(table, program, arguments.by_others, text)
        if arguments.model:
            cases = [tuple(case.split(":", 1)) for case in arguments.model_case]
            in_folders = [case for case in cases if case[0] != "gguf"]
            out_of_here(table, program, arguments.model.stem, arguments.model, text, work, in_folders)
            in_files = [case for key, case in cases if key == "gguf"]
            if llama and in_files:
                sizes = (SEQ_LEN, N_WINDOWS)
                gguf_files.out_of_here(table, program, llama, arguments.model.stem, arguments.model, text, work, in_files, sizes)
    if arguments.out:
        command = f"scripts/interop/check.py {' '.join(word for word in sys.argv[1:])}"
        arguments.out.write_text(table.document(command))
    print(f"\n{table.markdown()}\n{table.n_wrong} of {len(table.rows)} rows are wrong")
    sys.exit(1 if table.n_wrong else 0)


if __name__ == "__main__":
    main()
