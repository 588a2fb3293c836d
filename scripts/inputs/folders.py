"""Hugging Face folders: heads, shards, buffers, biases, keys, folders that are no plain model."""

import json

import torch
from safetensors import torch as safetensors

from . import models
from .models import model, perplexity, read_by_transformers, write
from .rows import Row, Says

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TRANSFORMERS = "transformers"


def rows(program, folder, text, ids):
    """`ids` are those of `text`."""
    score = lambda path, **options: lambda: program.score(path, text, **options)
    by_transformers = lambda path, **options: perplexity(read_by_transformers(path), ids, **options)
    plain = perplexity(model(), ids)

    def other_head(state):
        return state | {HEAD: (1.1 * state[EMBEDDING].flip(0)).contiguous()}

    tied = write(model(tie_word_embeddings=True), folder / "tied", tensors=other_head)
    yield Row("a head that is said to be tied, and another one stored", by_transformers(tied), TRANSFORMERS, score(tied))

    for kind, embedding in [("llama", EMBEDDING), ("opt", "model.decoder.embed_tokens.weight")]:
        made = model(kind, tie_word_embeddings=True)
        only_head = lambda state, name=embedding: {HEAD: state[name]} | {k: v for k, v in state.items() if k != name}
        path = write(made, folder / f"head-{kind}", tensors=only_head)
        yield Row(f"{kind}: a tied head of which only `lm_head.weight` is stored", perplexity(made, ids), "the model", score(path))

    buffers = {
        "position ids, int64": {"model.embed_positions.position_ids": torch.arange(512)},
        "a causal mask, bool": {"model.layers.0.self_attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)},
        "rotary frequencies, float64": {"model.rotary_emb.inv_freq": torch.ones(8, dtype=torch.float64)},
    }
    for index, (name, tensor) in enumerate(buffers.items()):
        path = write(model(), folder / f"buffer-{index}", tensors=lambda state, more=tensor: state | more)
        yield Row(f"a buffer that nobody reads: {name}", plain, "the model", score(path))
    extra = lambda state: state | {"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}
    path = write(model(), folder / "unread", tensors=extra)
    yield Row("a weight that this architecture does not read", Says("q_norm"), "must be named", score(path))

    yield from _shards(folder, plain, score)
    yield from _keys(folder, ids, score, by_transformers)
    yield from _no_plain_model(folder, plain, score)


def _shards(folder, plain, score):
    def sharded(name, edit_index=lambda index: index, edit_shards=lambda first, second: None):
        path = write(model(), folder / name)
        state = safetensors.load_file(path / "model.safetensors")
        (path / "model.safetensors").unlink()
        files = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
        names = sorted(state)
        parts = [names[: len(names) // 2], names[len(names) // 2 :]]
        shards = [{name: state[name] for name in part} for part in parts]
        edit_shards(*shards)
        for file, shard in zip(files, shards):
            safetensors.save_file(shard, path / file, metadata={"format": "pt"})
        index = {name: file for file, part in zip(files, parts) for name in part}
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": edit_index(index)}))
        return path, files

    path, _ = sharded("stale", edit_shards=lambda first, second: second.update({HEAD: -first[HEAD]}))
    yield Row("a tensor in two shards: the index says which counts", plain, "the model", score(path))
    path, files = sharded("swapped", lambda index: {k: files_swapped(v) for k, v in index.items()})
    yield Row("an index with its shards swapped", plain, "the model", score(path))
    path, files = sharded("absent")
    (path / files[1]).unlink()
    yield Row("one shard of two is absent", Says(files[1]), "must be named", score(path))
    path, files = sharded("no-index")
    (path / "model.safetensors.index.json").unlink()
    (path / files[1]).unlink()
    yield Row("one part of two, without an index", Says("00001-of-00002", "part"), "must be named", score(path))

    path = write(model(tie_word_embeddings=True), folder / "phantom")
    (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
    names = list(safetensors.load_file(path / "model-00001-of-00001.safetensors")) + [HEAD]
    index = {"metadata": {}, "weight_map": {name: "model-00001-of-00001.safetensors" for name in names}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    right = read_by_transformers(path)
    ids = models.tokenizer().encode(models.prose()).ids
    yield Row("an index that promises the tied head, which no shard has", perplexity(right, ids), TRANSFORMERS, score(path))


def files_swapped(file):
    """The other of two shards."""
    return file.replace("00001-of", "x").replace("00002-of", "00001-of").replace("x", "00002-of")


def _keys(folder, ids, score, by_transformers):
    plain = lambda name, edit: write(model(), folder / name, keys=edit)
    for name, right, edit in [
        ("`hidden_act = \"swish\"`", None, lambda keys: keys | {"hidden_act": "swish"}),
        ("no `architectures`", None, lambda keys: {k: v for k, v in keys.items() if k != "architectures"}),
        ("a linear `rope_scaling` of transformers 4", None, lambda keys: _rope_of_4(keys, {"type": "linear", "factor": 4.0})),
        ("a key that scales attention", Says("attention_multiplier"), lambda keys: keys | {"attention_multiplier": 0.5}),
        ("a cap on logits", Says("final_logit_softcapping"), lambda keys: keys | {"final_logit_softcapping": 30.0}),
        ("experts", Says("num_local_experts"), lambda keys: keys | {"num_local_experts": 8}),
        ("an unknown architecture with keys missing", Says("MambaForCausalLM"), _mamba),
    ]:
        path = plain(f"key-{abs(hash(name)) % 10**6}", edit)
        right = right or by_transformers(path)
        yield Row(name, right, "must be named" if isinstance(right, Says) else TRANSFORMERS, score(path))

    both = plain("both-ropes", lambda keys: keys | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
                 "rope_scaling": {"rope_type": "linear", "factor": 4.0}})
    yield Row("`rope_scaling` beside `rope_parameters`", by_transformers(both), TRANSFORMERS, score(both))

    for name, kind, edit, options in [
        ("Mistral, a window of 24 at 64 tokens", "mistral", {"sliding_window": 24}, {}),
        ("Qwen2, the second block slides", "qwen2",
         {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1, "layer_types": None}, {}),
        ("Llama with the key `sliding_window`", "llama", {"sliding_window": 24}, {}),
    ]:
        path = write(model(kind), folder / f"window-{kind}", keys=lambda keys, edit=edit: _without_none(keys | edit))
        yield Row(name, by_transformers(path), TRANSFORMERS, score(path, **options))

    biased = model(attention_bias=True, mlp_bias=True)
    path = write(biased, folder / "biased")
    yield Row("biases on all linears", perplexity(biased, ids), "the model", score(path))
    denied = write(biased, folder / "denied", keys=lambda keys: keys | {"attention_bias": False, "mlp_bias": False})
    yield Row("biases that `config.json` denies", by_transformers(denied), TRANSFORMERS, score(denied))


def _without_none(keys):
    return {key: value for key, value in keys.items() if value is not None}


def _rope_of_4(keys, scaling):
    keys = {key: value for key, value in keys.items() if key != "rope_parameters"}
    return keys | {"rope_theta": 10000.0, "rope_scaling": scaling}


def _mamba(keys):
    return {"architectures": ["MambaForCausalLM"], "model_type": "mamba", "hidden_size": keys["hidden_size"]}


def _no_plain_model(folder, plain, score):
    def quantized(state):
        linears = [name for name in state if name.endswith("proj.weight")]
        kept = {name: tensor for name, tensor in state.items() if name not in linears}
        return kept | {name.replace("weight", "qweight"): torch.zeros(4, 4, dtype=torch.int32) for name in linears}

    for method, said in [("awq", {"version": "gemm"}), ("gptq", {"quantizer": "gptqmodel:7.7.0"})]:
        settings = {"quantization_config": {"quant_method": method, "bits": 4, "group_size": 16} | said}
        path = write(model(), folder / f"by-{method}", tensors=quantized, keys=lambda keys, more=settings: keys | more)
        yield Row(f"{method}: codes without scales", Says("by-" + method, ".scales"), "must be named", score(path))
    path = write(model(), folder / "scaled", keys=lambda keys: keys | {"quantization_config": {"quant_method": "fp8"}})
    yield Row("float weights beside a `quantization_config`", Says("quantized", "fp8"), "must be named", score(path))

    path = write(model(), folder / "adapter")
    (path / "model.safetensors").rename(path / "adapter_model.safetensors")
    (path / "config.json").unlink()
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "base"}))
    yield Row("a LoRA adapter", Says("adapter"), "must be named", score(path))
    path = write(model(), folder / "pickled")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    yield Row("`pytorch_model.bin` that PyTorch did not write", Says("pytorch_model.bin"), "must be named", score(path))
    path = write(model(), folder / "dangling")
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to("../blobs/gone")
    yield Row("weights behind a dangling link", Says("link", "gone"), "must be named", score(path))
    path = write(model(), folder / "marked")
    for name in ("config.json", "tokenizer.json"):
        (path / name).write_bytes(b"\xef\xbb\xbf" + (path / name).read_bytes())
    yield Row("JSON files with a byte order mark", plain, "the model", score(path))

    def unreached(state):
        rows = torch.cat([state[EMBEDDING], torch.full((8, 64), float("nan"), dtype=torch.bfloat16)])
        return state | {EMBEDDING: rows, HEAD: torch.cat([state[HEAD], torch.zeros(8, 64, dtype=torch.bfloat16)])}

    wide = write(model(), folder / "unreached", tensors=unreached, keys=lambda keys: keys | {"vocab_size": 328})
    ids = models.tokenizer().encode(models.prose()).ids
    right = perplexity(read_by_transformers(wide), ids)
    yield Row("NaN in rows of the embedding that no token has", right, TRANSFORMERS, score(wide))
