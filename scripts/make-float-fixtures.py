#!/usr/bin/env python3
"""Makes the tiny checkpoints below awq-core/tests/floats, whose weights are stored as small floats with scales, and what the
libraries that wrote such files restore of them.

    python3 -m venv venv && venv/bin/pip install transformers==5.24.0 compressed-tensors==0.20.1 accelerate torch safetensors
    venv/bin/python scripts/make-float-fixtures.py [NAME ...]

One folder a format: config.json and model.safetensors as such a file has them, and expected.safetensors with `ids` and `logits` in f32,
and in its metadata the sha256 of each restored weight (f32, little-endian), as `sha256 NAME`. Weights of `fp8` and of
compressed-tensors are those that transformers has in memory when it loads the folder in f32; weights of FBGEMM and of AutoFP8, which
transformers does not load on a CPU, are their 8-bit floats times their scales in f32.
"""

import hashlib
import json
import pathlib
import shutil
import sys

import safetensors.torch
import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.utils.quantization_config import CompressedTensorsConfig

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "awq-core" / "tests" / "floats"
N_SEQUENCES, SEQ_LEN, VOCAB = 2, 16, 64
SIZES = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32,
}
QWEN3 = transformers.Qwen3Config(**SIZES, head_dim=16)
LLAMA = transformers.LlamaConfig(**SIZES)
# Queries, keys and values are rows of one tensor.
PHI3 = transformers.Phi3Config(**SIZES, pad_token_id=0)
E4M3 = torch.float8_e4m3fn


def is_linear(name, parameter):
    return parameter.dim() == 2 and name.endswith("proj.weight")


def random_model(config, generator):
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 1.5 / parameter.shape[-1] ** 0.5 if parameter.dim() == 2 else 0.3
        parameter.data = (noise * scale + (1 if parameter.dim() == 1 else 0)).to(torch.bfloat16).float()
    return model


def blocks_of(weight, rows, columns):
    """The largest magnitude of each block, and each weight's."""
    n_out, n_in = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -n_in % columns, 0, -n_out % rows)).abs()
    parts = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    largest = parts.amax(dim=(1, 3))
    spread = largest.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[:n_out, :n_in]
    return largest, spread


def fp8_blocks(scale_type):
    def store(name, weight):
        largest, spread = blocks_of(weight, 32, 32)
        scale, spread = largest / 448, spread / 448
        if scale_type == torch.float8_e8m0fnu:
            scale, spread = (torch.exp2(torch.ceil(torch.log2(x))) for x in (scale, spread))
        codes = (weight / spread).to(E4M3)
        return {name: codes, name + "_scale_inv": scale.to(scale_type)}

    scale_fmt = {"scale_fmt": "ue8m0"} if scale_type == torch.float8_e8m0fnu else {}
    return QWEN3, store, {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [32, 32],
        "modules_to_not_convert": ["lm_head"],
    } | scale_fmt


def fp8_tensor(name, weight):
    scale = weight.abs().max() / 448
    return {name: (weight / scale).to(E4M3), name + "_scale_inv": scale, name.replace("weight", "activation_scale"): 2 * scale}


def auto_fp8(name, weight):
    """neuralmagic's AutoFP8, which vLLM reads."""
    scale = weight.abs().max() / 448
    return {name: (weight / scale).to(E4M3), name + "_scale": scale, name.replace("weight", "input_scale"): 2 * scale}


def fbgemm(name, weight):
    scale = weight.abs().amax(dim=1, keepdim=True) / 448
    return {name: (weight / scale).to(E4M3), name + "_scale": scale}


def compressed(config, format, scale_type=torch.float32, activations=True, **args):
    """A format of compressed-tensors, by its own compressor."""
    weights = QuantizationArgs(type="float", symmetric=True, dynamic=False, **args)
    inputs = QuantizationArgs(num_bits=8, type="float", dynamic=True, strategy="token") if activations else None
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs, format=format)
    compressor = BaseCompressor.get_value_from_registry(format)

    def store(name, weight):
        n_out, n_in = weight.shape
        rows, columns = {
            "tensor": (n_out, n_in), "channel": (1, n_in), "group": (1, args.get("group_size")),
            "tensor_group": (1, args.get("group_size")), "block": args.get("block_structure"),
        }[args["strategy"]]
        largest, _ = blocks_of(weight, rows, columns)
        state = {"weight": weight}
        if args["strategy"] == "tensor_group":
            state["weight_global_scale"] = generate_gparam(weight.min(), weight.max())
        if args["strategy"] == "tensor":
            largest = largest.flatten()
        scale, _ = calculate_qparams(-largest, largest, weights, state.get("weight_global_scale"))
        state["weight_scale"] = scale.to(scale_type)
        state = compressor.compress(state, scheme)
        return {name.removesuffix("weight") + key: tensor.contiguous() for key, tensor in state.items()}

    settings = {
        "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": json.loads(scheme.model_dump_json())}, "kv_cache_scheme": None,
        "global_compression_ratio": None, "sparsity_config": {}, "transform_config": {}, "version": "0.20.1",
    }
    return config, store, settings


