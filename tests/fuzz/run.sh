#!/usr/bin/env bash
# Runs the fuzz targets.
#
#   tests/fuzz/run.sh [SECONDS [TARGET...]]     default: 10 seconds each of all
#
# tests/fuzz/seeds/TARGET has inputs to begin with. Inputs that widened the coverage are kept in tests/fuzz/corpus/TARGET, what failed in
# tests/fuzz/findings; run one again with target/debug/fuzz_TARGET FILE.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
seconds=${1:-10}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- $(ls tests/fuzz/targets | sed 's/\.rs$//')
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}

# A cache of compilations (sccache) doesn't know this compiler.
RUSTC_WRAPPER='' RUSTC_WORKSPACE_WRAPPER=$PWD/tests/fuzz/instrument.sh cargo build -q --locked --workspace --bin 'fuzz_*'
mkdir -p tests/fuzz/findings
failed=0
for target in "$@"; do
    inputs=("tests/fuzz/corpus/$target")
    mkdir -p "${inputs[0]}"
    [ ! -d "tests/fuzz/seeds/$target" ] || inputs+=("tests/fuzz/seeds/$target")
    log=$(mktemp)
    if "$CARGO_TARGET_DIR/debug/fuzz_$target" "${inputs[@]}" -max_total_time="$seconds" -max_len=8192 \
        -timeout=10 -rss_limit_mb=2048 -artifact_prefix="tests/fuzz/findings/$target-" >"$log" 2>&1; then
        echo "fuzz $target: $(grep -oE 'Done [0-9]+ runs' "$log"), coverage $(grep -oE 'cov: [0-9]+' "$log" | tail -1)"
        # A target that reaches nothing would pass for ever.
        if ! grep -q 'cov: [0-9][0-9]' "$log"; then echo "fuzz $target: no coverage: is it instrumented?"; failed=$((failed + 1)); fi
    else
        tail -n 30 "$log"
        echo "fuzz $target: FAILED"
        failed=$((failed + 1))
    fi
    rm -f "$log"
done
echo "$(($# - failed)) passed, $failed failed"
[ "$failed" -eq 0 ]
