#!/usr/bin/env bash
# Checks the charts: helm's own lint, every values file rendered, every object against the schemas of Kubernetes
# (strictly), and two scanners for misconfiguration. An exception from a scanner stands with its reason at the object
# that it is about (templates/_helpers.tpl, seine.exceptions); those that hold for all are here.
#
#   deploy/check.sh [FOLDER]    leave the rendered manifests in FOLDER
#
# helm and kube-score are taken from $KUBEBUILDER_ASSETS, and else built from their Go modules; the Python tools are
# installed into target/tools/python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools=$PWD/target/tools
out=${1:-$(mktemp -d)}
[[ -n ${1:-} ]] || trap 'rm -rf "$out"' EXIT
mkdir -p "$out" "$tools"
components=$(tests/kubernetes/components.sh helm kube-score)
export PATH=$components:$PATH
# Of Kubernetes: the oldest that the charts install on, and the newest.
readonly VERSIONS=(1.30 1.37)

say() { printf -- '--- %s\n' "$*"; }

python=$tools/python
if ! cmp -s deploy/requirements.txt "$python/installed"; then
    say "installing checkov, kubernetes-validate and yamllint into ${python#"$PWD"/}"
    python3 -m venv --clear "$python"
    "$python/bin/pip" install --quiet --disable-pip-version-check --requirement deploy/requirements.txt
    cp deploy/requirements.txt "$python/installed"
fi
export PATH=$python/bin:$PATH

# helm says of each symbolic link that it follows it.
helm_quietly() { helm "$@" 2> >(grep -v 'found symbolic link' >&2 || :); }

say "helm lint"
for chart in deploy/helm/*/; do
    helm_quietly lint --strict --quiet "$chart"
    for values in "$chart"values-*.yaml; do
        [[ ! -e $values ]] || helm_quietly lint --strict --quiet "$chart" --values "$values"
    done
done

say "helm template, for each values file and with everything on"
render() { # NAME CHART ARGUMENTS...
    local name=$1 chart=$2
    shift 2
    helm_quietly template seine "deploy/helm/$chart" --namespace seine-system "$@" >"$out/$name.yaml"
}
render crds seine-crds
render default seine
for values in deploy/helm/seine/values-*.yaml; do
    render "$(basename "$values" .yaml)" seine --values "$values"
done
render everything seine --values deploy/helm/seine/values-ha.yaml --values deploy/helm/seine/test-values.yaml

say "values that must be refused"
while IFS= read -r line; do
    [[ -n $line && $line != \#* ]] || continue
    if helm_quietly template seine deploy/helm/seine --namespace seine-system --set-json "$line" >/dev/null 2>&1; then
        echo "the schema admits what it must not: $line"
        exit 1
    fi
done <<'VALUES'
trustDomian="cluster.local"
trustDomain="Not A Domain"
control.replicas=0
control.certificateLifetimeSeconds=999999
ztunnel.capabilities=["ALL"]
ztunnel.capabilities=["CAP_NET_ADMIN"]
agent.cni.binDir="relative/path"
spire.adminSocket="admin.sock"
agent.olderConnections="forget"
image.digests.control="sha256:short"
networkPolicies.apiServerPorts=[]
VALUES

say "yamllint"
yamllint --strict --config-file deploy/.yamllint deploy/helm/*/values*.yaml deploy/helm/*/Chart.yaml deploy/monitoring

for version in "${VERSIONS[@]}"; do
    say "every object against the schemas of Kubernetes $version, strictly"
    kubernetes-validate --strict --quiet --kubernetes-version "$version" "$out"/*.yaml >"$out/validate.log" 2>&1 || {
        cat "$out/validate.log"
        exit 1
    }
    # A kind without a schema is only a warning to it, and not to us. Those of the Prometheus operator are in no release
    # of Kubernetes; what is in the rules, deploy/monitoring/check.sh checks.
    if grep -vE 'kind (PodMonitor|PrometheusRule) with api version monitoring.coreos.com/v1' "$out/validate.log"; then
        exit 1
    fi
done

# --ignore-container-cpu-limit: throttling shows as latency of every connection.
# deployment-replicas: values.yaml is for trying it out, values-ha.yaml for production.
# container-ephemeral-storage-request-and-limit and others that are optional stay off.
for manifests in default values-ha everything; do
    say "kube-score: $manifests"
    ignored=()
    [[ $manifests == default ]] && ignored=(--ignore-test deployment-replicas)
    kube-score score --ignore-container-cpu-limit "${ignored[@]}" --output-format ci "$out/$manifests.yaml" \
        >"$out/kube-score.log" || {
        grep -vE '^\[(OK|SKIPPED)\]' "$out/kube-score.log"
        exit 1
    }
done

say "checkov"
mkdir "$out/checkov"
cp "$out"/{crds,default,values-ha,everything}.yaml "$out/checkov"
checkov --directory "$out/checkov" --framework kubernetes --skip-download --compact --quiet >"$out/checkov.log" || {
    cat "$out/checkov.log"
    exit 1
}
say "the charts are good"
