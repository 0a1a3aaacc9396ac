#!/usr/bin/env bash
# Prints the folder of a Go that is new enough for the tools that are built with it. An older one that is
# installed, Debian 12's too, gets it as the module golang.org/toolchain, checked by Go's checksum database.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Helm 4 asks for 1.26.0.
readonly NEEDED=1.26.0 GETS=1.26.8
readonly OURS=$PWD/target/tools/go

say() { printf '%s\n' "$*" >&2; }
enough() { # GO
    local version
    version=$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
    printf '%s\n' "$NEEDED" "${version#go}" | sort --check=silent --version-sort
}

if ! go=$(type -P go); then
    say "go is missing: $NEEDED or newer, from https://go.dev/dl/ or a package (golang-go; an older one gets a newer)"
    exit 1
fi
if enough "$go"; then
    dirname "$go"
    exit 0
fi
if ! enough "$OURS/bin/go"; then
    module=golang.org/toolchain@v0.0.1-go$GETS.$("$go" env GOOS)-$("$go" env GOARCH)
    say "$("$go" version) is older than $NEEDED: getting $module (70 MB, once)"
    cache=$(mktemp -d)
    trap 'chmod -R u+w "$cache"; rm -rf "$cache"' EXIT
    if ! (cd "$cache" && GOFLAGS=-modcacherw GOMODCACHE=$cache "$go" mod download "$module") >&2; then
        say "the Go module proxy did not give it: install Go $NEEDED or newer from https://go.dev/dl/"
        exit 1
    fi
    rm -rf "$OURS"
    mkdir -p "${OURS%/*}"
    mv "$cache/$module" "$OURS"
    # A module's files are not executable.
    chmod -R u+x "$OURS/bin" "$OURS/pkg/tool"
    enough "$OURS/bin/go" || { say "$OURS/bin/go does not run"; exit 1; }
fi
echo "$OURS/bin"
