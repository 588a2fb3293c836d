#!/usr/bin/env bash
# Everything to run when a GPU is at hand, in one go: the GPU tests, configs/speed-gpu.toml (products with packed weights), and
# the quickstart in f32 and f16 beside the CPU. Ends with a short summary; the output of each step is kept beside it.
#
#   scripts/gpu_check.sh                    build for cuda here, and run
#   scripts/gpu_check.sh wgpu               the same through Vulkan, Metal or DirectX
#   scripts/gpu_check.sh cuda --build DIR   only build, and put the programs into DIR, to be carried to a machine with a GPU
#   scripts/gpu_check.sh cuda --bin DIR     run the programs in DIR; needs no Rust
#
# With GPU_CHECK_LARGE=1 it also writes checkpoints of a 7B and (4 blocks) a 70B shape below target/synthetic, 20 GB in all, and
# quantizes and scores them by configs/gpu-synthetic.toml; that needs Python and takes long.
#
# Reports go to results/gpu-check, or to the folder that GPU_CHECK_OUT names. CUDA needs the toolkit's libnvrtc and headers at
# run time (CUDA_PATH, LD_LIBRARY_PATH) but not at build time. For a toolkit or driver older than the newest bindings, build
# with CUDARC_CUDA_VERSION=12080 or the like.
set -euo pipefail
cd "$(dirname "$0")/.."

device=${1:-cuda}
mode=${2:-}
out=${GPU_CHECK_OUT:-results/gpu-check}

build() {
    mkdir -p "$1"
    cargo build --release -p experiments --features "$device"
    local tests
    # The tests need no optimisation.
    tests=$(cargo test --release -p awq-core --features "$device" --test gpu --no-run --message-format=json \
        --config 'profile.release.package.awq-core.opt-level=0' |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
    local target=${CARGO_TARGET_DIR:-target}
    cp "$target/release/experiments" "$1/"
    cp "$tests" "$1/gpu_tests"
    strip "$1"/* 2>/dev/null || true
}

case $mode in
    --build) build "${3:?--build needs a folder}"; exit ;;
    --bin) programs=${3:?--bin needs a folder} ;;
    "") programs=$(mktemp -d); trap 'rm -rf "$programs"' EXIT; build "$programs" ;;
    *) echo "usage: scripts/gpu_check.sh [cuda|wgpu] [--build DIR | --bin DIR]" >&2; exit 2 ;;
esac

mkdir -p "$out"
failed=0
summary=()
# Runs one step with its output in a file; a step that fails does not keep the others from running.
step() {
    local name=$1
    shift
    printf '== %s\n' "$name"
    local start=$SECONDS
    if "$@" >"$out/$name.txt" 2>&1; then
        summary+=("$(printf '%-22s ok      %4s s' "$name" "$((SECONDS - start))")")
    else
        failed=1
        summary+=("$(printf '%-22s FAILED  %4s s   %s' "$name" "$((SECONDS - start))" "$out/$name.txt")")
        tail -5 "$out/$name.txt"
    fi
}

if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,memory.total --format=csv,noheader | tee "$out/device.txt"
fi
step tests "$programs/gpu_tests" --nocapture --test-threads 1
rm -rf "$out/speed" "$out"/quickstart-*
step speed "$programs/experiments" configs/speed-gpu.toml --quiet --device "$device" --out "$out/speed"
experiment() { "$programs/experiments" configs/quickstart.toml --quiet "$@"; }
step quickstart-cpu experiment --device flex --out "$out/quickstart-cpu"
step quickstart-f32 experiment --device "$device" --out "$out/quickstart-f32"
step quickstart-f16 experiment --device "$device" --precision f16 --out "$out/quickstart-f16"

large() {
    for shape in "llama-2-7b 32" "llama-2-70b 4"; do
        scripts/make-synthetic-checkpoint.py "${shape% *}" --blocks "${shape#* }" --out "target/synthetic/${shape% *}" || return
    done
    local poll=""
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -l 1 >"$out/memory-mib.txt" &
        poll=$!
    fi
    local code=0
    "$programs/experiments" configs/gpu-synthetic.toml --quiet --device "$device" --out "$out/synthetic" || code=$?
    [ -z "$poll" ] || kill "$poll"
    return "$code"
}
if [ "${GPU_CHECK_LARGE:-}" = 1 ]; then
    rm -rf "$out/synthetic"
    step large large
fi

printf '\n'
printf '%s\n' "${summary[@]}"
printf '\nProducts at batch size 1 (all are in %s)\n' "$out/speed/table.md"
grep -E '^\| *(batch|1) ' "$out/speed/table.md" 2>/dev/null || echo "no table"
if [ -f "$out/synthetic/records.jsonl" ]; then
    printf '\nSynthetic checkpoints\n'
    python3 - "$out/synthetic/records.jsonl" <<'PYTHON'
import json, sys

for line in open(sys.argv[1]):
    record = json.loads(line)
    cell, cost = record["cell"], record["outcome"].get("done", {}).get("cost", {})
    method = next(iter(cell["quantization"]["method"])) if cell["quantization"] else "full precision"
    print(cell["model"]["name"], method, *(f"{name}: {value}" for name, value in cost.items() if value is not None), sep=", ")
PYTHON
    [ ! -s "$out/memory-mib.txt" ] || echo "most GPU memory in use: $(sort -n "$out/memory-mib.txt" | tail -1) MiB"
fi
for run in cpu f32 f16; do
    printf '\nQuickstart, %s\n' "$run"
    grep '^|' "$out/quickstart-$run/table.md" 2>/dev/null || echo "no table"
done
exit $failed
