"""llama.cpp's shared libraries, as npm's @node-llama-cpp/linux-x64 has them, through ctypes: a file as it loads, scores, continues and
quantizes it.

    npm pack @node-llama-cpp/linux-x64@3.22.1 && tar xzf node-llama-cpp-linux-x64-*.tgz      # package/bins/linux-x64
"""

import ctypes
import json
import math
import re
from pathlib import Path

import numpy as np

F32 = 0


class ModelParams(ctypes.Structure):
    """`llama_model_params` of release v0.5.0; its defaults are left as they are."""

    _fields_ = [("all", ctypes.c_int64 * 32)]


class ContextParams(ctypes.Structure):
    """`llama_context_params` up to what is set here."""

    _fields_ = [
        ("n_ctx", ctypes.c_uint32), ("n_batch", ctypes.c_uint32), ("n_ubatch", ctypes.c_uint32), ("n_seq_max", ctypes.c_uint32),
        ("n_rs_seq", ctypes.c_uint32), ("n_outputs_max", ctypes.c_uint32), ("n_outputs_max_per_seq", ctypes.c_uint32),
        ("n_threads", ctypes.c_int32), ("n_threads_batch", ctypes.c_int32), ("ctx_type", ctypes.c_int32),
        ("rope_scaling_type", ctypes.c_int32), ("pooling_type", ctypes.c_int32), ("attention_type", ctypes.c_int32),
        ("flash_attn_type", ctypes.c_int32), ("rope", ctypes.c_float * 6), ("yarn_orig_ctx", ctypes.c_uint32),
        ("defrag_thold", ctypes.c_float), ("cb_eval", ctypes.c_void_p), ("cb_eval_user_data", ctypes.c_void_p),
        ("type_k", ctypes.c_int32), ("type_v", ctypes.c_int32), ("rest", ctypes.c_int64 * 32),
    ]  # fmt: skip


class Batch(ctypes.Structure):
    _fields_ = [("n_tokens", ctypes.c_int32), ("arrays", ctypes.c_void_p * 6)]


class ImatrixData(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]


class QuantizeParams(ctypes.Structure):
    _fields_ = [
        ("nthread", ctypes.c_int32), ("ftype", ctypes.c_int32), ("output_tensor_type", ctypes.c_int32),
        ("token_embedding_type", ctypes.c_int32), ("allow_requantize", ctypes.c_bool), ("quantize_output_tensor", ctypes.c_bool),
        ("only_copy", ctypes.c_bool), ("pure", ctypes.c_bool), ("keep_split", ctypes.c_bool), ("dry_run", ctypes.c_bool),
        ("imatrix", ctypes.POINTER(ImatrixData)), ("rest", ctypes.c_int64 * 16),
    ]  # fmt: skip


def library(folder: Path) -> ctypes.CDLL:
    """With the CPU backend that fits this machine."""
    # In the order in which they need one another.
    for pattern in ("libggml-base.so", "libggml.*so", "libllama.v*.so"):
        (file,) = folder.glob(pattern)
        loaded = ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
        if pattern == "libggml.*so":
            loaded.ggml_backend_load_all_from_path(str(folder).encode())
    for name, result in {
        "llama_model_default_params": ModelParams, "llama_context_default_params": ContextParams,
        "llama_model_quantize_default_params": QuantizeParams, "llama_model_load_from_file": ctypes.c_void_p,
        "llama_init_from_model": ctypes.c_void_p, "llama_model_get_vocab": ctypes.c_void_p, "llama_get_memory": ctypes.c_void_p,
        "llama_batch_get_one": Batch, "llama_get_logits_ith": ctypes.POINTER(ctypes.c_float),
    }.items():  # fmt: skip
        getattr(loaded, name).restype = result
    loaded.llama_batch_init.restype = Batch
    return loaded


