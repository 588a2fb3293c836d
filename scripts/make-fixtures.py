#!/usr/bin/env python3
"""Makes the tiny checkpoints below awq-core/tests/fixtures, and what PyPI's transformers computes with them.

    python3 -m venv venv && venv/bin/pip install transformers torch safetensors
    venv/bin/python scripts/make-fixtures.py [NAME ...]

One folder a model: config.json and model.safetensors as transformers writes them, and expected.safetensors with `ids`
[n_sequences, seq_len] (i32) and `logits` [n_sequences, seq_len, vocab] (f32), computed in f32 on the CPU. Weights are
rounded to bf16 before anything is computed, so that the small files hold them exactly. They are larger than a trained
model's, biases and norms included: a mistake of order, offset or sign then moves logits by tenths.
"""

import pathlib
import sys

import safetensors.torch
import torch
import transformers

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "awq-core" / "tests" / "fixtures"
N_SEQUENCES, SEQ_LEN, VOCAB = 2, 24, 64

SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
# What the Llama class and its relatives have beyond that.
GATED = SIZES | {"intermediate_size": 48, "max_position_embeddings": 32, "rms_norm_eps": 1e-5}

# The same under LayerNorms.
LAYERED = SIZES | {"intermediate_size": 48, "max_position_embeddings": 32, "num_key_value_heads": 4}
# A tower for images, which texts do not go through.
TOWER = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8,
}
# Positions of three numbers, which are one for a text.
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [1, 1, 2]}}
QWEN_TOWER = {"depth": 1, "num_heads": 2, "patch_size": 8}

# GPT-2's names of sizes.
GPT = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 48}

