#!/usr/bin/env bash
# The Gateway API's conformance suite against the mesh, on a real cluster of two nodes: the profiles MESH-HTTP and
# MESH-GRPC, and those of Gateways: GATEWAY-HTTP, GATEWAY-GRPC, GATEWAY-TLS and GATEWAY-TCP. Before the mesh is installed the
# mesh's tests run without it, as a control: those that need a mesh must fail.
#
#   tests/conformance/run.sh             all, with the control; writes the reports, docs/conformance/{mesh,ingress}.yaml
#   tests/conformance/run.sh ingress     those of Gateways; writes their report
#   tests/conformance/run.sh TEST        one test of the suite, as MeshHTTPRouteMatching; no control, no report
#
# environment:
#   KUBEBUILDER_ASSETS  folder with Kubernetes' programs; what is not there is built
#   PROFILE             cargo's profile of the programs in the images, release where it is not set
#   SEINE_IMAGES        folder of images to test, in the place of target/images, which are built
#   SEINE_CONTROL       skip: no control, and no report
#   SEINE_KEEP_CLUSTER  1: the cluster stays until Enter
#
# Logs of the suite and of the mesh stay in target/conformance.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# The test that any answer satisfies: it passes without a mesh, and so shows that the control fails for want of one.
readonly WITHOUT_MESH=MeshBasic
readonly NAMESPACES=(gateway-conformance-mesh gateway-conformance-mesh-consumer)

only=${1:-}
control=${SEINE_CONTROL:-run} reports=$control
# What is run: the suite's tests of the mesh, and those of Gateways.
case $only in
    '') parts=(mesh ingress) ;;
    ingress) parts=(ingress) only='' control=skip ;;
    Mesh*) parts=(mesh) control=skip reports=skip ;;
    *) parts=(ingress) control=skip reports=skip ;;
esac
begun=$SECONDS
out=$PWD/target/conformance
suite=$PWD/tests/conformance
cluster=$PWD/tests/kubernetes/cluster/cluster
name=conformance$$

say() { printf -- '--- %4d s  %s\n' $((SECONDS - begun)) "$*"; }
die() { say "$*"; exit 1; }

cluster() { # COMMAND ARGUMENT...
    local command=$1
    shift
    CLUSTER_DIR=$out/cluster "$cluster" "$command" --name "$name" "$@"
}
kubectl() { cluster kubectl "$@"; }

# --- what it takes -------------------------------------------------------------

build() {
    KUBEBUILDER_ASSETS=$(tests/kubernetes/components.sh etcd kube-apiserver kube-controller-manager kube-scheduler \
        kubelet kube-proxy kubectl coredns helm echo-basic echo-advanced-server echo-advanced-client)
    export KUBEBUILDER_ASSETS
    PATH=$(scripts/go.sh):$PATH
    say "the suite, a Go test (3 minutes where Go has not built it before)"
    (cd "$suite" && CGO_ENABLED=0 go test -c -o "$out/suite" .)
    say "the images of its manifests"
    echo_images
    if [[ -z ${SEINE_IMAGES:-} ]]; then
        scripts/images.sh
    fi
}

# The images that the manifests name, under each name; they are on the nodes already when a pod asks for them.
echo_images() {
    local manifests image short file
    manifests=$(cd "$suite" && go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api/conformance)
    [[ -f $out/echo.key ]] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
        -subj /CN=echo -keyout "$out/echo.key" -out "$out/echo.crt" 2>"$out/openssl.log"
    rm -f "$out"/image-*.tar
    while read -r image; do
        short=${image##*/}
        file=$out/image-${short/:/-}.tar
        case $short in
            echo-basic:*) set -- --entrypoint /echo-basic "$image" "$file" "$KUBEBUILDER_ASSETS/echo-basic:/echo-basic" ;;
            echo-advanced:*) set -- --entrypoint /usr/local/bin/server --env PATH=/usr/local/bin "$image" "$file" \
                "$KUBEBUILDER_ASSETS/echo-advanced-server:/usr/local/bin/server" \
                "$KUBEBUILDER_ASSETS/echo-advanced-client:/usr/local/bin/client" \
                "$out/echo.crt:/cert.crt" "$out/echo.key:/cert.key:644" ;;
            # The name server of tests of UDPRoute, which are not among our profiles; its pod has to be ready all the same.
            coredns:*) set -- --entrypoint /coredns "$image" "$file" "$KUBEBUILDER_ASSETS/coredns:/coredns" ;;
            *) die "the suite's manifests name an image that nobody builds: $image" ;;
        esac
        tests/kubernetes/cluster/mkimage "$@" >>"$out/images.log"
    done < <(grep -rhoP --include='*.yaml' '^\s*(- )?image: \K\S+' "$manifests" | sort -u)
}

