#!/usr/bin/env bash
# All tests. A test that can't run here prints SKIPPED and its name;
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

unexpected=$(grep -oE 'SKIPPED[: ].*' "$log" | grep -vFf <(grep -v '^#' tests/may-skip | grep .) || :)
if [[ -n $unexpected ]]; then
    printf 'skipped without leave (tests/may-skip):\n%s\n' "$unexpected"
    status=1
fi
grep -E '^test result' "$log" | awk '{p += $4; f += $6; i += $8}
    END {printf "%d passed, %d failed, %d ignored in %d runs of tests\n", p, f, i, NR}'
exit "$status"
