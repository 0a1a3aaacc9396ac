#!/usr/bin/env bash
# Tests against a real API server, and on a real cluster of two nodes.
#
#   scripts/test-kubernetes.sh [FILTER...]    only tests whose names contain one of these
#
# environment:
#   KUBEBUILDER_ASSETS  folder with Kubernetes' programs; what is not there is built
#   PROFILE             cargo's profile of the programs in the images, release where it is not set
#   SEINE_IMAGES        folder of images to test, in the place of target/images, which are built
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf -- '--- %s\n' "$*"; }
begun=$SECONDS

cat <<'TEXT'
--- What comes, and what it takes on two cores (in brackets: from a bare clone):
      Kubernetes, etcd, CoreDNS and Helm from Go modules      seconds  (10 minutes)
      images of optimised programs                            seconds  (10 minutes)
      the tests' own programs                                 seconds  ( 2 minutes)
      API server: schemas, status, faults, tokens, 10,000 pods          5 minutes
      two nodes: install, opt in, policy, upgrade, reboot, uninstall    6 minutes
TEXT

KUBEBUILDER_ASSETS=$(tests/kubernetes/components.sh) || exit 1
export KUBEBUILDER_ASSETS
if [[ -z ${SEINE_IMAGES:-} ]]; then
    scripts/images.sh || exit 1
fi
say "the tests' own programs"
# Of the whole workspace, which is compiled with the features that other tests have been.
cargo build --locked --workspace --bins || exit 1
say "tests (after $((SECONDS - begun)) s)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --locked --workspace --no-fail-fast --test apiserver --test cluster -- --nocapture "$@" 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
scripts/count.sh "$log" || status=1
say "$((SECONDS - begun)) s in all"
exit "$status"
