"""Other people's code: transformers with gptqmodel and compressed-tensors loads folders, AutoAWQ unpacks them, and each of them
quantizes models."""

import gc
import hashlib
import importlib.metadata
import json
import math
import os
import shutil
from pathlib import Path

# On two cores its workers would be more than there are.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from transformers.utils.quantization_config import CompressedTensorsConfig  # noqa: E402

TOOLS = {"awq": "gptqmodel", "gptq": "gptqmodel", "compressed-tensors": "compressed-tensors", "auto-round": "auto-round"}

PACKAGES = [
    "torch", "transformers", "gptqmodel", "autoawq", "compressed-tensors", "auto-round", "gguf", "bitsandbytes", "torchao",
    "optimum-quanto", "hqq",
]  # fmt: skip


def version(package: str) -> str:
    return importlib.metadata.version(package)


def method_of(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"]


def tool_of(folder: Path) -> str:
    """What loads a folder, with versions."""
    return ", ".join(f"{name} {version(name)}" for name in loader_of(folder)[1])


def sha256(tensor: torch.Tensor) -> str:
    """Of the values in f32, both zeros as one."""
    return hashlib.sha256((tensor.detach().float() + 0.0).contiguous().numpy().tobytes()).hexdigest()


class Scored:
    """A `model` of transformers."""

    model: torch.nn.Module

    @torch.no_grad()
    def measured(self, ids: list[int], seq_len: int, n_windows: int) -> float:
        total, count = 0.0, 0
        for window in range(n_windows):
            part = torch.tensor([ids[window * seq_len : (window + 1) * seq_len]])
            logits = self.model(part).logits[0, :-1].double()
            total += torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="sum").item()
            count += seq_len - 1
        return math.exp(total / count)


    def put_dense(self, restored: dict[str, torch.Tensor]) -> None:
        """Dense linears with these weights in place of what is there."""
        for name, weight in restored.items():
            bias = getattr(self.model.get_submodule(name), "bias", None)
            dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            dense.weight.data = weight
            if bias is not None:
                dense.bias.data = bias.float()
            self.model.set_submodule(name, dense)


class Loaded(Scored):
    """A folder as transformers loads it, in f32 but for what is quantized."""

    def __init__(self, folder: Path):
        self.folder, more = folder, {}
        # `[out, in]` of each quantized linear, once asked for.
        self.restored: dict[str, torch.Tensor] = {}
        if method_of(folder) == "compressed-tensors":
            # Left compressed, it stumbles over zero points of its own (transformers 5.24).
            more["quantization_config"] = CompressedTensorsConfig(dequantize=True)
        load = transformers.AutoModelForCausalLM.from_pretrained
        try:
            self.model = load(folder, dtype=torch.float32, **more).eval()
        except NotImplementedError as error:
            # The kernel that gptqmodel chooses for this processor may want groups that divide the inputs.
            print(f"{folder.name}: {error}", flush=True)
            more["quantization_config"] = transformers.GPTQConfig(bits=4, backend="torch")
            self.model = load(folder, dtype=torch.float32, **more).eval()

    def hashes(self) -> dict[str, str]:
        """sha256 of each tensor in f32, weights of quantized linears as their modules dequantize them."""
        found = {}
        for name, module in self.model.named_modules():
            if hasattr(module, "qweight"):
                # Now: the first product may change how they are kept.
                self.restored[name] = dequantized(module).float()
                found[f"{name}.weight"] = sha256(self.restored[name])
                if getattr(module, "bias", None) is not None:
                    found[f"{name}.bias"] = sha256(module.bias)
        if method_of(self.folder) == "auto-round":
            # It has made f16 of all that it has not quantized.
            return found
        inside = {name.rsplit(".", 1)[0] for name in found}
        for name, parameter in self.model.named_parameters():
            if name.rsplit(".", 1)[0] not in inside:
                found[name] = sha256(parameter)
        return found

    def perplexity(self, ids: list[int], seq_len: int, n_windows: int) -> tuple[float, str]:
        """And `dense` where its kernels could not do it, and dense products with its own weights did."""
        try:
            return self.measured(ids, seq_len, n_windows), ""
        except RuntimeError as error:
            print(f"{self.folder.name}: {error}", flush=True)
        self.put_dense(self.restored)
        return self.measured(ids, seq_len, n_windows), "dense"


def n_groups_of(folder: Path) -> int:
    """Groups of linears with settings of their own, as compressed-tensors has them."""
    return len(json.loads((folder / "config.json").read_text())["quantization_config"].get("config_groups", {}))


