#!/usr/bin/env bash
# Builds the real components that the tests on Kubernetes run, from their Go modules, and prints the folder where
# they are. What is there already, or in $KUBEBUILDER_ASSETS, is not built again.
#
#   tests/kubernetes/components.sh [NAME...]    names as in `modules` below; without one, all that a cluster needs
#
# From nothing this takes about ten minutes of two cores, most of it the API server; with Go's build cache, seconds.
# The folder is target/kubernetes/bin; changed versions (components/**/go.mod) are built anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

modules=tests/kubernetes/components
readonly GATEWAY_API=v1.6.3
bin=$PWD/target/kubernetes/bin

# module NAME: the folder of its go.mod, and its package.
module() {
    case $1 in
        etcd) echo . go.etcd.io/etcd/server/v3 ;;
        kube-apiserver | kube-controller-manager | kube-proxy | kube-scheduler | kubectl | kubelet)
            echo . "k8s.io/kubernetes/cmd/$1" ;;
        coredns) echo tools seine.dev/tests/kubernetes/components/tools/coredns ;;
        helm) echo tools helm.sh/helm/v4/cmd/helm ;;
        grpcurl) echo grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl ;;
        kube-score) echo kube-score github.com/zegl/kube-score/cmd/kube-score ;;
        echo-basic) echo ../../conformance sigs.k8s.io/gateway-api/conformance/echo-basic ;;
        echo-advanced-client | echo-advanced-server)
            echo echo-advanced "istio.io/istio/pkg/test/echo/cmd/${1##*-}" ;;
        *) say "components.sh: no such component: $1"; exit 2 ;;
    esac
}

say() { printf -- '--- %s\n' "$*" >&2; }

# The folder has links to what $KUBEBUILDER_ASSETS has, so that it alone is enough for the cluster tool.
found() { # NAME: whether it is there, in the version that go.mod names
    local given=${KUBEBUILDER_ASSETS:-}/$1
    # Of an earlier run.
    [[ ! -L $bin/$1 || ! $given -ef $bin/$1 ]] || return 0
    if [[ -n ${KUBEBUILDER_ASSETS:-} && -x $given && ! $given -ef $bin/$1 ]]; then
        rm -f "$bin/$1" "$bin/$1.sum"
        ln -s "$(realpath "$given")" "$bin/$1"
        return
    fi
    [[ -x $bin/$1 && ! -L $bin/$1 && $(cat "$bin/$1.sum" 2>/dev/null) == "$(sum "$1")" ]]
}

sum() { # NAME
    local folder _
    read -r folder _ < <(module "$1")
    cat "$modules/$folder"/go.{mod,sum} | sha256sum
}

build() { # NAME
    local folder package version flags='-s -w'
    read -r folder package < <(module "$1")
    if [[ $package == k8s.io/* ]]; then
        # Without these, kubelets and clients would see version 0.0.0.
        version=$(sed -n 's/.*k8s.io\/kubernetes v\([0-9.]*\).*/\1/p' "$modules/go.mod" | head -n 1)
        flags+=" -X k8s.io/component-base/version.gitVersion=v$version"
        flags+=" -X k8s.io/component-base/version.gitMajor=${version%%.*}"
        flags+=" -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<<"$version")"
    fi
    rm -f "$bin/$1"
    (cd "$modules/$folder" && CGO_ENABLED=0 nice go build -trimpath -ldflags "$flags" -o "$bin/$1" "$package")
    sum "$1" >"$bin/$1.sum"
}

# The definitions of the Gateway API's kinds, of its standard channel, as one file.
gateway_api() {
    local file=$bin/gateway-api.yaml folder go
    [[ $(head -n 1 "$file" 2>/dev/null) != "# $GATEWAY_API" ]] || return 0
    go=$(scripts/go.sh)
    folder=$("$go/go" mod download -json "sigs.k8s.io/gateway-api@$GATEWAY_API" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
    {
        echo "# $GATEWAY_API"
        for definition in "$folder"/config/crd/standard/gateway.networking.k8s.io_*s.yaml; do
            [[ $definition == *_vap_* ]] || { echo ---; cat "$definition"; }
        done
    } >"$file.new"
    mv "$file.new" "$file"
}

mkdir -p "$bin"
(($# > 0)) || gateway_api
(($# > 0)) || set -- etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl coredns helm
wanted=()
for name; do
    found "$name" || wanted+=("$name")
done
if ((${#wanted[@]} > 0)); then
    go=$(scripts/go.sh)
    export PATH=$go:$PATH
    say "building ${wanted[*]} from Go modules: some minutes where Go has not built them before"
    for name in "${wanted[@]}"; do
        begun=$SECONDS
        build "$name"
        say "$(printf '%-24s built in %4d s' "$name" $((SECONDS - begun)))"
    done
fi
echo "$bin"
