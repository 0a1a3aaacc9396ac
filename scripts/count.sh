#!/usr/bin/env bash
# Counts what runs of tests printed, and fails for tests that were skipped without leave.
#
#   scripts/count.sh LOG    with the output of cargo test
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

status=0
unexpected=$(grep -oE 'SKIPPED[: ].*' "$1" | grep -vFf <(grep -v '^#' tests/may-skip | grep .) || :)
if [[ -n $unexpected ]]; then
    printf 'skipped without leave (tests/may-skip):\n%s\n' "$unexpected"
    status=1
fi
grep -E '^test result' "$1" | awk '{p += $4; f += $6; i += $8}
    END {printf "%d passed, %d failed, %d ignored in %d runs of tests\n", p, f, i, NR}'
exit "$status"
