# shellcheck shell=bash
# A node, seen from outside: its configuration, and what happens to it. What
# runs inside its namespaces is node-init.sh.

# What outlasts a reboot: what is on the node's disk.
make_node() { # N
    local node=node$1
    mkdir -p "$STATE/$node"/{containerd,kubelet,pod-logs,container-logs,cni-state,seine,cni-conf,cni-bin,sysctl}
    make_kubeconfig "$node"
    write_containerd_config >"$STATE/$node/containerd.toml"
    write_cni_config "$1" >"$STATE/$node/cni-conf/10-cluster.conflist"
    ln -s "$(cni_plugins)"/* "$STATE/$node/cni-bin/"
    write_kubelet_config "$1" >"$STATE/$node/kubelet.yaml"
    write_kube_proxy_config >"$STATE/$node/kube-proxy.yaml"
}

start_node() { # N
    local node=node$1 cgroup
    make_cgroups "$1"
    cgroup=$(node_cgroup "$1")
    start "$node" "$cgroup/init" nsenter --net="/run/netns/$(node_netns "$1")" \
        unshare --mount --uts --propagation private \
        env NAME="$NAME" NODE="$node" STATE="$STATE" CGROUP="$cgroup" \
        KUBELET="$(program kubelet)" KUBE_PROXY="$(program kube-proxy)" \
        NODE_IP="$(node_ip "$1")" CONTAINERD_SNAPSHOTTER="$(snapshotter)" \
        bash "$HERE/node-init.sh"
}

# stop_node N: as a loss of power does: no process is left, nor what they had in the kernel.
stop_node() {
    local netns component
    remove_cgroups "node$1"
    for component in "node$1" "node$1"-{containerd,kubelet,kube-proxy}; do
        rm -f "$STATE/pids/$component"
    done
    netns=$(node_netns "$1")
    ip -n "$PREFIX" link del "node$1"
    ip netns del "$netns"
}

# cni_plugins: the directory of the standard CNI plugins.
cni_plugins() {
    local dir
    for dir in /usr/lib/cni /usr/libexec/cni /opt/cni/bin; do
        [[ -x $dir/ptp && -x $dir/host-local && -x $dir/loopback && -x $dir/portmap ]] &&
            echo "$dir" && return
    done
    return 1
}

# overlayfs can't stack its upper layer on another overlayfs, as inside a container.
snapshotter() {
    [[ $(stat --file-system --format %T "$STATE") == overlayfs ]] && echo native || echo overlayfs
}

write_containerd_config() {
    cat <<EOF
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE_IMAGE"
  stream_server_address = "127.0.0.1"
  disable_apparmor = true
  # Without CAP_SYS_RESOURCE, runc may not go below our own OOM score.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "$(snapshotter)"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
EOF
}

# ptp, not bridge: all pod traffic is routed by the node, so service addresses
# work between two pods of one node without br_netfilter.
write_cni_config() { # N
    cat <<EOF
{
  "cniVersion": "1.0.0",
  "name": "cluster",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": false,
      "ipam": {
        "type": "host-local",
        "dataDir": "/var/lib/cni/networks",
        "ranges": [[{"subnet": "$(pod_cidr "$1")"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
EOF
}

write_kubelet_config() { # N
    cat <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$PREFIX-node$1
failCgroupV1: false
failSwapOn: false
address: $(node_ip "$1")
authentication:
  anonymous: {enabled: false}
  x509: {clientCAFile: $STATE/pki/ca.crt}
  webhook: {enabled: true}
authorization: {mode: Webhook}
tlsCertFile: $STATE/pki/node$1.crt
tlsPrivateKeyFile: $STATE/pki/node$1.key
clusterDNS: [$(dns_service_ip)]
clusterDomain: cluster.local
resolvConf: ""
volumePluginDir: /var/lib/kubelet/volume-plugins
makeIPTablesUtilChains: false
oomScoreAdj: 0
# The disk is the machine's: a full one is not this cluster's to clean up.
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
# Mounted tokens and config maps follow their objects sooner than by default.
syncFrequency: 10s
EOF
}

write_kube_proxy_config() {
    cat <<EOF
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $STATE/kube-proxy.kubeconfig}
mode: nftables
# Tests should not wait for a service's new pods: at once, not once a second.
nftables: {minSyncPeriod: 100ms}
clusterCIDR: $(pods_cidr)
oomScoreAdj: 0
# The table's size is the machine's, not the node's: leave it.
conntrack: {maxPerCore: 0}
EOF
}

# make_pause_image: STATE/pause.tar, the image of every pod's sandbox.
PAUSE_IMAGE=localhost/pause:1
make_pause_image() {
    if "${CC:-cc}" -static -O2 -o "$STATE/pause" "$HERE/pause.c" 2>/dev/null; then
        "$HERE/mkimage" --entrypoint /pause "$PAUSE_IMAGE" "$STATE/pause.tar" "$STATE/pause:/pause"
    else
        say 'note: no C compiler: the pause image runs sleep (orphans in shared PID namespaces stay)'
        "$HERE/mkimage" --libs --entrypoint '/bin/sleep infinity' \
            "$PAUSE_IMAGE" "$STATE/pause.tar" "$(type -P sleep):/bin/sleep"
    fi >/dev/null
}

# KCM would hand out pod subnets in the order in which nodes register; ours are
# fixed, and the node objects say so.
record_pod_cidr() { # N
    run_kubectl patch node "node$1" --patch \
        "{\"spec\": {\"podCIDR\": \"$(pod_cidr "$1")\", \"podCIDRs\": [\"$(pod_cidr "$1")\"]}}"
}

node_ready() { # N
    run_kubectl wait --for=condition=Ready --timeout=2s "node/node$1"
}
