#!/usr/bin/env bash
# Builds the eBPF object that the agent carries: bpf/seine-bpf.o.
#
#   bpf/build.sh            build it and put it in place
#   bpf/build.sh --check    build it elsewhere and compare it with the committed one
#   bpf/build.sh --tools    only get the tools
#
# A build without these tools works too, since the object is committed. The tools are looked for
# in this order:
#   1. a rustup nightly with rust-src, and bpf-linker in PATH
#      (rustup toolchain install nightly --component rust-src; cargo install bpf-linker);
#   2. Debian's rustc-web packages, downloaded with apt-get and unpacked, not installed, in
#      ${XDG_CACHE_HOME:-~/.cache}/seine-bpf, with a bpf-linker built beside them once (about
#      two minutes).
# SEINE_BPF_TOOLS=rustup|debian asks for one of them.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
object=$here/seine-bpf.o
cache=${SEINE_BPF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/seine-bpf}
linker_version=0.13.0
say() { printf 'bpf: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

command -v cargo >/dev/null || die "cargo is not in PATH (https://rustup.rs)"
command -v python3 >/dev/null || die "python3 is not in PATH"

# Way 1 ---------------------------------------------------------------------------------------
rustup_tools() {
    command -v rustup >/dev/null && command -v bpf-linker >/dev/null || return 1
    local sysroot
    sysroot=$(rustup run nightly rustc --print sysroot 2>/dev/null) || return 1
    [ -f "$sysroot/lib/rustlib/src/rust/library/core/Cargo.toml" ] || return 1
    rustc=$sysroot/bin/rustc
    linker=$(command -v bpf-linker)
}

# Way 2 ---------------------------------------------------------------------------------------
debian_tools() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
    local tree=$cache/debian
    rustc=$cache/rustc linker=$cache/bin/bpf-linker
    mkdir -p "$cache"
    if [ ! -x "$rustc" ] || ! "$rustc" --version >/dev/null 2>&1; then
        debian_compiler "$tree" || return 1
    fi
    if [ ! -x "$linker" ]; then
        debian_linker "$tree" || return 1
    fi
}

