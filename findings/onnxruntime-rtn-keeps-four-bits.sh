#!/usr/bin/env bash
# onnxruntime 1.32.0 with onnx 1.23.2, onnx-ir 1.1.0 and torch 2.15.0, on an x86-64 CPU.
# `python -m onnxruntime.quantization.matmul_nbits_quantizer` says of --bits that it is the number of bits of a weight, of --block_size
# that it is the block's, of --symmetric that it is on unless turned off. Of the methods it offers, `default` takes them; `rtn` and
# `k_quant` take none of them, and always write 4 bits in blocks of 128 with free zero points. Nothing warns. So a table of methods made by
# that command compares 8 bits in blocks of 32 with 4 bits in blocks of 128. In Python, where a block size and symmetry are obeyed, bits=8
# is not. `nodes_to_exclude` is obeyed by `RTNWeightOnlyQuantConfig` and not by `GPTQWeightOnlyQuantConfig`, which quantizes the node.
# Seen: the command asked for 8 bits in blocks of 32: default 8 and 32, symmetric; rtn and k_quant 4 and 128, with zero points; in Python 4
# bits and an error of 0.1 for bits=8; the one node, excluded, is still a MatMul by rtn and a MatMulNBits by gptq.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 onnx-ir==1.1.0 torch==2.15.0 numpy
cd "$folder"
venv/bin/python - >"$folder/log" 2>&1 <<'PYTHON' || { tail -n 20 "$folder/log"; exit 1; }
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization.matmul_nbits_quantizer import (GPTQWeightOnlyQuantConfig, KQuantWeightOnlyQuantConfig, MatMulNBitsQuantizer,
                                                             RTNWeightOnlyQuantConfig)

N_IN, N_OUT = 256, 64
random = np.random.default_rng(0)
weight = random.normal(size=(N_IN, N_OUT)).astype(np.float32)


class Reader(CalibrationDataReader):
    def __init__(self):
        self.rest = iter([random.normal(size=(512, N_IN)).astype(np.float32)])

    def get_next(self):
        part = next(self.rest, None)
        return None if part is None else {"x": part}

    def __deepcopy__(self, memo):
        return Reader()


def graph():
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("x", N_IN), ("y", N_OUT))]
    product = helper.make_node("MatMul", ["x", "weight"], ["y"], name="product")
    made = helper.make_graph([product], "graph", ends[:1], ends[1:], [numpy_helper.from_array(weight, "weight")])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def what(model):
    """Bits, block size, and whether zero points are stored, of the one product."""
    node, = model.graph.node
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    return attributes["bits"], attributes["block_size"], len(node.input) == 4


def by_command(method):
    subprocess.run([sys.executable, "-m", "onnxruntime.quantization.matmul_nbits_quantizer", "--input_model", "in.onnx", "--output_model",
                    f"{method}.onnx", "--quant_method", method, "--bits", "8", "--block_size", "32", "--symmetric", "True"], check=True)
    return what(onnx.load(f"{method}.onnx"))


def in_python(method, **more):
    quantizer = MatMulNBitsQuantizer(graph(), block_size=32, is_symmetric=True, algo_config=method, **more)
    quantizer.process()
    return quantizer.model.model


def error(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.linalg.norm(session.run(None, {"x": np.eye(N_IN, dtype=np.float32)})[0] - weight) / np.linalg.norm(weight)


onnx.save(graph(), "in.onnx")
commands = {method: by_command(method) for method in ("default", "rtn", "k_quant")}
eight = {name: in_python(method, bits=8) for name, method in (("default", None), ("rtn", RTNWeightOnlyQuantConfig()),
                                                              ("k_quant", KQuantWeightOnlyQuantConfig()))}
excluded = {name: in_python(method, nodes_to_exclude=["product"]).graph.node[0].op_type
            for name, method in (("rtn", RTNWeightOnlyQuantConfig()), ("gptq", GPTQWeightOnlyQuantConfig(calibration_data_reader=Reader())))}
print()
for method, (bits, block, has_zeros) in commands.items():
    print(f"result: the command asked for 8 bits, blocks of 32, symmetric: {method}: {bits} bits, blocks of {block}, zero points {has_zeros}")
for method, model in eight.items():
    print(f"result: in Python bits=8, block_size=32: {method}: {what(model)[0]} bits, blocks of {what(model)[1]}, error {error(model):.4f}")
for method, operator in excluded.items():
    print(f"result: the node in nodes_to_exclude, by {method}: {operator}")
assert commands == {"default": (8, 32, False), "rtn": (4, 128, True), "k_quant": (4, 128, True)}, "it changed"
assert {method: what(model)[:2] for method, model in eight.items()} == {"default": (8, 32), "rtn": (4, 32), "k_quant": (4, 32)}, "it changed"
assert excluded == {"rtn": "MatMul", "gptq": "MatMulNBits"}, "it changed"
PYTHON
grep '^result' "$folder/log"
