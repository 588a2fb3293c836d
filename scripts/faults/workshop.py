"""What all pieces of work begin with, made from a seed: a tiny model, texts, an experiment; and the program at work in a folder."""

import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
from array import array
from pathlib import Path

N_WORDS, N_TOKENS, HIDDEN, KV_WIDTH, INTERMEDIATE, N_BLOCKS = 40, 257, 64, 32, 128, 2

END = "<|endoftext|>"

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": N_BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": N_TOKENS, "eos_token_id": 256,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
}  # fmt: skip

EXPERIMENT = """question = "What does a fault leave?"

[run]
device = "flex"

[[models]]
name = "tiny"
source = {{ path = {{ path = "model" }} }}

[calibration]
dataset = {{ text_file = {{ name = "calibration", path = "calibration.txt", sha256 = "{calibration}", documents = "none" }} }}
sampling = {{ random_crops = {{ n_sequences = 4, seed = 0 }} }}
seq_len = 32
propagation = "full_precision"

[grids]
bits = [4, 3]
granularity = [{{ per_group = 32 }}]
symmetry = "asymmetric"
range_includes_zero = false
scale_dtype = "f32"

[[methods]]
rtn = {{}}

[[methods]]
[methods.awq]
scale = {{ search = {{ formula = "activation", n_ratios = 20 }} }}
clip = {{ search = {{ n_steps = 20, max_shrink = 0.5, n_tokens = 64 }} }}

[[evaluations]]
[evaluations.perplexity]
dataset = {{ text_file = {{ name = "evaluation", path = "evaluation.txt", sha256 = "{evaluation}", documents = "none" }} }}
protocol = {{ gptq = {{ seq_len = 64 }} }}
"""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def words(seed: int, n: int) -> str:
    rng = random.Random(seed)
    return " ".join(f"w{rng.randrange(1, N_WORDS)}" for _ in range(n))


def byte_letters() -> list[str]:
    """The letter that stands for each byte in GPT-2's vocabulary: its own where that can be printed, else one from 256 on."""
    printed = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printed else chr(next(others)) for byte in range(256)]


def tokenizer() -> dict:
    """One token a byte, and one for the end."""
    vocab = {letter: byte for byte, letter in enumerate(byte_letters())} | {END: 256}
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": None}
    end = {"id": 256, "content": END, "special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": None,
        "pre_tokenizer": by_bytes, "post_processor": None, "decoder": by_bytes, "model": model,
    }  # fmt: skip


def shapes() -> dict[str, list[int]]:
    linears = {
        "self_attn.q_proj": [HIDDEN, HIDDEN], "self_attn.k_proj": [KV_WIDTH, HIDDEN],
        "self_attn.v_proj": [KV_WIDTH, HIDDEN], "self_attn.o_proj": [HIDDEN, HIDDEN],
        "mlp.gate_proj": [INTERMEDIATE, HIDDEN], "mlp.up_proj": [INTERMEDIATE, HIDDEN],
        "mlp.down_proj": [HIDDEN, INTERMEDIATE], "input_layernorm": [HIDDEN], "post_attention_layernorm": [HIDDEN],
    }  # fmt: skip
    found = {"model.embed_tokens.weight": [N_TOKENS, HIDDEN], "model.norm.weight": [HIDDEN]}
    for block in range(N_BLOCKS):
        found |= {f"model.layers.{block}.{name}.weight": shape for name, shape in linears.items()}
    return found


def safetensors() -> bytes:
    """Values of a seed, in f32, in the layout of safetensors."""
    rng, header, data = random.Random(0), {}, b""
    for name, shape in shapes().items():
        n = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [1.0] * n if len(shape) == 1 else [rng.uniform(-0.3, 0.3) for _ in range(n)]
        content = array("f", values).tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def model_files() -> dict[str, bytes]:
    """The files of the tiny model, by name."""
    texts = {"config.json": json.dumps(CONFIG), "tokenizer.json": json.dumps(tokenizer())}
    return {name: text.encode() for name, text in texts.items()} | {"model.safetensors": safetensors()}


class Workshop:
    """Folders to work in, each with the same inputs, below one scratch folder."""

    def __init__(self, program: Path, scratch: Path):
        self.program, self.scratch = program.resolve(), scratch
        self.inputs = scratch / "inputs"
        (self.inputs / "model").mkdir(parents=True)
        for name, content in model_files().items():
            (self.inputs / "model" / name).write_bytes(content)
        texts = {"calibration": words(1, 4000), "evaluation": words(2, 600)}
        for name, text in texts.items():
            (self.inputs / f"{name}.txt").write_text(text)
        hashes = {name: sha256(text.encode()) for name, text in texts.items()}
        (self.inputs / "experiment.toml").write_text(EXPERIMENT.format(**hashes))

    def folder(self, name: str) -> Path:
        """A new folder with links to the inputs."""
        folder = self.scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for entry in self.inputs.iterdir():
            (folder / entry.name).symlink_to(entry)
        return folder

    def remove(self, folder: Path):
        shutil.rmtree(folder)

    def environment(self, folder: Path, more: dict[str, str]) -> dict[str, str]:
        """No settings of the user, and every folder that the program writes to inside of `folder`."""
        mine = ("AWQ_", "HF_", "XDG_", "LD_PRELOAD", "FAKETIME")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(mine)}
        return kept | {
            "AWQ_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hub"), "HOME": str(folder / "home"),
            "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1",
        } | more  # fmt: skip

    def start(self, folder: Path, arguments: list[str], more: dict[str, str] | None = None, before: list[str] = ()):
        """The program at work. `before` is a command that it is run by."""
        return subprocess.Popen(
            [*before, self.program, *arguments],
            cwd=folder,
            env=self.environment(folder, more or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, arguments: list[str], more: dict[str, str] | None = None, before: list[str] = (),
            patience: float = 600):
        """Exit code, standard output and standard error."""
        process = self.start(folder, arguments, more, before)
        out, err = process.communicate(timeout=patience)
        return process.returncode, out, err