debian_compiler() {
    local tree=$1 version std llvm
    if ! apt-cache show rustc-web >/dev/null 2>&1; then
        say "refreshing apt's package lists (apt-get update)"
        apt-get update -qq >&2 || sudo -n apt-get update -qq >&2 || return 1
    fi
    version=$(apt-cache policy rustc-web | sed -n 's/^  Candidate: //p')
    std=$(apt-cache depends libstd-rust-web-dev="$version" | sed -n 's/.*Depends: \(libstd-rust-web-[0-9.]*\).*/\1/p' | head -1)
    llvm=$(apt-cache depends "$std=$version" | sed -n 's/.*Depends: \(libllvm[0-9]*\).*/\1/p' | head -1)
    [ -n "$std" ] && [ -n "$llvm" ] || { say "apt does not offer rustc-web"; return 1; }
    say "downloading rustc-web $version, its sources and $llvm with apt-get; unpacking in $tree"
    rm -rf "$tree" "$cache/debs" "$cache/bin" && mkdir -p "$tree" "$cache/debs"
    (cd "$cache/debs" && apt-get download -qq \
        "rustc-web=$version" "$std=$version" "libstd-rust-web-dev=$version" \
        "rust-web-src=$version" "$llvm") >&2 || return 1
    local deb
    for deb in "$cache"/debs/*.deb; do dpkg-deb -x "$deb" "$tree"; done
    rm -rf "$cache/debs"
    # The compiler looks for library sources in its own sysroot.
    local source
    source=$(find "$tree/usr/src" -maxdepth 1 -name 'rustc-*' -type d | head -1)
    mkdir -p "$tree/usr/lib/rustlib/src"
    ln -sfn "$source" "$tree/usr/lib/rustlib/src/rust"
    local libraries
    libraries=$tree/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || gcc -dumpmachine)
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s:%s exec %s "$@"\n' \
        "$libraries" "$tree/usr/lib" "$tree/usr/bin/rustc" >"$cache/rustc"
    chmod +x "$cache/rustc"
    "$cache/rustc" --version >&2 || { say "the unpacked rustc does not run here"; return 1; }
}

debian_linker() {
    local tree=$1 library major prefix=$cache/llvm
    library=$(find "$tree/usr/lib" -name 'libLLVM*.so*' -type f | head -1)
    [ -n "$library" ] || { say "no libLLVM below $tree"; return 1; }
    major=$("$rustc" --version --verbose | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    mkdir -p "$prefix/lib" "$prefix/bin"
    ln -sfn "$library" "$prefix/lib/libLLVM.so"
    ln -sfn "$library" "$prefix/lib/$(basename "$library")"
    say "building bpf-linker $linker_version against LLVM $major (once, about two minutes)"
    LLVM_PREFIX=$prefix LD_LIBRARY_PATH=$(dirname "$library") \
        cargo install bpf-linker --version "$linker_version" --locked --quiet \
        --no-default-features --features "llvm-$major" --root "$cache/install" \
        --target-dir "$cache/install-target" >&2 || return 1
    mkdir -p "$cache/bin"
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' \
        "$(dirname "$library")" "$cache/install/bin/bpf-linker" >"$linker"
    chmod +x "$linker"
    "$linker" --version >&2 || { rm -f "$linker"; return 1; }
    rm -rf "$cache/install-target"
}

case ${SEINE_BPF_TOOLS:-any} in
    rustup) rustup_tools || die "no rustup nightly with rust-src and bpf-linker in PATH" ;;
    debian) debian_tools || die "Debian's rustc-web could not be set up" ;;
    any) rustup_tools || debian_tools || die "no way to build eBPF here; see the head of $0" ;;
    *) die "SEINE_BPF_TOOLS is rustup or debian" ;;
esac
compiler="$("$rustc" --version); $("$linker" --version)"
say "compiler: $compiler"
[ "${1:-}" = --tools ] && exit 0

# Build ---------------------------------------------------------------------------------------
target=${SEINE_BPF_TARGET_DIR:-$here/programs/target}
sysroot=$("$rustc" --print sysroot)
# The object must not depend on where it was built: every path that may enter it is mapped.
flags=(
    "-Clinker=$linker" -Cdebuginfo=2 -Clink-arg=--btf -Ccodegen-units=1
    "--remap-path-prefix=$here=bpf"
    "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
    "--remap-path-prefix=$sysroot=rust"
    "--remap-path-prefix=$(readlink -f "$sysroot/lib/rustlib/src/rust")=rust/lib/rustlib/src/rust"
)
joined=$(printf '%s\x1f' "${flags[@]}")
say "building seine-bpf (bpfel-unknown-none)"
(
    cd "$here/programs"
    env -u RUSTFLAGS -u RUSTUP_TOOLCHAIN \
        RUSTC="$rustc" RUSTC_BOOTSTRAP=1 CARGO_ENCODED_RUSTFLAGS="${joined%$'\x1f'}" \
        cargo build --release --locked --target bpfel-unknown-none -Z build-std=core \
        --target-dir "$target"
)
built=$target/bpfel-unknown-none/release/seine-bpf
[ -f "$built" ] || die "the build left no object at $built"
python3 "$here/object.py" trim "$built" "$built.o"
built=$built.o

if [ "${1:-}" != --check ]; then
    install -m 0644 "$built" "$object"
    printf '%s\n' "$compiler" >"$here/seine-bpf.toolchain"
    say "wrote $object ($(stat -c %s "$object") bytes)"
    exit 0
fi

# Check ---------------------------------------------------------------------------------------
# First all bytes; where they differ, what decides the object's behaviour is shown.
dump() { python3 "$here/object.py" digest "$1"; }
if cmp -s "$object" "$built" || [ "$(dump "$object")" = "$(dump "$built")" ]; then
    say "the committed object is what these sources give"
    exit 0
fi
diff <(dump "$object") <(dump "$built") >&2 || true
recorded=$(cat "$here/seine-bpf.toolchain")
if [ "$recorded" != "$compiler" ]; then
    say "the committed object was built by: $recorded"
    say "another compiler may give other code: ask for the same one (SEINE_BPF_TOOLS=debian)"
fi
die "bpf/seine-bpf.o differs from what the sources give (above): run bpf/build.sh, commit the object"
