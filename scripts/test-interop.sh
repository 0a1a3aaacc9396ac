#!/usr/bin/env bash
# Tests with software that isn't ours, on the other end of our wire: grpcurl, built from its Go module.
#
#   scripts/test-interop.sh [FILTER...]    only tests whose names contain one of these
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

printf -- '--- grpcurl (from nothing a minute), and our programs\n'
bin=$(tests/kubernetes/components.sh grpcurl)
cargo build --locked --workspace --bins
SEINE_GRPCURL=$bin/grpcurl cargo test --locked --workspace --test interop -- "$@"
