"""What each target begins with: fixtures of the repository, and small files of the kinds that no fixture has."""

import io
import json
import re
import struct
import zipfile
from pathlib import Path

from .files import gguf, joined, noise, safetensors, shrunk, tarball, to_json, wheel
from .tokenizers import tokenizer_jsons

ROOT = Path(__file__).resolve().parents[2]
FIXTURES, TOOLS, FLOATS, PICKLED = (ROOT / "awq-core/tests" / name for name in ("fixtures", "tools", "floats", "pickled"))
TOKENIZERS = ROOT / "awq-core/tests/tokenizers"
GGUF = ROOT / "awq-core/tests/data/gguf"
# Larger seeds make each execution slow, and most of what is changed in them is weights.
SMALL = 12_000


def of_safetensors():
    types = ["F32", "F16", "BF16", "I8", "U8", "I32"]
    tensors = {f"t{index}": noise(kind, [2, 3], index) for index, kind in enumerate(types)}
    yield safetensors(tensors)
    yield safetensors({"a.weight": noise("F16", [4, 4], 0)}, {"format": "pt"})
    index = {"metadata": {"total_size": 48}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    yield joined(to_json(index), *(safetensors({name: noise("BF16", [3, 4], 1)}) for name in "xy"))
    yield shrunk((FIXTURES / "llama-tiny/model.safetensors").read_bytes(), 4000)


def of_pickled():
    yield (PICKLED / "views/pytorch_model.bin").read_bytes()
    # torch.save's archive of two tensors that share a storage, as its own opcodes.
    storage = lambda kind, key, n: (
        b"(X\x07\0\0\0storagectorch\n" + kind + b"\nX" + struct.pack("<I", len(key)) + key + b"X\x03\0\0\0cpuK" + bytes([n]) + b"tQ"
    )
    tensor = lambda of: b"ctorch._utils\n_rebuild_tensor_v2\n(" + of + b"K\0K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)RtR"
    entry = lambda name, of: b"X" + struct.pack("<I", len(name)) + name + tensor(of)
    pickle = b"\x80\x02}(" + entry(b"a.weight", storage(b"FloatStorage", b"0", 6)) + entry(b"b", storage(b"HalfStorage", b"1", 6)) + b"u."
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        files = {"data.pkl": pickle, "byteorder": b"little", "data/0": noise("F32", [6], 0)[2], "data/1": noise("F16", [6], 1)[2]}
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), content)
    yield out.getvalue()


def of_gguf():
    for file in sorted(GGUF.glob("*.gguf")):
        if file.stat().st_size < 17_000:
            yield file.read_bytes()
    tokens = ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "\u2581a", "ab"]
    keys = {
        "general.architecture": (8, "llama"), "general.alignment": (4, 32), "llama.block_count": (4, 1), "llama.context_length": (4, 64),
        "llama.embedding_length": (4, 32), "llama.feed_forward_length": (4, 32), "llama.attention.head_count": (4, 2),
        "llama.attention.head_count_kv": (4, 1), "llama.attention.layer_norm_rms_epsilon": (6, 1e-5), "llama.rope.freq_base": (6, 1e4),
        "llama.rope.scaling.type": (8, "linear"), "llama.rope.scaling.factor": (6, 2.0),
        "tokenizer.ggml.model": (8, "llama"), "tokenizer.ggml.tokens": (9, (8, tokens)),
        "tokenizer.ggml.scores": (9, (6, [0.0] * 3 + [-1.0, -2.0, -3.0, -4.0, -5.0])), "tokenizer.ggml.token_type": (9, (5, [2, 3, 3] + [1] * 5)),
        "tokenizer.ggml.bos_token_id": (4, 1), "tokenizer.ggml.eos_token_id": (4, 2), "tokenizer.ggml.add_space_prefix": (7, True),
        "tokenizer.chat_template": (8, "{{ messages[0].content }}"),
    }  # fmt: skip
    types = {0: 128, 1: 64, 2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 20: 18, 30: 64, 39: 17}
    linears = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    tensors = {"token_embd.weight": (8, [32, 8], noise("U8", [34 * 8], 0)[2]), "output_norm.weight": (0, [32], noise("F32", [32], 1)[2])}
    for index, (name, kind) in enumerate(zip(linears, types)):
        n_rows = 16 if name in ("attn_k", "attn_v") else 32
        tensors[f"blk.0.{name}.weight"] = (kind, [32, n_rows], noise("U8", [types[kind] * n_rows], index)[2])
    for name in ("attn_norm", "ffn_norm"):
        tensors[f"blk.0.{name}.weight"] = (0, [32], noise("F32", [32], 2)[2])
    yield gguf(keys, tensors)
    blocks = {10: 84, 11: 110, 12: 144, 13: 176, 14: 210, 16: 66, 17: 74, 18: 98, 19: 50, 21: 110, 22: 82, 23: 136, 29: 56, 34: 54, 35: 66}
    names = [f"blk.{block}.{linear}.weight" for block in range(3) for linear in linears[2:]]
    yield gguf(keys, {name: (kind, [256, 1], noise("U8", [size], kind)[2]) for name, (kind, size) in zip(names, blocks.items())})
    parts = [{"split.no": (4, part), "split.count": (4, 2), "split.tensors.count": (5, 2)} for part in (0, 1)]
    halves = [dict(list(tensors.items())[part::2][:1]) for part in (0, 1)]
    yield joined(gguf(keys | parts[0], halves[0]), gguf(parts[1], halves[1]))