FORMATS = {
    "fp8-blocks": fp8_blocks(torch.float32),
    "fp8-blocks-bf16": fp8_blocks(torch.bfloat16),
    "fp8-blocks-e8m0": fp8_blocks(torch.float8_e8m0fnu),
    "fp8-tensor": (QWEN3, fp8_tensor, {
        "activation_scheme": "static", "quant_method": "fp8", "weight_block_size": None, "modules_to_not_convert": ["lm_head"],
    }),
    "auto-fp8": (LLAMA, auto_fp8, {"activation_scheme": "static", "ignored_layers": ["lm_head"], "quant_method": "fp8"}),
    "fbgemm-fp8": (LLAMA, fbgemm, {
        "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"], "quant_method": "fbgemm_fp8",
    }),
    # Products are rounded to bf16, the type of the scales.
    "ct-fp8-channel": compressed(PHI3, "float-quantized", torch.bfloat16, num_bits=8, strategy="channel"),
    "ct-fp8-f16": compressed(LLAMA, "float-quantized", torch.float16, num_bits=8, strategy="channel"),
    "ct-fp8-tensor": compressed(LLAMA, "float-quantized", num_bits=8, strategy="tensor"),
    # Blocks that end short.
    "ct-fp8-block": compressed(LLAMA, "float-quantized", num_bits=8, strategy="block", block_structure=[24, 40]),
    "ct-fp8-group": compressed(
        LLAMA, "naive-quantized", activations=False, num_bits=8, strategy="group", group_size=32
    ),
    "ct-mxfp8": compressed(
        LLAMA, "mxfp8-quantized", num_bits=8, strategy="group", group_size=32, scale_dtype=torch.uint8
    ),
    "ct-mxfp4": compressed(
        LLAMA, "mxfp4-pack-quantized", activations=False, num_bits=4, strategy="group", group_size=32,
        scale_dtype=torch.uint8,
    ),
    "ct-nvfp4": compressed(
        QWEN3, "nvfp4-pack-quantized", activations=False, num_bits=4, strategy="tensor_group", group_size=16,
        scale_dtype=E4M3,
    ),
}


def restored(folder, name, settings):
    """The model that the folder stands for, in f32."""
    if settings["quant_method"] == "fbgemm_fp8" or name == "auto-fp8":
        config = transformers.AutoConfig.from_pretrained(folder)
        del config.quantization_config
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        stored = safetensors.torch.load_file(folder / "model.safetensors")
        scaled = {
            key: tensor.float() * stored[key + "_scale"].float() if key + "_scale" in stored else tensor.float()
            for key, tensor in stored.items() if not key.endswith("_scale")
        }
        model.load_state_dict(scaled)
        return model
    more = {}
    if settings["quant_method"] == "compressed-tensors":
        more["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **more
    ).eval()


def sha256(tensor):
    return hashlib.sha256(tensor.detach().float().contiguous().numpy().tobytes()).hexdigest()


@torch.no_grad()
def make(name, generator):
    config, store, settings = FORMATS[name]
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    model = random_model(config, generator)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tensors, linears = {}, []
    for key, tensor in safetensors.torch.load_file(folder / "model.safetensors").items():
        if is_linear(key, tensor):
            tensors |= store(key, tensor.float())
            linears.append(key)
        else:
            tensors[key] = tensor
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    keys = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(keys | {"quantization_config": settings}, indent=2) + "\n")
    model = restored(folder, name, settings)
    ids = torch.randint(0, VOCAB, (N_SEQUENCES, SEQ_LEN), generator=generator)
    parameters = dict(model.named_parameters())
    sums = {f"sha256 {key}": sha256(parameters[key]) for key in linears}
    expected = {"ids": ids.to(torch.int32), "logits": model(ids).logits.float().contiguous()}
    made_with = f"transformers {transformers.__version__}, torch {torch.__version__}, compressed-tensors 0.20.1"
    safetensors.torch.save_file(expected, folder / "expected.safetensors", metadata=sums | {"made_with": made_with})
    print(f"{name}: logits {expected['logits'].min():.2f} to {expected['logits'].max():.2f}")


def make_experts(generator):
    """Experts as gpt-oss stores them: a file, for no family here has them."""
    folder = FOLDER / "mxfp4-experts"
    folder.mkdir(parents=True, exist_ok=True)
    blocks = torch.randint(0, 256, (3, 8, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 8, 2), generator=generator, dtype=torch.uint8)
    prefix = "model.layers.0.mlp.experts.down_proj"
    tensors = {f"{prefix}_blocks": blocks, f"{prefix}_scales": scales}
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    weight = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    sums = {f"sha256 {prefix}": sha256(weight), "shape": json.dumps(list(weight.shape))}
    safetensors.torch.save_file({"ids": torch.zeros(1)}, folder / "expected.safetensors", metadata=sums)
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps({"quantization_config": settings}, indent=2) + "\n")
    print("mxfp4-experts")


def main(names):
    for seed, name in enumerate(FORMATS):
        if not names or name in names:
            shutil.rmtree(FOLDER / name, ignore_errors=True)
            make(name, torch.Generator().manual_seed(2000 + seed))
    if not names or "mxfp4-experts" in names:
        make_experts(torch.Generator().manual_seed(1999))


if __name__ == "__main__":
    main(sys.argv[1:])
