#!/usr/bin/env python3
"""Folders of this program in other people's code, and theirs in this one: weights bit for bit, perplexity on the same windows.

    python3 -m venv venv && venv/bin/pip install -r scripts/interop/requirements.txt
    cargo build -p experiments && cargo build -p awq-core --example hash_tensors
    npm pack @node-llama-cpp/linux-x64@3.22.1 && tar xzf node-llama-cpp-linux-x64-3.22.1.tgz
    venv/bin/python scripts/interop/check.py TEXT [--llama-cpp package/bins/linux-x64] [--by-others DIR] [--model FOLDER] \\
        [--rows FILE] [--out results/interop.md]

TEXT is a text of some 100 kB, such as the beginning of WikiText-2. Tiny seeded models, of experts and in shards among them, are
quantized here in every format, loaded by transformers with gptqmodel or compressed-tensors, and unpacked by AutoAWQ; gptqmodel,
AutoAWQ, compressed-tensors, bitsandbytes, torchao, quanto and HQQ quantize them, and the folders are read here. With --llama-cpp, the
folder with its shared libraries, GGUF files are made too: transformers restores their tensors, llama.cpp dequantizes, scores and
continues them. DIR holds folders that other tools have written, FOLDER another model for the first half. --rows keeps finished rows in
a file, and a run that was interrupted goes on with it. Prints a Markdown table; the exit code is 1 where a tensor differs in a bit or a
perplexity by more than 1e-3 of itself (where llama.cpp rounds the inputs of its products to 8 bits, 5e-2). --out keeps the sections that
follow the table of the page.
"""

import argparse
import contextlib
import json
import math
import re
import shlex
import sys
import tempfile
import textwrap
import traceback
from pathlib import Path

import gguf_files
import libraries
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


RTN, AWQ = "--method rtn --bits 4 --group-size 32", "--method awq --bits 4 --group-size 32"
# gptqmodel 7.7 has other names of Mixtral's experts than Mixtral's own files.
EXPORTS_OF_EXPERTS = {
    "mixtral": [("awq", AWQ), ("compressed-tensors", RTN)],
    "qwen2_moe": [("awq", AWQ), ("gptq_v2", RTN), ("compressed-tensors", RTN)],
    "qwen3_moe": [("awq", AWQ), ("gptq_v2", RTN), ("compressed-tensors", RTN)],
}


PAGE = """# Folders of other programs, there and here

One run of `scripts/interop/check.py`, which says what is done, over the beginning of WikiText-2's test text:

```sh
{command}
```

With {tools} on a CPU.

Perplexity is of the first {n_windows} windows of {seq_len} tokens of the text, in f32. Direction `out`: quantized and written here,
loaded there; `in`: written there. Tensors are compared as what a model multiplies with, in f32: codes, scales and zero points
restored by the tool's own code, and all else; bit for bit, but for the sign of zeros. Of auto-round's folder only the quantized
linears are, because its loader casts all else to f16. `(dense)`: dense products with the weights that the tool restores, where its
kernels take no such groups or do more than restore, and where transformers puts together no quantized experts.

GGUF files are compared with the packed checkpoint of the same codes, by two programs in each row. transformers restores tensors with
gguf's code, of which those are counted that have one name there and here; there is no number where its loader does not know the
architecture (Gemma, Phi, OLMo 2, Granite, GPT-NeoX, BigCode, SmolLM3) or does not take sizes from the file (Phi-3, GPT-2, Falcon,
Qwen's experts). llama.cpp dequantizes the file itself to f32 (`in f32`): the perplexity is of that, its greedy text of 24 tokens is the
one here, and both tokenize the text alike. As it runs the file it rounds the inputs of products to 8 bits: these rows say how far that
goes, and count as agreeing within 0.05. `(BF16+Q5_0)` are the types of matrices. `out, in`: llama.cpp made the file of one in f16 with
AWQ's scales and our importance matrix, and it is read here. llama.cpp uses every entry of the matrix: the bytes of each tensor that has
one are other ones without it, but of those that it stores in Q8_0, whose rounding takes no importances.

Models without trained weights have the perplexity of noise: what counts is that both sides have the same. {n_agree} of {n_rows} rows
agree: every tensor, and perplexity within {tolerance}."""


