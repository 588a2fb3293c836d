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
# Of every other family one case: several linears and experts in a tensor, norms with a one added, no rotation, ...
OTHER_FAMILIES = [
    "gemma", "gemma2", "gemma3_text", "phi3", "phi", "olmo2", "granite", "stablelm", "gpt_neox", "gpt2", "gpt_bigcode", "falcon",
    "bloom", "mixtral", "qwen3_moe", "qwen2_moe", "smollm3",
]  # fmt: skip
ALL_F32 = 0
Q4_K_M = 15
N_NEW = 24
PROMPT = 16


def out_of_here(table, program: ours.Program, llama: llama_cpp.LlamaCpp, name: str, model: Path, text: Path, work: Path, cases, sizes):
    """Two rows a case: llama.cpp with its own f32 of the file's tensors, and as it runs the file, with inputs in 8 bits."""
    for index, case in enumerate(cases):
        file, packed = work / f"{name}-{index}.gguf", work / f"{name}-{index}-packed"
        shown = "gguf: " + case.replace("--", "").replace("*", "\\*")
        arguments = case.split()
        if table.has("out", shown, name):
            continue
        refused = program.quantize(model, packed, arguments, text)
        if refused := refused or program.quantize(model, file, [*arguments, "--format", "gguf"], text):
            table.refused("out", shown, name, refused)
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


def k_quants(table, program: ours.Program, llama: llama_cpp.LlamaCpp, name: str, model: Path, text: Path, work: Path, sizes):
    """A model in f16 with AWQ's scales and its importance matrix, rounded by llama.cpp; the file is read here."""
    what = "gguf: f16 with AWQ's scales and imatrix, made Q4_K_M by llama.cpp"
    if table.has("out, in", what, name):
        return
    half, matrix, plain, file = (work / f"{name}-{kind}.gguf" for kind in ("f16", "imatrix", "plain", "k"))
    refused = program.export(model, half, ["--scales-for", "w4g32", "--imatrix", str(matrix)], text)

    def made():
        if refused:
            raise RuntimeError(refused)
        imatrix = llama_cpp.imatrix_of(matrix)
        if llama.imatrix_entries(matrix) != len(imatrix):
            raise RuntimeError(f"llama.cpp's own loader finds {llama.imatrix_entries(matrix)} tensors, not {len(imatrix)}")
        llama.quantize(half, plain, Q4_K_M)
        llama.quantize(half, file, Q4_K_M, imatrix)
        # The rounding of Q8_0 takes no importances.
        used = changed(plain, file) | tensors_in(file, "Q8_0")
        if unused := [entry for entry in imatrix if entry not in used]:
            raise RuntimeError(f"{len(unused)} of {len(imatrix)} entries of the importance matrix changed nothing: {unused[:4]}")
        if not tensors_in(file, "Q4_K"):
            raise RuntimeError(f"no K-quants: {types_of(file)}")
        dense = work / f"{name}-k-f32.gguf"
        llama.quantize(file, dense, ALL_F32)
        n_equal, n_all = equal_tensors(program, file, file)
        loaded = llama.load(dense, sizes[0])
        ids = loaded.tokenize(text.read_text())[: sizes[0] * sizes[1]]
        there = loaded.perplexity(ids, *sizes)
        loaded.close()
        return n_equal, n_all, (there, "in f32"), program.perplexity(file, text, *sizes)

    tool = f"{llama.version()}, transformers {theirs.version('transformers')}, gguf {theirs.version('gguf')}"
    table.add("out, in", what, tool, name, made)


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


def changed(one: Path, other: Path) -> set[str]:
    """Tensors that have other bytes in the other file."""
    import gguf

    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(one).tensors}
    return {tensor.name for tensor in gguf.GGUFReader(other).tensors if (tensor.data != tensors[tensor.name]).any()}


def tensors_in(file: Path, type_name: str) -> set[str]:
    import gguf

    return {tensor.name for tensor in gguf.GGUFReader(file).tensors if tensor.tensor_type.name == type_name}


def types_of(file: Path) -> set[str]:
    """The types of the blocks' matrices."""
    import gguf

    tensors = gguf.GGUFReader(file).tensors
    return {tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1 and tensor.name != "token_embd.weight"}


def equal_tensors(program: ours.Program, file: Path, packed: Path) -> tuple[int, int]:
    """Tensors that transformers makes of the file, by gguf's own code, that are those of the packed checkpoint bit for bit; of those
    that have one name in both, as linears that share a tensor and experts have not."""
    import torch
    import transformers

    load = transformers.AutoModelForCausalLM.from_pretrained
    try:
        model = load(file.parent, gguf_file=file.name, dtype=torch.float32)
    except (ValueError, NotImplementedError, KeyError, AssertionError, RuntimeError) as error:
        # transformers 5.24 does not read such files, or takes sizes from elsewhere.
        print(f"{file.name}: {error}", flush=True)
        return 0, 0
    there = {name: theirs.sha256(parameter) for name, parameter in model.named_parameters()}
    here = program.hashes(packed)
    there = {name: digest for name, digest in there.items() if name in here}
    different = [name for name in sorted(there) if here[name] != there[name]]
    if different:
        print(f"differ: {different[:4]}", flush=True)
    return len(there) - len(different), len(there)
