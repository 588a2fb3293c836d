"""What peers take for the work of `scripts/benchmark.py`: run by the peers' Python, prints one JSON line.

    python peers.py awq --code LLM-AWQ ...      the authors' scale and clip search
    python peers.py gptq --code GPTQ ...        the authors' solver
    python peers.py scoring ...                 transformers' forward passes

The authors' functions are called as they are; calls that move tensors to a GPU do nothing here.
"""

import argparse
import functools
import importlib
import json
import sys
import time
import types
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["awq", "gptq", "scoring"])
    parser.add_argument("--code", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file or a folder")
    parser.add_argument("--text", type=Path, help="else tokens are random")
    parser.add_argument("--starts", type=int, nargs="*", default=[])
    parser.add_argument("--sequences", type=int, required=True)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--scale-only", action="store_true", help="AWQ without its clip search")
    parser.add_argument("--blocks", type=int, help="only the first ones")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    on_cpu()
    model, ids = load(args)
    if args.blocks:
        del model.model.layers[args.blocks :]
    with torch.no_grad():
        measured = {"awq": awq, "gptq": gptq, "scoring": scoring}[args.work](args, model, ids)
    print(json.dumps(measured | {"torch": torch.__version__}))


def on_cpu():
    """Calls that move tensors to a GPU, or wait for it, do nothing."""
    stay = lambda self, *_, **__: self
    torch.Tensor.cuda = nn.Module.cuda = stay
    torch.cuda.synchronize = torch.cuda.empty_cache = lambda *_: None


def load(args):
    """The model and sequences of token ids, `[sequences, length]`."""
    if args.model.is_dir():
        where, options = args.model, {}
    else:
        where, options = args.model.parent, {"gguf_file": args.model.name}
    model = AutoModelForCausalLM.from_pretrained(where, dtype=getattr(torch, args.dtype), **options).eval()
    if args.text is None:
        return model, torch.randint(0, model.config.vocab_size, (args.sequences, args.length))
    ids = AutoTokenizer.from_pretrained(where, **options)(args.text.read_text())["input_ids"]
    starts = args.starts or range(0, args.sequences * args.length, args.length)
    # The tokenizers of both sides do not make the same number of tokens of the text.
    starts = [min(start, len(ids) - args.length) for start in list(starts)[: args.sequences]]
    return model, torch.tensor([ids[start : start + args.length] for start in starts])


class FirstInputs(Exception):
    """Ends a pass when the first block is reached."""


def first_inputs(model, ids):
    """Hidden states before the first block, and what else blocks are called with."""
    seen = {}

    def stop(_, args, kwargs):
        seen.update(hidden=args[0] if args else kwargs["hidden_states"], kwargs=kwargs)
        raise FirstInputs

    hook = model.model.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(ids, use_cache=False)
    except FirstInputs:
        pass
    hook.remove()
    kwargs = {name: value for name, value in seen["kwargs"].items() if name not in ("hidden_states", "past_key_values")}
    return seen["hidden"], kwargs


def linears(block):
    return {name: module for name, module in block.named_modules() if isinstance(module, nn.Linear)}


def run(block, hidden, kwargs):
    out = block(hidden, **kwargs)
    return out[0] if isinstance(out, tuple) else out


def awq(args, model, ids):
    """Seconds of the searches, block by block on inputs from full precision, and the losses' best ratios are the code's own."""
    auto_scale, auto_clip = import_awq(args.code)
    settings = {"zero_point": True, "q_group_size": args.group}
    hidden, kwargs = first_inputs(model, ids)
    scale_seconds = clip_seconds = 0.0
    for block in model.model.layers:
        inputs, hooks = {}, []
        for name, linear in linears(block).items():
            keep = functools.partial(lambda name, _, args, __: inputs.update({name: args[0].detach()}), name)
            hooks.append(linear.register_forward_hook(keep))
        following = run(block, hidden, kwargs)
        for hook in hooks:
            hook.remove()
        start = time.perf_counter()
        scales = auto_scale.auto_scale_block(block, dict(kwargs), w_bit=args.bits, q_config=settings, input_feat=inputs)
        auto_scale.apply_scale(block, scales, input_feat_dict=inputs)
        scale_seconds += time.perf_counter() - start
        hidden = following
        if args.scale_only:
            continue
        start = time.perf_counter()
        auto_clip.auto_clip_block(block, w_bit=args.bits, q_config=settings, input_feat=inputs)
        clip_seconds += time.perf_counter() - start
    return {"seconds": scale_seconds + clip_seconds, "scale": scale_seconds, "clip": clip_seconds}


def import_awq(code):
    """The search's own modules; what they import beside and do not use here (CUDA kernels) is empty."""
    sys.modules["awq_inference_engine"] = types.ModuleType("awq_inference_engine")
    for name in ("awq", "awq.quantize", "awq.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(code / name.replace(".", "/"))]
        sys.modules[name] = package
    return importlib.import_module("awq.quantize.auto_scale"), importlib.import_module("awq.quantize.auto_clip")


def gptq(args, model, ids):
    """Seconds of capture, solving and both passes, as the authors' loop over blocks has it."""
    sys.path.insert(0, str(args.code))
    from gptq import GPTQ
    from quant import Quantizer

    hidden, kwargs = first_inputs(model, ids)
    hidden = list(hidden.split(1))
    start, solver = time.perf_counter(), 0.0
    for block in model.model.layers:
        solvers, hooks = {}, []
        for name, linear in linears(block).items():
            solvers[name] = GPTQ(linear)
            solvers[name].quantizer = Quantizer()
            solvers[name].quantizer.configure(args.bits, perchannel=True, sym=False, mse=False)
            add = functools.partial(lambda solver, _, args, out: solver.add_batch(args[0].data, out.data), solvers[name])
            hooks.append(linear.register_forward_hook(add))
        for sequence in hidden:
            run(block, sequence, kwargs)
        for hook in hooks:
            hook.remove()
        solving = time.perf_counter()
        for one in solvers.values():
            one.fasterquant(percdamp=0.01, groupsize=args.group, actorder=True, static_groups=True)
            one.free()
        solver += time.perf_counter() - solving
        hidden = [run(block, sequence, kwargs) for sequence in hidden]
    return {"seconds": time.perf_counter() - start, "solver": solver}


def scoring(args, model, ids):
    """Seconds of the forward passes, a window at a time, with the log-likelihood of each token."""
    start, total = time.perf_counter(), 0.0
    for window in ids:
        logits = model(window[None], use_cache=False).logits[0, :-1].float()
        total += nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "nll": total / (len(ids) * (ids.shape[1] - 1))}


if __name__ == "__main__":
    main()