MODELS = {
    # Every linear with a bias, learned positions, tied head.
    "opt-tiny": transformers.OPTConfig(**SIZES, ffn_dim=64, max_position_embeddings=32),
    # Grouped queries, an untied head, frequencies that Llama 3.1's rule stretches, and a bias wherever the class allows one.
    "llama-tiny": transformers.LlamaConfig(
        **GATED,
        num_key_value_heads=2,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    # Heads wider than hidden_size / n_heads, and a sliding window that no sequence reaches the end of.
    "mistral-tiny": transformers.MistralConfig(**GATED, num_key_value_heads=4, head_dim=12, sliding_window=28),
    # Biases on q, k and v alone, and a tied head.
    "qwen2-tiny": transformers.Qwen2Config(**GATED, num_key_value_heads=2, tie_word_embeddings=True),
    # Sequences of almost five windows, in every block.
    "mistral-window": transformers.MistralConfig(**GATED, num_key_value_heads=2, sliding_window=5),
    # Only the second block slides.
    "qwen2-window": transformers.Qwen2Config(
        **GATED, num_key_value_heads=2, use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    # A norm on each head of q and k, heads wider than hidden_size / n_heads, and a bias on all of attention's linears.
    "qwen3-tiny": transformers.Qwen3Config(**GATED, num_key_value_heads=2, head_dim=12, attention_bias=True),
    # Four experts, of which each token goes through two.
    "mixtral-tiny": transformers.MixtralConfig(**GATED, num_key_value_heads=4, num_local_experts=4),
    # Norms of 1 + w, a scaled embedding, heads wider than hidden_size / n_heads, and a gate through GELU.
    "gemma-tiny": transformers.GemmaConfig(**GATED, num_key_value_heads=4, head_dim=12),
    # Capped scores and logits, a norm on both sides of each module, and a scale of scores that no width gives.
    "gemma2-tiny": transformers.Gemma2Config(
        **GATED, num_key_value_heads=2, head_dim=12, query_pre_attn_scalar=20, sliding_window=7,
        attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
    ),
    # Norms of heads, and another base of rotary frequencies in the block with a window.
    "gemma3-tiny": transformers.Gemma3TextConfig(
        **GATED, num_key_value_heads=2, head_dim=12, query_pre_attn_scalar=20, sliding_window=7,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    # No norm before a module, one after each, and one over all heads of q and k; frequencies that YaRN stretches.
    "olmo2-tiny": transformers.Olmo2Config(
        **GATED,
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "beta_fast": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    # Factors of embeddings, scores, what modules add, and logits.
    "granite-tiny": transformers.GraniteConfig(
        **GATED, num_key_value_heads=2, embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.4,
        logits_scaling=2.5, mlp_bias=True,
    ),
    # The second block has no positions.
    "smollm3-tiny": transformers.SmolLM3Config(
        **GATED, num_key_value_heads=2, no_rope_layers=[1, 0], pad_token_id=0, bos_token_id=1, eos_token_id=2
    ),
    # Half of a head rotated, LayerNorms, and biases on q, k and v.
    "stablelm-tiny": transformers.StableLmConfig(**LAYERED, partial_rotary_factor=0.5, use_qkv_bias=True),
    # Modules side by side, which read one norm.
    "stablelm-parallel": transformers.StableLmConfig(
        **LAYERED, partial_rotary_factor=0.25, use_parallel_residual=True
    ),
    # q, k and v in one tensor, gate and up in another, and a window.
    "phi3-tiny": transformers.Phi3Config(**GATED, num_key_value_heads=2, sliding_window=9, pad_token_id=0),
    # LongRoPE's short factors, on half of a head.
    "phi3-long": transformers.Phi3Config(
        **GATED | {"max_position_embeddings": 128},
        num_key_value_heads=4,
        pad_token_id=0,
        original_max_position_embeddings=32,
        partial_rotary_factor=0.5,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.0, 1.5], "long_factor": [2.0, 5.0],
        },
    ),
    # q, k and v of a head together, half of it rotated, modules side by side behind a norm each.
    "neox-tiny": transformers.GPTNeoXConfig(
        **LAYERED, rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    ),
    # The same one after the other, without biases in attention.
    "neox-in-turn": transformers.GPTNeoXConfig(**LAYERED, use_parallel_residual=False, attention_bias=False),
    # Modules side by side behind one norm, and a bias on the head.
    "phi-tiny": transformers.PhiConfig(**LAYERED),
    # Transposed weights and learned positions.
    "gpt2-tiny": transformers.GPT2Config(**GPT),
    # One key head for all queries.
    "bigcode-tiny": transformers.GPTBigCodeConfig(**GPT),
    # One norm and one key head.
    "falcon-7b-tiny": transformers.FalconConfig(**SIZES, max_position_embeddings=32),
    # A norm for each module, and a key head for two of queries.
    "falcon-40b-tiny": transformers.FalconConfig(
        **SIZES, new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=48, bias=True
    ),
    # Six heads: slopes of no power of two.
    "bloom-tiny": transformers.BloomConfig(vocab_size=VOCAB, hidden_size=36, n_layer=2, n_head=6, bos_token_id=1),
    "mpt-tiny": transformers.MptConfig(
        vocab_size=VOCAB, d_model=36, n_layers=2, n_heads=6, max_seq_len=32, attn_config={"softmax_scale": 0.3}
    ),
    # Experts in the second block alone, one for all tokens beside them, and weights that do not add up to 1.
    "qwen2-moe-tiny": transformers.Qwen2MoeConfig(
        **GATED, num_key_value_heads=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=32, mlp_only_layers=[0],
    ),
    # Experts in the second block, weights that add up to 1.
    "qwen3-moe-tiny": transformers.Qwen3MoeConfig(
        **GATED, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        decoder_sparse_step=2, norm_topk_prob=True,
    ),
    # Norms in the residual stream behind each module, none at the end, and narrower embeddings.
    "opt-350m-tiny": transformers.OPTConfig(
        **SIZES, ffn_dim=64, max_position_embeddings=32, do_layer_norm_before=False, word_embed_proj_dim=20
    ),
    # ALiBi with slopes of no power of two, modules one after the other, and as many key heads as queries have.
    "falcon-rw-tiny": transformers.FalconConfig(
        **SIZES | {"hidden_size": 36, "num_attention_heads": 6}, max_position_embeddings=32, alibi=True, bias=True,
        parallel_attn=False, multi_query=False,
    ),
    # A norm of its own for each head of queries and keys, of which there are fewer.
    "stablelm-qk-norm": transformers.StableLmConfig(
        **LAYERED | {"num_key_value_heads": 2}, partial_rotary_factor=0.5, use_parallel_residual=True, qk_layernorm=True
    ),
    # Norms that all heads share.
    "phi-qk-norm": transformers.PhiConfig(**LAYERED, qk_layernorm=True),
    # Models of texts and images, on texts.
    "llava-tiny": transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**GATED, num_key_value_heads=2),
        vision_config=transformers.CLIPVisionConfig(**TOWER), image_token_index=VOCAB,
    ),
    "qwen2-vl-tiny": transformers.Qwen2VLConfig(
        text_config=GATED | MROPE | {"num_key_value_heads": 2, "eos_token_id": 2, "bos_token_id": 1},
        vision_config=QWEN_TOWER | {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}, tie_word_embeddings=True,
    ),
    "qwen2-5-vl-tiny": transformers.Qwen2_5_VLConfig(
        text_config=GATED | MROPE | {"num_key_value_heads": 2, "eos_token_id": 2, "bos_token_id": 1},
        vision_config=QWEN_TOWER | {
            "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "fullatt_block_indexes": [0],
        },
    ),
    "idefics3-tiny": transformers.Idefics3Config(
        text_config=transformers.LlamaConfig(**GATED, num_key_value_heads=2, pad_token_id=0),
        vision_config=TOWER, scale_factor=1,
    ),
    "smolvlm-tiny": transformers.SmolVLMConfig(
        text_config=transformers.LlamaConfig(**GATED, num_key_value_heads=4, pad_token_id=0),
        vision_config=TOWER, scale_factor=1, tie_word_embeddings=True,
    ),
    "gemma3-vl-tiny": transformers.Gemma3Config(
        text_config=GATED | {
            "num_key_value_heads": 2, "head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config=transformers.SiglipVisionConfig(**TOWER, vision_use_head=False), mm_tokens_per_image=1,
    ),
}


@torch.no_grad()
def randomize(model, generator):
    """Weights of standard deviation 1.5 / sqrt(fan in), embeddings of 0.4, biases of 0.3, norm weights around 1."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if ("norm" in name or "ln_" in name) and name.endswith("weight"):
            # Gemma's store one less than what they multiply by.
            noise = (0 if "gemma" in model.config.model_type else 1) + 0.3 * noise
        elif parameter.dim() == 1:
            noise = 0.3 * noise
        elif "embed" in name or "wte" in name or "wpe" in name:
            noise = 0.4 * noise
        else:
            noise = noise * 1.5 / parameter.shape[-1] ** 0.5
        parameter.copy_(noise.to(torch.bfloat16))


@torch.no_grad()
def main(names):
    for seed, (name, config) in enumerate(MODELS.items()):
        if names and name not in names:
            continue
        generator = torch.Generator().manual_seed(seed)
        # Eager attention of Falcon adds ALiBi twice in this version: with the mask, and by itself.
        attention = "sdpa" if getattr(config, "alibi", False) else "eager"
        is_multimodal = hasattr(config, "vision_config")
        kind = transformers.AutoModelForImageTextToText if is_multimodal else transformers.AutoModelForCausalLM
        model = kind.from_config(config, attn_implementation=attention).float().eval()
        randomize(model, generator)
        ids = torch.randint(0, VOCAB, (N_SEQUENCES, SEQ_LEN), generator=generator)
        logits = model(ids).logits
        folder = FIXTURES / name
        model.to(torch.bfloat16).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        versions = {"made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, seed {seed}"}
        expected = {"ids": ids.to(torch.int32), "logits": logits.contiguous()}
        safetensors.torch.save_file(expected, folder / "expected.safetensors", metadata=versions)
        print(f"{name}: logits {logits.min():.2f} to {logits.max():.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