class LlamaCpp:
    """The libraries of a folder."""

    def __init__(self, folder: Path):
        self.folder, self.lib = folder, library(folder)
        # It would print each tensor; what goes wrong is kept.
        self.said: list[str] = []
        callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
        self.log = callback(lambda level, text, _: self.said.append(text.decode(errors="replace")) if level >= 3 else None)
        self.lib.llama_log_set(self.log, None)
        self.lib.llama_backend_init()

    def version(self) -> str:
        built = json.loads((self.folder / "_nlcBuildMetadata.json").read_text())["buildOptions"]["llamaCpp"]["release"]
        return f"llama.cpp {built}"

    def package(self) -> str:
        """Where npm has it."""
        package = json.loads((self.folder.parent.parent / "package.json").read_text())
        return f"npm's {package['name']} {package['version']}"

    def quantize(
        self, source: Path, target: Path, ftype: int, imatrix: dict[str, np.ndarray] | None = None, embedding: int | None = None
    ) -> None:
        """As `llama-quantize` does it, of a file in any type; embedding and head in one of their own."""
        params = self.lib.llama_model_quantize_default_params()
        if params.nthread != 0 or params.only_copy or params.pure:
            raise RuntimeError("llama_model_quantize_params are other ones than those of v0.5.0")
        params.nthread, params.ftype, params.allow_requantize = 2, ftype, True
        if embedding is not None:
            params.token_embedding_type = params.output_tensor_type = embedding
        values = {name.encode(): np.ascontiguousarray(value, np.float32) for name, value in (imatrix or {}).items()}
        pointers = [
            ImatrixData(name, value.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), value.size) for name, value in values.items()
        ]
        if values:
            params.imatrix = (ImatrixData * (len(pointers) + 1))(*pointers, ImatrixData(None, None, 0))
        self.said.clear()
        code = self.lib.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
        if code != 0:
            raise RuntimeError(f"llama.cpp cannot quantize {source.name}: {''.join(self.said[-4:]).strip()}")

    def imatrix_entries(self, file: Path) -> int:
        """Tensors that its own loader, that of `llama-quantize`, finds in an imatrix file with its metadata."""
        common = ctypes.CDLL(str(self.folder / "libllama-common.so"), mode=ctypes.RTLD_GLOBAL)
        load = common._Z19common_imatrix_loadRKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEER14common_imatrix
        load.restype = ctypes.c_bool
        # A `std::string`, and a `common_imatrix`: an empty map (its header points to itself), a vector, two numbers, two flags.
        name = ctypes.create_string_buffer(str(file).encode())
        text = (ctypes.c_uint64 * 4)(ctypes.addressof(name), len(name.value), len(name.value), 0)
        found = (ctypes.c_uint64 * 16)()
        header = ctypes.addressof(found) + 8
        found[3], found[4] = header, header
        is_read = load(ctypes.byref(text), ctypes.byref(found))
        has_metadata, is_legacy = found[10] >> 8 & 1, found[10] & 1
        if not is_read or is_legacy or not has_metadata:
            raise RuntimeError(f"llama.cpp does not read {file.name}: {''.join(self.said[-4:]).strip()}")
        return found[5]

    def load(self, file: Path, n_ctx: int, threads: int = 2) -> "Model":
        return Model(self, file, n_ctx, threads)


