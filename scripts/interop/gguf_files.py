"""GGUF files of this program in other people's code: transformers restores their tensors (with gguf, PyPI), and llama.cpp loads,
dequantizes, scores and continues them."""

from pathlib import Path

import llama_cpp
import ours
import theirs

# How the model is quantized; the file's type follows from it.
CASES = [
    "--method rtn --bits 4 --group-size 32 --symmetry full",
    "--method awq --bits 4 --group-size 32 --symmetry restricted",
    "--method awq --bits 4 --group-size 128",
    "--method gptq --bits 4 --group-size 32",
    "--method rtn --bits 3 --group-size 64",
    "--method rtn --bits 5 --group-size 32 --symmetry full",
    "--method rtn --bits 6 --group-size 64",
    "--method rtn --bits 8 --group-size 32 --symmetry restricted",
    "--method rtn --bits 4",
    "--method rtn --values e2m1 --group-size 32 --scale-dtype e8m0",
    "--method rtn --bits 4 --group-size 32 --symmetry full --override *.v_proj=w8 --override *.down_proj=fp",
    "--method rtn --bits 4 --group-size 32 --symmetry full --override lm_head=w8g32",
]
ALL_F32 = 0
N_NEW = 24
PROMPT = 16


def out_of_here(table, program: ours.Program, llama: llama_cpp.LlamaCpp, name: str, model: Path, text: Path, work: Path, cases, sizes):
    """Two rows a case: llama.cpp with its own f32 of the file's tensors, and as it runs the file, with inputs in 8 bits."""
    for index, case in enumerate(cases):
        file, packed = work / f"{name}-{index}.gguf", work / f"{name}-{index}-packed"
        shown = "gguf: " + case.replace("--", "").replace("*", "\\*")
        arguments = case.split()
        refused = program.quantize(model, packed, arguments, text)
        refused = refused or program.quantize(model, file, [*arguments, "--format", "gguf"], text)
        if refused:
            table.n_wrong += 1
            table.row(["out", shown, "", name, "refused", "", "", refused.replace("\n", " ")[:160]])
            continue
        types = "+".join(sorted(types_of(file)))
        dense = work / f"{name}-{index}-f32.gguf"
        tool = f"{llama.version()}, transformers {theirs.version('transformers')}, gguf {theirs.version('gguf')}"

        def in_f32(file=file, packed=packed, dense=dense):
            llama.quantize(file, dense, ALL_F32)
            n_equal, n_all = equal_tensors(program, file, packed)
            there, here = numbers(program, llama, dense, packed, text, sizes)
            return n_equal, n_all, (there, "in f32"), here

        def as_it_runs(file=file, packed=packed):
            there, here = numbers(program, llama, file, packed, text, sizes)
            return 0, 0, (there, ""), here

        table.add("out", f"{shown} ({types})", tool, name, in_f32)
        table.add("out", f"{shown} ({types}), inputs in 8 bits", llama.version(), name, as_it_runs, tolerance=5e-2)


def numbers(program: ours.Program, llama: llama_cpp.LlamaCpp, file: Path, packed: Path, text: Path, sizes) -> tuple[float, float]:
    """Both perplexities.

    Raises an error where tokens of the text or the greedy continuation of its beginning are other ones.
    """
    seq_len, n_windows = sizes
    model = llama.load(file, seq_len)
    try:
        ids = theirs.ids_of(packed, text)[: seq_len * n_windows]
        found = model.tokenize(text.read_text())[: len(ids)]
        if found != ids:
            raise RuntimeError(f"llama.cpp has other tokens: {found[:8]}, {ids[:8]}")
        there = model.perplexity(ids, seq_len, n_windows)
        if not file.stem.endswith("-f32"):
            return there, program.perplexity(packed, text, seq_len, n_windows)
        prompt = theirs.decoded(packed, ids[:PROMPT])
        # Its own detokenizer takes spaces away before commas.
        continued = theirs.decoded(packed, model.greedy(model.tokenize(prompt), N_NEW))
        here = program.generate(packed, prompt, N_NEW)
        if here.strip("\n") != continued.strip("\n"):
            raise RuntimeError(f"another greedy text: {continued!r}, {here!r}")
        return there, program.perplexity(packed, text, seq_len, n_windows)
    finally:
        model.close()


def types_of(file: Path) -> set[str]:
    """The types of the blocks' matrices."""
    import gguf

    tensors = gguf.GGUFReader(file).tensors
    return {tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1 and tensor.name != "token_embd.weight"}


def equal_tensors(program: ours.Program, file: Path, packed: Path) -> tuple[int, int]:
    """Tensors that transformers makes of the file, by gguf's own code, that are those of the packed checkpoint bit for bit."""
    import torch
    import transformers

    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(file.parent, gguf_file=file.name, dtype=torch.float32)
    there = {name: theirs.sha256(parameter) for name, parameter in model.named_parameters()}
    here = program.hashes(packed)
    different = [name for name in sorted(there) if here.get(name) != there[name]]
    if different:
        print(f"differ: {different[:4]}", flush=True)
    return len(there) - len(different), len(there)
