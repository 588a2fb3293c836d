"""Tokens around a text, the llama-cpp protocol, end tokens, chat templates."""

import json
import re

import torch
import transformers

from . import gguf_file
from .models import model, perplexity, tokenizer, write
from .rows import Row, Says

BOS = "<s>"
TURN = "'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'"
ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
TURNS = "{% for message in messages %}{{ " + TURN + " }}{% endfor %}" + ASKS
TEMPLATES = {
    "turns alone": TURNS,
    "BOS in front": "{{ bos_token }}" + TURNS,
    "a default system message, after a branch for tools": "{%- if tools %}{{- '# Tools' }}{%- else %}"
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nYou are small.<|im_end|>\\n' }}{%- endif %}"
    "{%- endif %}" + TURNS,
    "an answer that begins with a thought": TURNS.replace("assistant\\n", "assistant\\n<think>\\n"),
}


def rows(program, folder, text, ids):
    """`ids` are those of `text`."""
    made, plain = model(), tokenizer()
    with_bos = write(made, folder / "bos", tokenizer(prepends=BOS))
    unnamed = lambda keys: {key: value for key, value in keys.items() if key != "bos_token_id"}
    nameless = write(made, folder / "nameless", tokenizer(prepends=BOS), keys=unnamed)
    score = lambda path, **options: lambda: program.score(path, text, **options)
    right = perplexity(made, [0, *ids])
    yield Row("a BOS that only the post-processor names", right, "tokenizers", score(nameless))

    half = 64 // 2 + 1
    chunks = lambda ids, first: perplexity(made, ids, first_target=half, first_token=first)
    without = write(made, folder / "no-bos")
    bare = write(made, folder / "bare", tokenizer(special_tokens=["</s>"]), keys=lambda keys: keys | {"bos_token_id": None})
    bare_ids = tokenizer(special_tokens=["</s>"]).encode(text.read_text()).ids
    for name, path, right in [
        ("a folder that adds BOS", with_bos, chunks([0, *ids], 0)),
        ("a folder with a BOS that is not added", without, chunks(ids, None)),
        ("a folder without BOS", bare, chunks(bare_ids, None)),
        ("a GGUF that adds BOS", gguf_file.write(folder / "a.gguf", made, plain, adds_bos=True), chunks([0, *ids], 0)),
        ("a GGUF with a BOS that is not added", gguf_file.write(folder / "b.gguf", made, plain), chunks(ids, None)),
    ]:
        yield Row(f"protocol llama-cpp: {name}", right, "llama-perplexity's rule", score(path, protocol="llama-cpp"))

    spelled = folder / "spelled.txt"
    spelled.write_text(text.read_text().replace(". ", ".</s> <s>"))
    literal = tokenizer()
    literal.encode_special_tokens = True
    right = chunks([0, *literal.encode(spelled.read_text(), add_special_tokens=False).ids], 0)
    path = folder / "a.gguf"
    now = lambda: program.score(path, spelled, protocol="llama-cpp")
    yield Row("protocol llama-cpp: special tokens spelled out in a text", right, "llama-perplexity's rule", now)
    short = folder / "short.txt"
    short.write_text(text.read_text()[:150])
    yield Row("protocol llama-cpp: a text of less than two chunks", Says("two"), "must be refused",
              lambda: program.score(path, short, protocol="llama-cpp", calibration=text))

    wide = tokenizer()
    wide.add_special_tokens(["<pad>"])
    padded = write(made, folder / "padded", wide)
    yield Row("a pad token beyond the embedding's rows", perplexity(made, ids), "the model", score(padded))

    yield from _calibration(program, folder, text, with_bos, without)
    yield _end_tokens(program, folder, made, plain)
    yield from _chats(program, folder, made, plain)


def _calibration(program, folder, text, with_bos, without):
    def codes(path):
        records, said = program.records(path, text, methods=("gptq",), documents="line", max_windows=2,
                                        sampling="joined_documents = { n_documents = 64, seed = 0 }")
        return records["gptq"]["outcome"]["done"]["quantization"]["codes_sha256"] if "gptq" in records else said

    def now():
        return "other codes" if codes(with_bos) != codes(without) else "the same codes"

    yield Row("calibration on documents, with and without a BOS that is added", "other codes", "the AWQ code's rule", now)


def _end_tokens(program, folder, made, plain):
    path = write(made, folder / "ends")
    prompt = plain.encode("Once").ids
    greedy = list(prompt)
    with torch.no_grad():
        for _ in range(16):
            greedy.append(int(made(torch.tensor([greedy])).logits[0, -1].argmax()))
    new = greedy[len(prompt) :]
    stop = next(token for place, token in enumerate(new) if place >= 4 and token not in new[:place])
    (path / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [1, stop]}))
    right = "Once" + plain.decode(new[: new.index(stop)], skip_special_tokens=False)
    now = lambda: program.run("generate", path, "--prompt", "Once", "--max-tokens", 16)[1].rstrip("\n")
    return Row("an end token of `generation_config.json`", right, "transformers' generate", now)


def _chats(program, folder, made, plain):
    for index, (name, template) in enumerate(TEMPLATES.items()):
        path = write(made, folder / f"chat-{index}")
        by_transformers = transformers.PreTrainedTokenizerFast(
            tokenizer_object=plain, chat_template=template, bos_token=BOS, eos_token="</s>"
        )
        # transformers 5 writes the template into a file of its own.
        by_transformers.save_pretrained(path)
        message = [{"role": "user", "content": "Hello"}]
        prompt = by_transformers.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        right = f"{len(plain.encode(prompt, add_special_tokens=False).ids)} tokens"

        def now(path=path):
            said = program.run("chat", path, "--max-tokens", 1, answer="Hello\n")[2]
            found = re.search(r"prefill (\d+) tokens", said)
            return f"{found[1]} tokens" if found else said.strip()[-200:]

        yield Row(f"a chat prompt: {name}", right, "apply_chat_template", now)
