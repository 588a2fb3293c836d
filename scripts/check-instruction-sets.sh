#!/usr/bin/env bash
# Runs a small experiment on this CPU and on emulated older ones, and compares codes and numbers: which bits depend on the instruction set?
# Needs qemu-user (Debian's package), and some half an hour for each CPU.
#
#   cargo build -p experiments
#   scripts/check-instruction-sets.sh [Haswell Nehalem ...]     names of `qemu-x86_64 -cpu help`: AVX2 and FMA; SSE 4.2
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- Haswell Nehalem
program=${PROGRAM:-target/debug/experiments}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export AWQ_CODES_GIB=0
cat >"$folder/experiment.toml" <<'TOML'
question = "Which bits depend on the instruction set?"
methods = [
    { rtn = {} },
    { awq = "llm-awq" },
    { gptq = "act-order" },
    { hqq = "authors" },
    { quip = { incoherence = { on = { rotation = "kronecker", seed = 0 } }, rounding = "ldlq", grid = "grouped", damp = 0.01 } },
]

[run]
device = "flex"

[[models]]
name = "bundled-3M"
source = { bundled = {} }

[calibration]
dataset = { bundled = { split = "calibration", n_documents = 400 } }
sampling = { random_crops = { n_sequences = 4, seed = 42 } }
seq_len = 128
propagation = "full_precision"

[grids]
bits = [4, 3]
granularity = [{ per_group = 128 }]
symmetry = "asymmetric"
range_includes_zero = false
scale_dtype = "f16"

[[texts]]
metrics = ["perplexity"]
dataset = { bundled = { split = "test", n_documents = 200 } }
protocol = { gptq = { seq_len = 128 } }
max_windows = 8
TOML
"$program" "$folder/experiment.toml" --out "$folder/here" --quiet >/dev/null
failed=0
for cpu in "$@"; do
    qemu-x86_64 -cpu "$cpu" "$program" "$folder/experiment.toml" --out "$folder/$cpu" --quiet >/dev/null 2>"$folder/$cpu.txt" ||
        { tail -3 "$folder/$cpu.txt"; failed=1; continue; }
    echo "== $cpu"
    scripts/check-golden.py "$folder/here" "$folder/$cpu" || failed=1
done
exit "$failed"