class Restored(Scored):
    """A dense model of tensors that a tool's own functions have restored."""

    def __init__(self, folder: Path):
        config = json.loads((folder / "config.json").read_text())
        restore = {"compressed-tensors": by_compressor, "awq": by_unpacking}[method_of(folder)]
        restored = restore(load_file(folder / "model.safetensors"), config.pop("quantization_config"))
        self.tensors = {name: value.float().contiguous() for name, value in restored.items()}
        dense = folder.with_name(f"{folder.name}-dense")
        dense.mkdir()
        (dense / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
        save_file(self.tensors, dense / "model.safetensors", {"format": "pt"})
        self.model = transformers.AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()

    def hashes(self) -> dict[str, str]:
        return {name: sha256(value) for name, value in self.tensors.items()}

    def perplexity(self, ids: list[int], seq_len: int, n_windows: int) -> tuple[float, str]:
        return self.measured(ids, seq_len, n_windows), "dense"


def by_compressor(tensors: dict[str, torch.Tensor], settings: dict) -> dict[str, torch.Tensor]:
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_targets

    groups = QuantizationConfig.model_validate(settings).config_groups.values()
    schemes = {target: scheme for scheme in groups for target in scheme.targets}
    restored = {name: value for name, value in tensors.items() if name.rsplit(".", 1)[1] not in PARTS}
    for linear in [name.removesuffix(".weight_packed") for name in tensors if name.endswith(".weight_packed")]:
        parts = {part: tensors[f"{linear}.{part}"] for part in PARTS if f"{linear}.{part}" in tensors}
        scheme = schemes[match_targets(linear, torch.nn.Linear(1, 1), schemes)[0]]
        restored[f"{linear}.weight"] = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
    return restored


PARTS = ["weight_packed", "weight_scale", "weight_zero_point", "weight_shape"]


def by_unpacking(tensors: dict[str, torch.Tensor], settings: dict) -> dict[str, torch.Tensor]:
    # AutoAWQ's package loads a whole world; the functions are pure.
    from awq.utils.packing_utils import dequantize_gemm

    parts = ["qweight", "qzeros", "scales"]
    restored = {name: value for name, value in tensors.items() if name.rsplit(".", 1)[1] not in parts}
    for linear in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        of_linear = [tensors[f"{linear}.{part}"] for part in parts]
        restored[f"{linear}.weight"] = dequantize_gemm(*of_linear, settings["bits"], settings["group_size"]).T
    return restored


class ByGptqmodel(Scored):
    """A folder as gptqmodel itself loads it, which knows experts; dense products with the weights that it restores in f16."""

    def __init__(self, folder: Path):
        from gptqmodel import GPTQModel

        half = GPTQModel.load(str(folder), device="cpu", dtype=torch.float16).model
        restored = {name: dequantized(module).float() for name, module in half.named_modules() if hasattr(module, "qweight")}
        # All else is f32 where it stays f32.
        self.model = GPTQModel.load(str(folder), device="cpu", dtype=torch.float32).model.eval()
        self.put_dense(restored)

    def hashes(self) -> dict[str, str]:
        return {name: sha256(parameter) for name, parameter in self.model.named_parameters()}

    def perplexity(self, ids: list[int], seq_len: int, n_windows: int) -> tuple[float, str]:
        return self.measured(ids, seq_len, n_windows), "dense"


def loaded(folder: Path) -> Scored:
    return loader_of(folder)[0](folder)


def loader_of(folder: Path) -> tuple[type[Scored], list[str]]:
    """What loads a folder, and the packages that it takes: transformers where it can."""
    config, method = json.loads((folder / "config.json").read_text()), method_of(folder)
    with_transformers = Loaded, ["transformers", TOOLS[method]]
    # Experts are one tensor in transformers 5.24, which puts together no quantized ones.
    has_experts = "num_experts" in config or "num_local_experts" in config
    if method == "compressed-tensors":
        # transformers 5.24 takes the settings of one group for all.
        is_beyond = has_experts or n_groups_of(folder) > 1
        return (Restored, ["compressed-tensors"]) if is_beyond else with_transformers
    if not has_experts:
        return with_transformers
    if method == "awq" and config["model_type"] == "mixtral":
        # Those of Mixtral have other names in gptqmodel 7.7 than in Mixtral's own files.
        return Restored, ["autoawq"]
    return ByGptqmodel, ["gptqmodel"]


def dequantized(module: torch.nn.Module) -> torch.Tensor:
    """`[out, in]` of a linear of gptqmodel; in AutoAWQ's layout by AutoAWQ's own code."""
    if "awq" in type(module).__module__:
        from awq.utils.packing_utils import dequantize_gemm

        n_in = module.qweight.shape[0]
        size = n_in // module.qzeros.shape[0]
        return dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, size).T
    if hasattr(module, "dequantize_weight"):
        return module.dequantize_weight().T
    # auto-round's own module: what it makes of unit vectors.
    with torch.no_grad():
        out = module(torch.eye(module.infeatures))
        return (out if module.bias is None else out - module.bias).T


