#!/usr/bin/env bash
# Says what of Rust this machine lacks, before a build fails on it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
lacks() {
    echo "Seine needs Rust $needed or newer; $1" >&2
    exit 1
}
for program in cargo rustc; do
    type -P "$program" >/dev/null ||
        lacks "there is no $program in PATH. Get it from https://rustup.rs (Debian 12's own is too old)."
    # `cargo 1.95.0 (f2d3ce0bd 2026-03-21)`
    version=$("$program" --version) || lacks "$program does not run."
    read -r _ version _ <<<"$version"
    if ! printf '%s\n' "$needed" "${version%%-*}" | sort --check=silent --version-sort; then
        remedy="Get a newer one from https://rustup.rs."
        type -P rustup >/dev/null && remedy="Update it: rustup update stable && rustup default stable"
        lacks "$(type -P "$program") is $version. $remedy"
    fi
done