def configurations():
    for folder in (FIXTURES, TOOLS, FLOATS):
        yield from sorted(folder.glob("*/config.json"))


def of_config():
    for file in configurations():
        yield to_json(json.loads(file.read_text()))


def of_sentence_piece():
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "legacy": False}
    for name in ("llama.model", "gemma.model"):
        model = (TOKENIZERS / name).read_bytes()
        yield model
        yield joined(model, to_json(settings), to_json({"<extra>": 600}))
    piece = lambda text, score, kind: b"\x0a" + bytes([9 + len(text)]) + b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
    pieces = [piece(b"<unk>", 0, 2), piece(b"<s>", 0, 3), piece(b"</s>", 0, 3)] + [piece(text, -1.5, 1) for text in (b"\xe2\x96\x81", b"a", b"ab", b"l")]
    for kind in (1, 2):
        trainer = b"\x12\x04\x18" + bytes([kind]) + b"\xd0\x02\x00"
        normalizer = b"\x1a\x08\x18\x01\x20\x01\x28\x00\x30\x00"
        yield joined(b"".join(pieces) + trainer + normalizer, to_json(settings))


def of_vocab_merges():
    vocab, merges = (TOKENIZERS / "vocab.json").read_bytes(), (TOKENIZERS / "merges.txt").read_bytes()
    settings = {
        "tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|endoftext|>", "add_prefix_space": False,
        "added_tokens_decoder": {"300": {"content": "<|x|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}},
    }  # fmt: skip
    yield joined(vocab, merges)
    yield joined(vocab, merges, to_json(settings), to_json({"<|y|>": 301}))
    small = {letter: index for index, letter in enumerate(["a", "b", "c", "\u0120", "ab", "abc", "<|endoftext|>"])}
    for class_name in ("Qwen2Tokenizer", "GPT2Tokenizer", "CodeGenTokenizer"):
        yield joined(to_json(small), b"#version: 0.2\na b\nab c\n", to_json(settings | {"tokenizer_class": class_name}))


def grid(granularity, **more):
    keys = {"bits": 4, "granularity": granularity, "symmetry": "asymmetric", "range_includes_zero": True, "scale_dtype": "f16"}
    return keys | more


def of_packed():
    n_out, n_in = 4, 20
    transforms = [
        ("identity", "per_channel", {}), ("identity", {"per_group": 8}, {}), ("identity", "per_tensor", {"bits": 3}),
        ("permuted_inputs", {"per_group": 8}, {}), ("kept_inputs", "per_channel", {}),
        ({"rotated": {"output": ["kronecker", 1], "input": ["hadamard", 2]}}, "per_channel", {}),
        ("identity", {"per_group": 8}, {"values": "nf4", "symmetry": "symmetric_full_range", "range_includes_zero": False}),
    ]  # fmt: skip
    for transform, granularity, more in transforms:
        of = grid(granularity, **more)
        n_words = -(-n_in * of["bits"] // 32)
        n_groups = -(-n_in // 8) if isinstance(granularity, dict) else 1
        scales = [1, 1] if granularity == "per_tensor" else [n_out, n_groups]
        zero_points = ("U8", scales, bytes(index % 8 for index in range(scales[0] * scales[1])))
        order = struct.pack(f"<{n_in}I", *reversed(range(n_in)))
        tensors = {
            "l.codes": noise("U32", [n_out, n_words], 0), "l.scales": noise("F16", scales, 1), "l.zero_points": zero_points,
            "l.input_order": ("U32", [n_in], order), "l.kept_inputs": ("U32", [2], struct.pack("<2I", 3, 7)),
            "l.kept_weights": noise("F16", [n_out, 2], 2), "l.input_scales": noise("F16", [n_in], 3), "norm.weight": noise("F32", [4], 4),
        }  # fmt: skip
        header = {
            "layout_version": 1, "method": "RTN", "settings": {}, "grid": of, "bits_per_weight": 4.5, "calibration": None,
            "codes_sha256": "", "version": "0.1.0", "commit": "unknown", "linears": {"l": {"shape": [n_out, n_in], "grid": of, "transform": transform}},
        }  # fmt: skip
        yield joined(to_json(header), safetensors(tensors))


def of_foreign():
    for folder in (TOOLS, FLOATS, FIXTURES):
        for file in sorted(folder.glob("*/config.json")):
            weights = file.with_name("model.safetensors")
            if weights.exists() and weights.stat().st_size < 100_000:
                yield joined(to_json(json.loads(file.read_text())), shrunk(weights.read_bytes(), SMALL))
    base = json.loads((FIXTURES / "llama-tiny/config.json").read_text())
    linear, n_in, n_out, group = "model.layers.0.self_attn.q_proj", 64, 32, 32
    scales = noise("F16", [n_in // group, n_out], 0)
    order = ("I32", [n_in], struct.pack(f"<{n_in}i", *(index // group for index in range(n_in))))
    for bits in (2, 3, 4, 8):
        gptq = {"qweight": noise("I32", [n_in * bits // 32, n_out], 1), "qzeros": noise("I32", [n_in // group, max(1, n_out * bits // 32)], 2), "scales": scales, "g_idx": order}
        tensors = safetensors({f"{linear}.{name}": tensor for name, tensor in gptq.items()})
        settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": True, "desc_act": bits == 4, "checkpoint_format": "gptq"}
        yield joined(to_json(base | {"quantization_config": settings}), tensors)
        yield joined(to_json(base), tensors, to_json(settings | {"checkpoint_format": "gptq_v2"}))
    awq = {"qweight": noise("I32", [n_in, n_out // 8], 1), "qzeros": noise("I32", [n_in // group, n_out // 8], 2), "scales": scales}
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    yield joined(to_json(base | {"quantization_config": settings}), safetensors({f"{linear}.{name}": tensor for name, tensor in awq.items()}))
    shape = ("I32", [2], struct.pack("<2i", n_out, n_in))
    packed = {"weight_packed": noise("I32", [n_out, n_in // 8], 1), "weight_scale": noise("F16", [n_out, n_in // group], 2), "weight_shape": shape, "weight_zero_point": noise("I32", [n_out // 8, n_in // group], 3)}
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": group, "symmetric": False}
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    yield joined(to_json(base | {"quantization_config": settings}), safetensors({f"{linear}.{name}": tensor for name, tensor in packed.items()}))


def of_archive():
    files = {"package/model.gguf": b"GGUF" * 9, "package/data/a.txt": b"a" * 50, "package/data/deep/b.txt": b"b", "package/data/../c": b"c"}
    yield wheel(files)
    yield wheel(files, zipfile.ZIP_STORED)
    yield tarball(files)
    yield tarball(files | {"package/data/" + "x" * 120: b"long"}, form=1)


def of_experiment_toml():
    for file in sorted((ROOT / "configs").rglob("*.toml")):
        text = file.read_text()
        base = re.search(r'^extends = "(.*)"$', text, re.MULTILINE)
        if base is None:
            yield text.encode()
        else:
            yield joined(text.replace(base.group(0), 'extends = "base.toml"').encode(), (file.parent / base.group(1)).read_bytes())


def of_records():
    folder = ROOT / "results/reference"
    for name in ("quickstart", "smollm2-gptq", "table9-smollm2"):
        lines = (folder / name / "records.jsonl").read_bytes().splitlines(keepends=True)
        blocks = (folder / name / "blocks.jsonl.zst").read_bytes()
        for line in sorted(lines, key=len)[:3]:
            yield line
        yield joined(b"".join(sorted(lines, key=len)[:2]) + b"{}\n", frames(blocks)[0])


def frames(content: bytes) -> list[bytes]:
    """Frames of zstd, which begin with a number of their own."""
    magic = b"\x28\xb5\x2f\xfd"
    return [magic + frame for frame in content.split(magic)[1:]]


def of_chat_template():
    for fixture in json.loads((ROOT / "experiments/src/generate/chat_fixtures.json").read_text()).values():
        yield fixture["template"].encode()
    yield b"{% for i in range(10) %}{{ i }}{% endfor %}{% macro m(x) %}{{ x | tojson(indent=2) }}{% endmacro %}{{ m(messages) }}"
    yield b"{% set ns = namespace(x=0) %}{{ strftime_now('%d %b %Y') }}{{ 'ab' * 3 }}{{ [1] * 3 }}{{ 2 ** 3 }}{{ 'x'.ljust(9) }}"
    yield b"{{ messages | map(attribute='content') | join(',') | replace('a', 'b') | indent(2) | upper | trim }}{{ 'a b'.split(' ')[::-1] }}"
    yield b"{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{{ '%05d' | format(3) }}{{ range(3) | list | batch(2) | list }}"


SEEDS = {
    "safetensors": of_safetensors, "pickled": of_pickled, "gguf": of_gguf, "config": of_config, "tokenizer_json": tokenizer_jsons,
    "sentence_piece": of_sentence_piece, "vocab_merges": of_vocab_merges, "packed": of_packed, "foreign": of_foreign, "archive": of_archive,
    "experiment_toml": of_experiment_toml, "records": of_records, "chat_template": of_chat_template,
}  # fmt: skip


def words_of(seeds: list[bytes]) -> list[bytes]:
    """Words that a dictionary of libFuzzer holds: what stands in quotes in the seeds, and bare words of templates and TOML."""
    words = set()
    for seed in seeds:
        words |= set(re.findall(rb'"([\x20-\x21\x23-\x5b\x5d-\x7e]{2,40})"', seed))
        # In binary files, shorter ones are there by chance.
        words |= set(re.findall(rb"[a-z_.0-9]{6,40}" if b"\0" in seed else rb"[a-z_]{3,30}", seed))
    return sorted(words)[:1500]
