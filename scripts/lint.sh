#!/usr/bin/env bash
# Format, clippy, rustdoc and cargo-deny; warnings are errors.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf -- '--- %s\n' "$*"; "$@"; }

step cargo fmt --all --check
(cd bpf/programs && step cargo fmt --check)
step cargo clippy --locked --workspace --all-targets -- -D warnings
# For this machine's own target, which needs no other compiler; but the programs use a feature that isn't stable.
(cd bpf/programs && RUSTC_BOOTSTRAP=1 step cargo clippy --locked -- -D warnings)
RUSTDOCFLAGS='-D warnings' step cargo doc --locked --workspace --no-deps --document-private-items
if ! cargo deny --version >/dev/null 2>&1; then
    echo "cargo-deny is missing: installing it with cargo (some minutes)"
    cargo install --locked cargo-deny
fi
step cargo deny --locked check bans licenses sources
# The advisories are a git repository of their own, which not every machine can reach.
if timeout 60 cargo deny --locked fetch db >/dev/null 2>&1; then
    step cargo deny --locked check advisories
else
    echo "NOTE: advisories were not checked: the RustSec database can't be reached from here"
fi
