#!/usr/bin/env python3
"""Makes awq-core/tests/tokenizers: tokenizers in the files that came before tokenizer.json, and what their makers do with them.

    python3 -m venv venv && venv/bin/pip install transformers sentencepiece protobuf
    venv/bin/python scripts/make-tokenizer-fixtures.py

The vocabularies are trained here, on the text of a licence. `cases.json` has for each case the files of a folder and what is in
the small ones, and texts with their ids: by SentencePiece itself where a text names no special token, else by transformers.
"""

import io
import json
import pathlib
import shutil
import tempfile

import sentencepiece
import tokenizers
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "awq-core" / "tests" / "tokenizers"
LINES = [line.strip() for line in (ROOT / "LICENSE-APACHE").read_text(encoding="utf8").splitlines() if line.strip()]
LINES += ["Ünïcödé ①② ﬁne ｆｕｌｌ　ｗｉｄｔｈ", "naïve café, über straße", "日本語のテキスト", "1234567890 + 42 = ?"] * 8

PLAIN = [
    "", " ", "  ", "a", " a", "a ", "  two  spaces  ", "Licensed under the Apache License, Version 2.0",
    "the\nwork\n\nand\t\tits parts\r\n", "naïve café über ①② ﬁne ｆｕｌｌ　ｗｉｄｔｈ", "日本語のテキストです。", "한국어 и русский",
    "emoji 😀👩‍👩‍👧 🇩🇪", "1234567890", "3.14159, 1,000,000", "don't we'll THEY'RE i'd", "CamelCase snake_case kebab-case",
    "   leading and trailing   ", "▁escaped▁space", "a\u00a0b\u200bc\ufeffd", "\u0000nul\u0007bell", "x" * 60, "=" * 20,
    "Notwithstanding the above, nothing herein shall supersede or modify the terms",
]
SPECIAL = ["<s>a", "a</s>b", "a <s> b", "<unk>", "<s></s>", "the work</s> the work"]


def train(name, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, vocab_size=options.pop("vocab_size", 400), num_threads=1,
        character_coverage=0.9995, minloglevel=2, hard_vocab_limit=False, **options,
    )
    (FOLDER / name).write_bytes(model.getvalue())


def by_sentencepiece(name, texts):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / name))
    return [{"text": text, "ids": processor.encode(text)} for text in texts]


def by_transformers(files, texts, model_type):
    """Ids with what stands around a text, and a config.json beside that names the model."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, source in files.items():
            if isinstance(source, str):
                shutil.copy(FOLDER / source, folder / name)
            else:
                (folder / name).write_text(json.dumps(source), encoding="utf8")
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf8")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        return [{"text": text, "ids": tokenizer(text)["input_ids"]} for text in texts]


def sentencepiece_cases():
    identity = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    train("llama.model", model_type="bpe", byte_fallback=True, split_digits=True, **identity)
    train("unigram.model", model_type="unigram", vocab_size=300, user_defined_symbols=["<ud>", "(c)"], control_symbols=["<ctl>"])
    train(
        "gemma.model", model_type="bpe", byte_fallback=True, add_dummy_prefix=False,
        user_defined_symbols=["<turn>", "▁▁", "\n\n", "\n"], **identity,
    )
    llama = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    cases = {}
    cases["llama"] = (
        {"tokenizer.model": "llama.model", "tokenizer_config.json": llama | {"add_bos_token": False}},
        by_sentencepiece("llama.model", PLAIN),
    )
    user_defined = ["<ud>", "a<ud>b", "the (c) work(c)", " <ud> ", "<ud><ud>", "(c)\n(c)"]
    unigram = {"add_bos_token": False, "tokenizer_class": "XGLMTokenizer"}
    cases["unigram"] = (
        {"tokenizer.model": "unigram.model", "tokenizer_config.json": unigram},
        by_sentencepiece("unigram.model", PLAIN + user_defined),
    )
    runs = ["a  b   c    d", "\n\n\n", "<turn>the\n\nwork<turn>", "  \n  "]
    cases["gemma"] = (
        {"tokenizer.model": "gemma.model", "tokenizer_config.json": {"add_bos_token": False, "tokenizer_class": "GemmaTokenizer"}},
        by_sentencepiece("gemma.model", PLAIN + runs),
    )
    added = {
        "400": {"content": "<|user|>", "lstrip": False, "rstrip": True, "normalized": False, "special": False},
        "401": {"content": "<|end|>", "lstrip": False, "rstrip": False, "normalized": False, "special": True},
    }
    size = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "llama.model")).vocab_size()
    added = {str(size + index): token for index, token in enumerate(added.values())}
    first = {
        "tokenizer.model": "llama.model",
        "tokenizer_config.json": llama
        | {"legacy": False, "add_bos_token": True, "add_eos_token": True, "added_tokens_decoder": added},
    }
    chat = ["<|user|>  the work<|end|> of", "a<|user|>\nb", "<|end|>"]
    cases["llama-not-legacy"] = (first, by_transformers(first, PLAIN + SPECIAL + chat, "llama"))
    # Tokens that are listed as normalized, in a class without a way of its own.
    legacy = {
        "tokenizer.model": "llama.model",
        "tokenizer_config.json": {"tokenizer_class": "TokenizersBackend", "legacy": True, "add_bos_token": True,
                                  "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                                  "added_tokens_decoder": {id: token | {"normalized": True} for id, token in added.items()}},
    }
    cases["legacy"] = (legacy, by_transformers(legacy, PLAIN + SPECIAL + chat, "granite"))
    return cases


def byte_level_cases():
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(LINES, vocab_size=420, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>"])
    trained.save_model(str(FOLDER))
    both = {"vocab.json": "vocab.json", "merges.txt": "merges.txt"}
    texts = PLAIN + SPECIAL + ["a<|endoftext|>b", "<pad><pad>", "a<extra> b", " <extra>", "  " * 4]
    spelled = {"content": "</s>", "lstrip": False, "rstrip": False, "normalized": True, "single_word": False, "__type": "AddedToken"}
    opt = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": spelled, "eos_token": spelled,
           "unk_token": spelled, "pad_token": "<pad>", "errors": "replace"}
    cases = {}
    cases["opt"] = (both | {"tokenizer_config.json": opt}, "opt")
    added = {"<extra>": 420, "    ": 421}
    cases["gpt2"] = (
        both | {"tokenizer_config.json": {"tokenizer_class": "GPT2TokenizerFast"}, "added_tokens.json": added,
                "special_tokens_map.json": {"eos_token": "<|endoftext|>", "additional_special_tokens": ["<extra>"]}},
        "gpt2",
    )
    cases["gpt2-prefix"] = (both | {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}}, "gpt2")
    cases["qwen2"] = (both | {"tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"}}, "qwen2")
    return {name: (files, by_transformers(files, texts, model)) for name, (files, model) in cases.items()}


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    versions = (
        f"transformers {transformers.__version__}, sentencepiece {sentencepiece.__version__}, tokenizers {tokenizers.__version__}"
    )
    cases = sentencepiece_cases() | byte_level_cases()
    listed = {name: {"files": files, "texts": texts} for name, (files, texts) in cases.items()}
    text = json.dumps({"made_with": versions, "cases": listed}, ensure_ascii=True, indent=None, separators=(",", ":"))
    (FOLDER / "cases.json").write_text(text + "\n", encoding="utf8")
    print({name: len(texts) for name, (_, texts) in cases.items()})


if __name__ == "__main__":
    main()
