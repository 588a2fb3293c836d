#!/usr/bin/env bash
# Everything to run when a GPU is at hand, the most telling first: the GPU tests, configs/speed-gpu.toml (products with packed
# weights), and the quickstart in f16 and f32 beside the CPU. Says how each step ended when it has, and ends with a short summary.
#
#   scripts/gpu_check.sh                    build for cuda here, and run
#   scripts/gpu_check.sh wgpu               the same through Vulkan, Metal or DirectX
#   scripts/gpu_check.sh cuda --build DIR   only build, and put the programs into DIR, to be carried to a machine with a GPU
#   scripts/gpu_check.sh cuda --bin DIR     run the programs in DIR; needs no Rust
#
# GPU_CHECK_MINUTES=4 ends it after so long: less is measured (configs/speed-gpu-short.toml), and what is under way then is cut
# off. Each step leaves what it has done, and compiled kernels are kept: the same command again goes on, and repeats no step of the
# same programs that has ended well.
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
    # The programs carry their commit, and this file says it to whoever carries them.
    git rev-parse HEAD >"$1/commit.txt" || { echo "no git checkout here: results could not name their commit" >&2; exit 1; }
    cargo build --release -p experiments --features "$device"
    local tests
    # The tests need no optimisation.
    tests=$(cargo test --release -p awq-core --features "$device" --test gpu --no-run --message-format=json \
        --config 'profile.release.package.awq-core.opt-level=0' |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1)
    local target=${CARGO_TARGET_DIR:-target}
    cp "$target/release/experiments" "$1/"
    cp "$tests" "$1/gpu_tests"
    strip "$1/experiments" "$1/gpu_tests" 2>/dev/null || true
}

case $mode in
    --build) build "${3:?--build needs a folder}"; exit ;;
    --bin) programs=${3:?--bin needs a folder} ;;
    "") programs=$(mktemp -d); trap 'rm -rf "$programs"' EXIT; build "$programs" ;;
    *) echo "usage: scripts/gpu_check.sh [cuda|wgpu] [--build DIR | --bin DIR]" >&2; exit 2 ;;
esac

mkdir -p "$out"
out=$(cd "$out" && pwd)
failed=0
limit=$((${GPU_CHECK_MINUTES:-0} * 60))
program_hash=$(cat "$programs/experiments" "$programs/gpu_tests" | sha256sum | cut -c1-16)
# Kernels that were compiled once are there for every later step and run; those of the tests apart, for other tests have others.
export AWQ_CACHE=$out/cache
export AWQ_GPU_TEST_KERNELS=$out/cache/gpu-tests/$program_hash

# Says a line, and keeps it.
say() { printf '%s\n' "$1" | tee -a "$out/summary.txt"; }

# Runs one step with its output in a file; a step that fails does not keep the others from running. What it leaves lies in a folder
# of its name, and is of these programs: of others it is removed.
step() {
    local name=$1
    shift
    if [ "$(cat "$out/$name.done" 2>/dev/null)" = "$program_hash" ]; then
        say "$(printf '%-22s done before' "$name")"
        return
    fi
    [ "$(cat "$out/$name.begun" 2>/dev/null)" = "$program_hash" ] || rm -rf "${out:?}/$name"
    rm -f "$out/$name.done"
    printf '%s' "$program_hash" >"$out/$name.begun"
    local start=$SECONDS code=0 left=()
    if [ "$limit" -gt 0 ]; then
        if [ "$((limit - SECONDS))" -le 0 ]; then
            failed=1
            say "$(printf '%-22s not begun' "$name")"
            return
        fi
        left=(timeout --kill-after=5 "$((limit - SECONDS))")
    fi
    printf '%-22s begins at %s s\n' "$name" "$start"
    "${left[@]}" "$@" >"$out/$name.txt" 2>&1 || code=$?
    local took=$((SECONDS - start))
    case $code in
        0)
            printf '%s' "$program_hash" >"$out/$name.done"
            say "$(printf '%-22s ok      %4s s' "$name" "$took")"
            ;;
        124 | 137)
            failed=1
            say "$(printf '%-22s CUT OFF %4s s   %s' "$name" "$took" "$out/$name.txt")"
            ;;
        *)
            failed=1
            say "$(printf '%-22s FAILED  %4s s   %s' "$name" "$took" "$out/$name.txt")"
            tail -5 "$out/$name.txt"
            ;;
    esac
}

if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,memory.total --format=csv,noheader | tee "$out/device.txt"
fi
say "commit $(cat "$programs/commit.txt" 2>/dev/null || echo unknown), $device, $(date -u +%Y-%m-%dT%H:%M:%SZ)"
tests() { step "tests-$1" "$programs/gpu_tests" --nocapture --test-threads 1 "$1"; }
experiment() {
    local name=$1
    shift
    step "$name" "$programs/experiments" "$@" --quiet --out "$out/$name"
}
speed=configs/speed-gpu.toml
[ "$limit" = 0 ] || speed=configs/speed-gpu-short.toml
tests products
experiment speed "$speed" --device "$device"
experiment quickstart-f16 configs/quickstart.toml --device "$device" --precision f16
tests definitions
experiment quickstart-f32 configs/quickstart.toml --device "$device"
experiment quickstart-cpu configs/quickstart.toml --device flex
for part in kept model half; do tests $part; done

checkpoints() {
    for shape in "llama-2-7b 32" "llama-2-70b 4"; do
        scripts/make-synthetic-checkpoint.py "${shape% *}" --blocks "${shape#* }" --out "target/synthetic/${shape% *}" || return
    done
}
if [ "${GPU_CHECK_LARGE:-}" = 1 ]; then
    poll=""
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -l 1 >"$out/memory-mib.txt" &
        poll=$!
    fi
    checkpoints
    experiment synthetic configs/gpu-synthetic.toml --device "$device"
    [ -z "$poll" ] || kill "$poll"
fi

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