class Model:
    """A file in memory, with keys and values in f32."""

    def __init__(self, llama: LlamaCpp, file: Path, n_ctx: int, threads: int):
        lib = self.lib = llama.lib
        llama.said.clear()
        self.model = ctypes.c_void_p(lib.llama_model_load_from_file(str(file).encode(), lib.llama_model_default_params()))
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {file.name}: {''.join(llama.said[-4:]).strip()}")
        params = lib.llama_context_default_params()
        if (params.n_batch, params.n_threads, params.type_k, params.type_v) != (2048, 4, 1, 1):
            raise RuntimeError("llama_context_params are other ones than those of v0.5.0")
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_outputs_max = n_ctx, n_ctx, n_ctx, n_ctx
        params.n_threads, params.n_threads_batch = threads, threads
        # No flash attention, which would compute with halves.
        params.type_k, params.type_v, params.flash_attn_type = F32, F32, 0
        self.context = ctypes.c_void_p(lib.llama_init_from_model(self.model, params))
        if not self.context:
            raise RuntimeError(f"llama.cpp has no context for {file.name}: {''.join(llama.said[-4:]).strip()}")
        self.vocab = ctypes.c_void_p(lib.llama_model_get_vocab(self.model))
        self.n_vocab = lib.llama_vocab_n_tokens(self.vocab)

    def close(self):
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def tokenize(self, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
        raw = text.encode()
        ids = (ctypes.c_int32 * (len(raw) + 8))()
        n = self.lib.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), add_special, parse_special)
        if n < 0:
            raise RuntimeError(f"llama.cpp cannot tokenize the text ({n})")
        return list(ids[:n])

    def text(self, ids: list[int]) -> str:
        out = ctypes.create_string_buffer(64 * (len(ids) + 1))
        n = self.lib.llama_detokenize(self.vocab, (ctypes.c_int32 * len(ids))(*ids), len(ids), out, len(out), False, True)
        return out.raw[: max(n, 0)].decode(errors="replace")

    def logits(self, ids: list[int]) -> np.ndarray:
        """`[n_tokens, n_vocab]` of a text that begins with `ids`."""
        lib, n = self.lib, len(ids)
        lib.llama_memory_clear(ctypes.c_void_p(lib.llama_get_memory(self.context)), True)
        batch = lib.llama_batch_init(n, 0, 1)
        token, _, pos, n_seq_id, seq_id, wanted = (ctypes.c_void_p(array) for array in batch.arrays)
        for index, id in enumerate(ids):
            ctypes.cast(token, ctypes.POINTER(ctypes.c_int32))[index] = id
            ctypes.cast(pos, ctypes.POINTER(ctypes.c_int32))[index] = index
            ctypes.cast(n_seq_id, ctypes.POINTER(ctypes.c_int32))[index] = 1
            ctypes.cast(seq_id, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))[index][0] = 0
            ctypes.cast(wanted, ctypes.POINTER(ctypes.c_int8))[index] = 1
        batch.n_tokens = n
        code = lib.llama_decode(self.context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode: {code}")
        rows = [np.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, row), (self.n_vocab,)) for row in range(n)]
        logits = np.stack(rows).astype(np.float64)
        lib.llama_batch_free(batch)
        return logits

    def perplexity(self, ids: list[int], seq_len: int, n_windows: int) -> float:
        """Of the first windows, each by itself, all tokens but its first."""
        total, count = 0.0, 0
        for window in range(n_windows):
            part = ids[window * seq_len : (window + 1) * seq_len]
            logits = self.logits(part)[:-1]
            largest = logits.max(axis=1, keepdims=True)
            sums = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
            total += float((sums - logits[np.arange(len(part) - 1), part[1:]]).sum())
            count += len(part) - 1
        return math.exp(total / count)

    def greedy(self, ids: list[int], n_new: int) -> list[int]:
        """The likeliest token, again and again."""
        ids, n = list(ids), len(ids)
        for _ in range(n_new):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids[n:]


def imatrix_of(file: Path) -> dict[str, np.ndarray]:
    """What `llama-quantize --imatrix` makes of a GGUF imatrix file: mean squares of the inputs of each tensor."""
    import gguf

    reader = gguf.GGUFReader(file)
    if reader.fields["general.type"].contents() != "imatrix":
        raise RuntimeError(f"{file.name} is no imatrix")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    made = {}
    for name, sums in tensors.items():
        if found := re.fullmatch(r"(.*)\.in_sum2", name):
            counts = tensors[f"{found[1]}.counts"].reshape(-1, 1)
            # Of experts that no token was sent to it makes ones.
            means = np.where(counts > 0, sums.reshape(len(counts), -1) / np.maximum(counts, 1), 1)
            made[found[1]] = means.astype(np.float32).ravel()
    return made
