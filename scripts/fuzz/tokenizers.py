"""`tokenizer.json` files of every kind of model, some tokens each."""

import json

from .files import joined, to_json

SPECIAL = ["<unk>", "<s>", "</s>"]


def added(names):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": index, "content": name} | flags for index, name in enumerate(names)]


def whole(model, **parts):
    empty = {key: None for key in ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")}
    return {"version": "1.0"} | empty | {"added_tokens": added(SPECIAL), "model": model} | parts


def vocabulary(tokens):
    return {token: index for index, token in enumerate([*SPECIAL, *tokens])}


def template(before):
    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [{"SpecialToken": {"id": before, "type_id": 0}}, text]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {before: {"id": before, "ids": [1], "tokens": [before]}}}


def tokenizer_jsons():
    bpe = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    letters = list("Helowrdabcxyz0126!,' ") + ["\u0120", "\u010a", "\u0109"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    pattern = {"Regex": r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    cut = {"type": "Sequence", "pretokenizers": [split, byte_level | {"use_regex": False}, {"type": "Digits", "individual_digits": True}]}
    of_bytes = bpe | {"vocab": vocabulary([*letters, "He", "ll", "Hell"]), "merges": [["H", "e"], ["l", "l"], ["He", "ll"]]}
    files = [
        whole(of_bytes, pre_tokenizer=byte_level, decoder=byte_level, post_processor=template("<s>")),
        whole(of_bytes | {"merges": ["H e", "l l"]}, pre_tokenizer=cut, decoder=byte_level, normalizer={"type": "NFC"}, post_processor=byte_level),
    ]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = bpe | {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": vocabulary([*raw, "\u2581", "H", "e", "He"]), "merges": [["H", "e"]]}
    space = {"String": " "}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": space, "content": "\u2581"}]}
    decoders = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    files.append(whole(pieces, normalizer=normalizer, decoder={"type": "Sequence", "decoders": decoders}, post_processor=template("<s>")))
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True}
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [[token, -float(index)] for index, token in enumerate([*SPECIAL, "\u2581", *letters])], "byte_fallback": False}
    files.append(whole(unigram, pre_tokenizer=metaspace, decoder=metaspace, normalizer={"type": "NFKC"}))
    piece = {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocabulary([*letters, "##ello", "wor", "##ld"])}
    bert = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    files.append(whole(piece, normalizer=bert, pre_tokenizer={"type": "BertPreTokenizer"}, decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}, post_processor={"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}))
    level = {"type": "WordLevel", "vocab": vocabulary(["Hello", "world", ","]), "unk_token": "<unk>"}
    cuts = [{"type": "Whitespace"}, {"type": "Punctuation", "behavior": "Isolated"}]
    strategy = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    files.append(whole(level, pre_tokenizer={"type": "Sequence", "pretokenizers": cuts}, truncation=strategy, normalizer={"type": "Lowercase"}, post_processor={"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": True, "add_prefix_space": True}))
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "{{ messages }}"}
    for file in files:
        content = json.dumps(file).encode()
        yield content
        yield joined(content, to_json(settings))