def ids_of(folder: Path, text: Path) -> list[int]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text.read_text()).ids


def decoded(folder: Path, ids: list[int]) -> str:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).decode(ids, skip_special_tokens=False)


# What a family has beside the sizes of all; `None` takes one of these away.
HALVES = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
FAMILIES = {
    "llama": {}, "qwen2": {},
    # Whatever a GGUF file says, transformers 5.24 has heads of 128.
    "qwen3": {"head_dim": 128},
    "gemma": {"head_dim": 32}, "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64, "num_hidden_layers": 7},
    "phi3": {"sliding_window": None, "original_max_position_embeddings": 512, "pad_token_id": 0},
    "phi": HALVES | {"num_key_value_heads": 4}, "olmo2": {}, "granite": {"attention_multiplier": 0.2, "logits_scaling": 2.5},
    "stablelm": HALVES, "gpt_neox": HALVES | {"intermediate_size": 512}, "gpt2": {}, "gpt_bigcode": {},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False, "parallel_attn": True, "bias": False},
    "bloom": {}, "mixtral": {"num_local_experts": 4}, "qwen3_moe": EXPERTS | {"head_dim": 32, "norm_topk_prob": True},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 96, "norm_topk_prob": False, "num_key_value_heads": 4},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "pad_token_id": 0},
}  # fmt: skip


def tiny_model(folder: Path, text: Path, family: str, tied: bool, width: int = 128, shards: str = "5GB") -> Path:
    """A seeded model of random weights with a tokenizer of 512 pieces, in files of a size. Some groups hold weights of one sign."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    torch.manual_seed(7)
    sizes = {
        "vocab_size": 512, "hidden_size": width, "intermediate_size": 352 if width == 128 else 2 * width, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": tied,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
    }  # fmt: skip
    config = transformers.AutoConfig.for_model(family, **(sizes | FAMILIES[family]))
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=1.5 / parameter.shape[-1] ** 0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
            if name.endswith("o_proj.weight"):
                # The zero points are the first and the last code.
                parameter[::2] = parameter[::2].abs() + 0.02
                parameter[1::2, :64] = -parameter[1::2, :64].abs() - 0.02
    # What bf16 holds, so that tools that store what they leave alone in bf16 lose nothing.
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shards)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train([str(text)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "bos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def by_gptqmodel(model: Path, out: Path, texts: list[str], shards: str | None = None, **settings) -> str:
    from gptqmodel import GPTQModel, QuantizeConfig

    made = GPTQModel.load(str(model), QuantizeConfig(**settings), device="cpu")
    made.quantize(texts, batch_size=1)
    made.save(str(out), max_shard_size=shards)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(model / name, out / name)
    del made
    gc.collect()
    return f"gptqmodel {version('gptqmodel')}"


def by_autoawq(model: Path, out: Path, texts: list[str], **settings) -> str:
    from awq import AutoAWQForCausalLM

    made = AutoAWQForCausalLM.from_pretrained(str(model), device_map="cpu", torch_dtype=torch.float32)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer.json"))
    config = {"zero_point": True, "w_bit": 4, "version": "GEMM"} | settings
    # It leaves out texts that are longer than a sequence.
    texts = [text[start : start + 100] for text in texts for start in range(0, len(text), 100)]
    # Its search of a clip wants multiples of 64 outputs.
    limits = {"max_calib_samples": 64, "max_calib_seq_len": 128}
    made.quantize(tokenizer, quant_config=config, calib_data=texts, apply_clip=False, **limits)
    made.save_quantized(str(out))
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(model / name, out / name)
    return f"autoawq {version('autoawq')}"


def by_compressed_tensors(model: Path, out: Path, _texts: list[str], dtype: torch.dtype = torch.bfloat16, **settings) -> str:
    """Each linear rounded and packed by compressed-tensors itself."""
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(type="int", strategy="group" if settings.get("group_size") else "channel", **settings)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = weight
            continue
        groups = weight.float().reshape(weight.shape[0], -1, settings.get("group_size") or weight.shape[1])
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        state = {"weight": weight.to(dtype), "weight_scale": scale.to(dtype), "weight_zero_point": zero.to(torch.int8)}
        packed = PackedQuantizationCompressor.compress(state, scheme)
        tensors |= {f"{name.removesuffix('.weight')}.{part}": value.contiguous() for part, value in packed.items()}
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    group = scheme.model_dump(mode="json") | {"format": "pack-quantized"}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": {"group_0": group}, "version": version("compressed-tensors"),
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=2))
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(model / name, out / name)
    return f"compressed-tensors {version('compressed-tensors')}"
