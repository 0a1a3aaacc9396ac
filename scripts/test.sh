#!/usr/bin/env bash
# All tests but those on Kubernetes. A test that can't run here prints SKIPPED and its name;
# such a line is a failure unless the name is in tests/may-skip.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# What hangs fails. With all that it started, unless someone is there to see it and to press Ctrl-C.
limit=(timeout --kill-after=30s)
[[ -t 0 ]] && limit+=(--foreground)
# Runs of tests come one after another; within one, tests go side by side, labs too.
"${limit[@]}" 60m cargo test --locked --workspace --no-fail-fast -- --nocapture 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
((status != 124)) || echo "the tests did not end within an hour: the last line tells which hangs"
scripts/count.sh "$log" || status=1
exit "$status"
