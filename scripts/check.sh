#!/usr/bin/env bash
# Every check that CI makes, cheapest first. Stops at the first one that fails.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s (%s s so far)\n' "$*" "$SECONDS"; }

step cargo fmt
cargo fmt --all -- --check

if command -v typos >/dev/null; then
    step typos
    typos
else
    step "typos is not installed: skipped (cargo install --locked typos-cli)"
fi

if command -v cargo-deny >/dev/null; then
    step cargo deny
    checks=(bans licenses sources)
    # The list of known faults is a repository on GitHub, which not every machine reaches.
    if timeout 120 cargo deny fetch db; then
        checks=(advisories "${checks[@]}")
    else
        echo "The RustSec advisory database cannot be reached: advisories are not checked"
    fi
    cargo deny check "${checks[@]}"
else
    step "cargo-deny is not installed: skipped (cargo install --locked cargo-deny)"
fi

step cargo clippy
cargo clippy --workspace --all-targets -- -D warnings

# The README's two commands. One build serves both.
step cargo test
cargo test --workspace
step "cargo run, the quickstart"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
cargo run -p experiments -- configs/quickstart.toml --out "$out/quickstart"
if command -v python3 >/dev/null; then
    step "the quickstart's numbers and codes are those on record"
    scripts/check-golden.py results/reference/quickstart "$out/quickstart"
else
    step "python3 is not installed: the quickstart's numbers are not compared"
fi

# The queue of a cluster, a real one, where its packages are installed.
if command -v python3 >/dev/null; then
    step a SLURM of two nodes
    scripts/check-slurm.py
else
    step "python3 is not installed: SLURM is not tried"
fi

# The GPU's code, on a GPU or on Mesa's software renderer; its tests say that they are skipped where there is neither. The tests
# themselves need no optimisation: their time is that of the build.
step cargo test, GPU
cargo test -p awq-core --features wgpu --test gpu --config 'profile.dev.package.awq-core.opt-level=0'

if command -v python3 >/dev/null && command -v zstd >/dev/null; then
    step "kills and torn files, the short form of results/faults.md"
    scripts/check-faults.py kills --kills 35
    scripts/check-faults.py faults --only torn --steps 10
else
    step "python3 or zstd is not installed: kills are skipped"
fi

step cargo doc
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

step "all checks passed"