# --- the mesh ------------------------------------------------------------------

install_mesh() {
    local cgroups namespace values=$out/values.yaml
    say "installing the mesh"
    cluster load-image "${images[@]}"
    cgroups=$(awk '$3 == "cgroup2" {print $2; exit}' /proc/mounts)/cluster-$name-'$(SEINE_NODE)'
    cat >"$values" <<VALUES
agent: {podsCgroup: "$cgroups/kubepods", kubeletCgroup: "$cgroups/kubelet"}
ztunnel: {drainSeconds: 5}
ingress: {readSecrets: true}
waypoint: {drainSeconds: 1, resources: {requests: {cpu: 10m, memory: 16Mi, ephemeral-storage: 16Mi}}}
VALUES
    cluster enter control-plane bash -euo pipefail -c '
        helm install seine-crds deploy/helm/seine-crds --namespace seine-system --create-namespace
        kubectl label namespace seine-system pod-security.kubernetes.io/enforce=privileged
        helm install seine deploy/helm/seine --namespace seine-system --values "$1"
        kubectl -n seine-system rollout status deployment/seine-control daemonset/seine-agent daemonset/seine-ztunnel --timeout 3m
    ' install "$values" >"$out/install.log" 2>&1 || { cat "$out/install.log"; die "the mesh is not installed"; }
}

install_waypoints() {
    kubectl apply -f "$suite/waypoints.yaml" >>"$out/install.log"
    for namespace in "${NAMESPACES[@]}"; do
        kubectl -n "$namespace" wait --for=condition=Programmed --timeout 120s gateway/waypoint >>"$out/install.log" ||
            die "the waypoint of $namespace is not programmed: $(kubectl -n "$namespace" get gateway,deployment,pods -o wide)"
    done
}

# --- where there is no load balancer ------------------------------------------

# Gives each Service of type LoadBalancer an address of the cluster's own network that nobody else has. kube-proxy takes what
# comes for it on any node; the suite's way there is through the first.
announce() {
    local prefix node namespace service number=0
    node=$(kubectl get nodes -o jsonpath='{.items[0].status.addresses[?(@.type=="InternalIP")].address}')
    node=${node%% *}
    prefix=${node%.*.*}.32
    cluster enter control-plane ip route replace "$prefix.0/24" via "$node"
    while sleep 0.5; do
        while read -r namespace service; do
            number=$((number % 250 + 1))
            kubectl -n "$namespace" patch service "$service" --subresource status --type merge \
                -p "{\"status\":{\"loadBalancer\":{\"ingress\":[{\"ip\":\"$prefix.$number\"}]}}}" || true
        done < <(kubectl get services -A -o go-template='{{range .items}}{{if eq .spec.type "LoadBalancer"}}{{
            if not .status.loadBalancer.ingress}}{{.metadata.namespace}} {{.metadata.name}}{{"\n"}}{{end}}{{end}}{{end}}' || true)
    done >"$out/announcer.log" 2>&1
}

# --- a run ---------------------------------------------------------------------

# run NAME TEST ARGUMENT...: runs a Go test of the suite where it reaches the API server; its results are in $out/NAME.results.
run() {
    local which=$1 test=$2
    shift 2
    # -test.parallel: as many cases of a test wait at a time, whatever processors there are.
    (cd "$suite" && cluster enter control-plane "$out/suite" -test.v -test.run "^$test\$" -test.timeout 40m -test.parallel 8 \
        -cleanup-base-resources=false -results "$out/$which.results" -seine-version "$version" "$@") >"$out/$which.log" 2>&1
}