class Table:
    """Rows, and whether each is right; in a file those of an interrupted run, of which no right one is measured again."""

    def __init__(self, file: Path | None = None):
        self.rows, self.n_wrong, self.file = [], 0, file
        kept = file.read_text().splitlines() if file and file.exists() else []
        self.kept = [row["cells"] for row in map(json.loads, kept) if row["is_right"]]

    def has(self, direction: str, what: str, model: str) -> bool:
        """Whether the file has right rows of a case; they are rows of this table then."""
        is_it = lambda cells: cells[0] == direction and cells[3] == model and f"{cells[1]} (".startswith(f"{what} (")  # noqa: E731
        found = [cells for cells in self.kept if is_it(cells)]
        self.rows += found
        return bool(found)

    def add(self, direction: str, what: str, tool: str, model: str, numbers, tolerance: float = TOLERANCE):
        try:
            n_equal, n_all, (there, note), here = numbers()
        except Exception as error:  # noqa: BLE001: one row must not cost the others
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}".replace(f"{Path.cwd()}/", "").replace("\n", " ").replace("|", "/")[:240]
            self.row([direction, what, tool, model, "failed", "", "", text], is_right=False)
            return
        difference = abs(math.log(here / there))
        shown = f"{there:.4f}{f' ({note})' if note else ''}"
        tensors = f"{n_equal} of {n_all}" if n_all else ""
        is_right = n_equal == n_all and difference <= tolerance
        self.row([direction, what, tool, model, tensors, shown, f"{here:.4f}", f"{difference:.1e}"], is_right)

    def refused(self, direction: str, what: str, model: str, why: str):
        self.row([direction, what, "", model, "refused", "", "", why.replace("\n", " ")[:160]], is_right=False)

    def row(self, cells: list[str], is_right: bool):
        self.rows.append(cells)
        self.n_wrong += not is_right
        print(" | ".join(cells), flush=True)
        if self.file:
            with self.file.open("a") as file:
                file.write(json.dumps({"cells": cells, "is_right": is_right}) + "\n")

    def document(self, command: str, llama: llama_cpp.LlamaCpp | None) -> str:
        """The page that is kept in `results`."""
        tools = [f"{name} {theirs.version(name)}" for name in theirs.PACKAGES]
        tools += [f"{llama.version()} ({llama.package()})"] if llama else []
        page = PAGE.format(
            command=command, tools=", ".join(tools), n_windows=N_WINDOWS, seq_len=SEQ_LEN, n_rows=len(self.rows),
            n_agree=len(self.rows) - self.n_wrong, tolerance=TOLERANCE,
        )  # fmt: skip
        paragraphs = [block if "```" in block else textwrap.fill(block, 118, break_on_hyphens=False) for block in page.split("\n\n")]
        return "\n\n".join(paragraphs) + f"\n\n{self.markdown()}"

    def markdown(self) -> str:
        heading = ["direction", "format", "tool", "model", "tensors equal", "perplexity there", "here", "ln ratio"]
        lines = [heading, ["---"] * 5 + ["--:"] * 3, *self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# Of Mixtral, names of memory and those that are written, which it has here.
WRITTEN = [
    (r"\.mlp\.experts\.(\d+)\.gate_proj\.", r".block_sparse_moe.experts.\1.w1."),
    (r"\.mlp\.experts\.(\d+)\.down_proj\.", r".block_sparse_moe.experts.\1.w2."),
    (r"\.mlp\.experts\.(\d+)\.up_proj\.", r".block_sparse_moe.experts.\1.w3."),
    (r"\.mlp\.gate\.", ".block_sparse_moe.gate."),
]


def written(name: str, known: dict[str, str]) -> str:
    names = [re.sub(pattern, to, name) for pattern, to in WRITTEN]
    return next((other for other in names if other != name and other in known), name)


def compare(program: ours.Program, folder: Path, text: Path, load=theirs.loaded):
    """Tensors that are equal, of how many, and the two perplexities."""
    loaded = load(folder)
    there, here = loaded.hashes(), program.hashes(folder)
    there = {name if name in here else written(name, here): digest for name, digest in there.items()}
    if load is theirs.ByGptqmodel or json.loads((folder / "config.json").read_text())["model_type"] == "gpt_neox":
        # A tensor that holds several linears has no name of its own here.
        there = {name: digest for name, digest in there.items() if name in here}
    different = [name for name in sorted(there) if here.get(name) != there[name]]
    if different:
        print(f"differ: {different[:4]}", file=sys.stderr)
    perplexity = loaded.perplexity(theirs.ids_of(folder, text), SEQ_LEN, N_WINDOWS)
    return len(there) - len(different), len(there), perplexity, program.perplexity(folder, text, SEQ_LEN, N_WINDOWS)


def out_of_here(table: Table, program: ours.Program, name: str, model: Path, text: Path, work: Path, cases):
    for index, (key, case) in enumerate(cases):
        folder = work / f"{name}-{index}"
        what = f"{key}: " + case.replace("--", "").replace("*", "\\*")
        if table.has("out", what, name):
            continue
        if refused := program.quantize(model, folder, [*case.split(), "--format", key], text):
            table.refused("out", what, name, refused)
            continue
        table.add("out", what, theirs.tool_of(folder), name, lambda folder=folder: compare(program, folder, text))


GPTQ = {"group_size": 32, "offload_to_disk": False}
SHARDS = "200KB"

# Format, what makes the folder, and its settings.
IMPORTS = [
    ("gptq", theirs.by_gptqmodel, GPTQ | {"bits": 4, "sym": True, "desc_act": False}),
    ("gptq", theirs.by_gptqmodel, GPTQ | {"bits": 4, "sym": False, "desc_act": True}),
    ("gptq", theirs.by_gptqmodel, GPTQ | {"bits": 3, "sym": False, "desc_act": False}),
    ("gptq", theirs.by_gptqmodel, GPTQ | {"bits": 8, "sym": True, "desc_act": True}),
    ("gptq_v2", theirs.by_gptqmodel, GPTQ | {"bits": 2, "sym": False, "desc_act": False, "format": "gptq_v2"}),
    ("gptq", theirs.by_gptqmodel, GPTQ | {"bits": 4, "sym": True, "desc_act": False, "shards": SHARDS}),
    ("awq", theirs.by_autoawq, {"q_group_size": 32}),
    ("compressed-tensors", theirs.by_compressed_tensors, {"num_bits": 4, "symmetric": True, "group_size": 32}),
    ("compressed-tensors", theirs.by_compressed_tensors, {"num_bits": 4, "symmetric": False, "group_size": 32}),
    ("compressed-tensors", theirs.by_compressed_tensors, {"num_bits": 3, "symmetric": False, "group_size": 32}),
    ("compressed-tensors", theirs.by_compressed_tensors, {"num_bits": 5, "symmetric": True, "group_size": 32}),
    ("compressed-tensors", theirs.by_compressed_tensors, {"num_bits": 8, "symmetric": False}),
]
IMPORTS_OF_EXPERTS = [
    ("gptq", theirs.by_gptqmodel, GPTQ | {"bits": 4, "sym": True, "desc_act": False}),
    ("gptq_v2", theirs.by_gptqmodel, GPTQ | {"bits": 4, "sym": False, "desc_act": True, "format": "gptq_v2"}),
    ("compressed-tensors", theirs.by_compressed_tensors, {"num_bits": 4, "symmetric": False, "group_size": 32}),
]
FAMILIES_BY_GPTQMODEL = ["bloom", "falcon", "gemma3_text", "gpt2", "gpt_neox", "granite", "olmo2", "phi3", "smollm3", "stablelm"]
MAKERS = {"gptq": "gptqmodel", "gptq_v2": "gptqmodel", "awq": "autoawq", "compressed-tensors": "compressed-tensors"}


def into_here(table: Table, program: ours.Program, name: str, model: Path, text: Path, work: Path, cases):
    texts = [text.read_text()[start : start + 1500] for start in range(0, 24000, 1500)]
    for index, (key, make, settings) in enumerate(cases):
        folder = work / f"{name}-theirs-{index}"
        shown = ", ".join(f"{name} {value}" for name, value in settings.items() if name != "offload_to_disk")

        def numbers(make=make, folder=folder, settings=settings):
            make(model, folder, texts, **settings)
            if settings.get("shards") and len(list(folder.glob("*.safetensors"))) < 2:
                raise RuntimeError("the folder has one file")
            return compare(program, folder, text)

        if not table.has("in", f"{key}: {shown}", name):
            table.add("in", f"{key}: {shown}", f"{MAKERS[key]} {theirs.version(MAKERS[key])}", name, numbers)


def families_into_here(table: Table, program: ours.Program, text: Path, work: Path):
    """Folders of gptqmodel, of families whose linears have other names or lie otherwise than those of Llama."""
    texts = [text.read_text()[start : start + 1500] for start in range(0, 9000, 1500)]
    for family in FAMILIES_BY_GPTQMODEL:
        what = "gptq: group_size 32, bits 4, sym True, desc_act False"
        if table.has("in", what, family):
            continue

        def numbers(family=family):
            tied = family in ("bloom", "falcon", "gemma3_text", "gpt2")
            model = theirs.tiny_model(work / f"{family}-whole", text, family, tied)
            out = work / f"{family}-by-gptqmodel"
            theirs.by_gptqmodel(model, out, texts, **GPTQ, bits=4, sym=True, desc_act=False)
            return compare(program, out, text, theirs.ByGptqmodel)

        table.add("in", what, f"gptqmodel {theirs.version('gptqmodel')}", family, numbers)


def folders_of_others(table: Table, program: ours.Program, by_others: Path, text: Path):
    for config in sorted(by_others.rglob("config.json")):
        folder = config.parent
        if "quantization_config" in config.read_text():
            name = str(folder.relative_to(by_others))
            tool = f"loaded by {theirs.tool_of(folder)}"
            if not table.has("in", theirs.method_of(folder), name):
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
        for family in ("llama", "mixtral", "qwen2_moe"):
            wide = theirs.tiny_model(work / f"{family}-wide", text, family, tied=False, width=256)
            gguf_files.k_quants(table, program, llama_libraries, f"{family}, width 256", wide, text, work, sizes)
    if only_gguf:
        return
    out_of_here(table, program, "llama", llama, text, work, EXPORTS)
    methods = ("awq --bits 4 --group-size 32", "act-order-dynamic --bits 4 --group-size 32")
    biased = [case for case in EXPORTS if case[1].endswith(methods)]
    out_of_here(table, program, "qwen2 (biases, tied head)", qwen2, text, work, biased)
    sharded = theirs.tiny_model(work / "sharded", text, "llama", tied=False, shards=SHARDS)
    if len(list(sharded.glob("*.safetensors"))) < 2:
        raise RuntimeError("the model is in one file")
    out_of_here(table, program, "llama in shards", sharded, text, work, EXPORTS[1:2] + EXPORTS[-1:])
    into_here(table, program, "llama", llama, text, work, IMPORTS)
    for family, cases in EXPORTS_OF_EXPERTS.items():
        experts = theirs.tiny_model(work / f"{family}-experts", text, family, tied=False)
        out_of_here(table, program, family, experts, text, work, cases)
        into_here(table, program, family, experts, text, work, IMPORTS_OF_EXPERTS)
    families_into_here(table, program, text, work)
    # A scale behind an activation.
    neox = theirs.tiny_model(work / "gpt_neox-untied", text, "gpt_neox", tied=False)
    into_here(table, program, "gpt_neox", neox, text, work, IMPORTS[6:7])
    sizes = (SEQ_LEN, N_WINDOWS)
    libraries.into_here(table, program, "llama", llama, text, work, sizes, libraries.FOLDERS)
    for family, folders in libraries.OF_FAMILIES.items():
        model = theirs.tiny_model(work / f"{family}-by-libraries", text, family, tied=family == "gpt2")
        libraries.into_here(table, program, family, model, text, work, sizes, folders)
    # HQQ 0.2.8 does not save a head that is tied to the embedding.
    tied = [folder for folder in libraries.FOLDERS if folder[1] != "hqq"]
    libraries.into_here(table, program, "qwen2 (biases, tied head)", qwen2, text, work, sizes, tied)


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
    arguments.add_argument("--rows", type=Path, help="file of finished rows, with which an interrupted run goes on")
    arguments.add_argument("--only-model", action="store_true", help="leave the tiny models out")
    arguments = arguments.parse_args()
    for name in ("text", "llama_cpp", "by_others", "model", "programs", "out", "rows"):
        path = getattr(arguments, name)
        setattr(arguments, name, path and path.resolve())
    table = Table(arguments.rows)
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
        # Places on one machine are of no use to others.
        words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
        page = arguments.out.read_text() if arguments.out.exists() else ""
        more = page[page.find("\n## ") :] if "\n## " in page else ""
        arguments.out.write_text(table.document(f"scripts/interop/check.py {shlex.join(words)}", llama) + more)
    print(f"\n{table.markdown()}\n{table.n_wrong} of {len(table.rows)} rows are wrong")
    sys.exit(1 if table.n_wrong else 0)


if __name__ == "__main__":
    main()
