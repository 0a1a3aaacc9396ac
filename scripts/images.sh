#!/usr/bin/env bash
# Builds the images into target/images: see deploy/images/README.md.
#
#   scripts/images.sh          build them
#   scripts/images.sh --twice  and once more from a copy of the sources in another folder, and compare the digests
#
# environment:
#   PROFILE  cargo's profile of the programs, release where it is not set
#
# The second build compiles what is in this repository, and links; dependencies, which come from the registry under the
# checksums of Cargo.lock, are taken from the first. With SEINE_TWICE=all they are compiled again, too: some ten minutes more.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

profile=${PROFILE:-release}
built=${profile/#dev/debug}
# A release has no path of the machine that built it; other programs are those that the tests have built.
[[ $profile == dev ]] || export RUSTFLAGS=--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}/registry/src=/registry
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
tag=${TAG:-$version}
registry=${REGISTRY:-}
out=target/images

say() { printf -- '--- %s\n' "$*"; }

programs() { # SOURCES TARGET
    # Of the whole workspace, as for whatever else runs them: other features would mean other programs, and another build.
    (cd "$1" && CARGO_TARGET_DIR=$2 cargo build --locked --workspace --bins --profile "$profile")
}

images() { # PROGRAMS OUT ARGUMENT...
    local from=$1 to=$2
    shift 2
    deploy/images/build --programs "$from" --out "$to" --tag "$tag" --registry "$registry" --profile "$profile" "$@"
}

say "building programs, profile $profile (from nothing some ten minutes)"
programs . "$PWD/target"
if ! cargo sbom --version >/dev/null 2>&1; then
    say "cargo-sbom, which writes the bills of materials, is missing: installing it with cargo (a minute or two)"
    cargo install --locked cargo-sbom
fi
say "images, tag $tag, in $out"
images "target/$built" "$out"
[[ ${1:-} == --twice ]] || exit 0

again=$PWD/target/again
trap 'rm -rf "$again"' EXIT
rm -rf "$again"
mkdir -p "$again/sources" "$again/target"
git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from - | tar --extract --directory "$again/sources"
if [[ ${SEINE_TWICE:-} == all ]]; then
    say "everything once more, in $again"
else
    say "the repository's own crates once more, in $again"
    mkdir "$again/target/$built"
    cp -a "target/$built"/{deps,build,.fingerprint} "$again/target/$built"
    # Ours, whatever their form: libseine_x-*.rlib, seine_x-*, seine-x-*.
    find "$again/target/$built" -mindepth 2 -maxdepth 2 \( -name 'seine*' -o -name 'libseine*' \) -exec rm -rf {} +
fi
programs "$again/sources" "$again/target"
images "$again/target/$built" "$again/images" --no-sbom
diff "$out/digests" "$again/images/digests" || { say "the second build has other digests than the first"; exit 1; }
say "both builds have the same digests"