tests() { # NAME RESULT: the tests that ended so
    sed -n "s/^$2 //p" "$out/$1.results" | sort
}

# --- the story -----------------------------------------------------------------

end() {
    [[ -z ${announcer:-} ]] || kill "$announcer" 2>>"$out/cluster.log" || true
    if [[ ${SEINE_KEEP_CLUSTER:-} == 1 ]]; then
        read -rp "kept, until Enter: CLUSTER_DIR=$out/cluster $cluster kubectl --name $name get pods -A"
    fi
    cluster down 2>>"$out/cluster.log" || say "cluster $name is not wholly down"
}

mkdir -p "$out"
rm -rf "$out"/*.{log,results,yaml}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
build
images=("${SEINE_IMAGES:-target/images}"/*.tar)
api=$(cd "$suite" && go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api)

say "starting a cluster of two nodes"
trap end EXIT
cluster up --nodes 2
cluster load-image "$out"/image-*.tar
# Those of the experimental channel, since that of HTTPRoute in the standard one has no retries: the API server would drop them.
for crd in "$api"/config/crd/experimental/gateway.networking*.yaml; do
    kubectl apply --server-side -f "$crd" >>"$out/crds.log"
done
kubectl wait --for=condition=Established --timeout 60s crd --all >>"$out/crds.log"

if [[ $control == run ]]; then
    say "control: the suite without a mesh, where what needs one fails (some 3 minutes)"
    run control TestMesh -control || true
fi

install_mesh
failed=0
for part in "${parts[@]}"; do
    arguments=(-report-output "$out/$part.yaml")
    [[ -z $only ]] || arguments=(-run-test "$only")
    say "the suite: ${only:-$part}"
    case $part in
        mesh)
            install_waypoints
            run mesh TestMesh "${arguments[@]}" || failed=1
            ;;
        ingress)
            announce &
            announcer=$!
            run ingress TestIngress "${arguments[@]}" || failed=1
            ;;
    esac
done
for what in seine-control seine-agent seine-ztunnel; do
    kubectl -n seine-system logs --tail=-1 --prefix -l "app.kubernetes.io/name=$what" >"$out/$what.log" 2>&1 || true
done
for class in seine-waypoint seine; do
    kubectl get pods -A -l "gateway.networking.k8s.io/gateway-class-name=$class" --no-headers \
        -o custom-columns=:metadata.namespace,:metadata.name | while read -r namespace pod; do
        kubectl -n "$namespace" logs --tail=-1 "$pod"
    done >"$out/$class.log" 2>&1 || true
done

# --- what came of it -----------------------------------------------------------

bad=0
printf '\n%-60s %-12s %s\n' TEST RESULT 'WITHOUT MESH'
for part in "${parts[@]}"; do
    while read -r result test; do
        [[ $test == Mesh* || $part == ingress ]] || continue
        [[ $result != unsupported ]] || continue
        other=
        [[ $control != run || $part == ingress ]] || other=$(sed -n "s/ $test\$//p" "$out/control.results")
        [[ -n $only && $test != "$only" ]] || printf '%-60s %-12s %s\n' "$test" "$result" "$other"
    done < <(sort -k 2 "$out/$part.results")
    if ((failed != 0)) || [[ -z $(tests "$part" passed) ]]; then
        bad=1
        say "not all tests of $part passed ($out/$part.log):" $(tests "$part" failed)
        grep -aE '^ *--- FAIL|panic:' "$out/$part.log" | head -n 60 || true
    fi
done
echo
if [[ $control == run ]]; then
    if [[ $(tests control passed) != "$WITHOUT_MESH" ]]; then
        bad=1
        say "without a mesh $WITHOUT_MESH alone should pass, and did:" $(tests control passed)
    fi
fi
for part in "${parts[@]}"; do
    # The reports are the suite's own, and have what did not pass in them, too.
    [[ $reports == run ]] || continue
    [[ ! -s $out/$part.yaml ]] || install -D -m 644 "$out/$part.yaml" "docs/conformance/$part.yaml"
done
for part in "${parts[@]}"; do
    say "$part: $(tests "$part" passed | wc -l) passed, $(tests "$part" failed | wc -l) failed; $((SECONDS - begun)) s in all"
done
exit "$bad"
