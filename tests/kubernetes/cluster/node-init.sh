#!/usr/bin/env bash
# Runs as a node, in network, mount and UTS namespaces of its own (see
# start_node): gives it its private directories, starts containerd, the kubelet
# and kube-proxy, and stays, so that the namespaces can be entered by its PID.
#
# environment:
#   NAME STATE                of the cluster (common.sh)
#   NODE NODE_IP CGROUP       of this node; CGROUP is a cgroup v2 directory
#   KUBELET KUBE_PROXY        paths of the programs
#   CONTAINERD_SNAPSHOTTER    for ctr
set -euo pipefail
: "${NAME:?}" "${STATE:?}" "${NODE:?}" "${NODE_IP:?}" "${CGROUP:?}"
: "${KUBELET:?}" "${KUBE_PROXY:?}" "${CONTAINERD_SNAPSHOTTER:?}"

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
source "$HERE/common.sh"
PATH=$PATH:/usr/sbin:/sbin

# A private /run: network namespaces of pods, containerd's and runc's state,
# lock files. What we need of the machine's own stays in sight.
private_run() {
    local new=$STATE/$NODE/run path
    mkdir -p "$new"
    mount -t tmpfs -o mode=755 tmpfs "$new"
    for path in "$STATE" "$HERE" "$(dirname "$KUBELET")" "$(dirname "$KUBE_PROXY")"; do
        [[ $path == /run/* ]] || continue
        mkdir -p "$new/${path#/run/}"
        mount --bind "$path" "$new/${path#/run/}"
    done
    mkdir "$new/netns"
    mount --rbind "$new" /run
}

# sysfs shows the network devices of the namespace that mounted it. What is
# mounted in the old one (cgroups, tracing) moves over; bpffs is the node's own.
private_sys() {
    local old=$STATE/$NODE/sys path
    mkdir -p "$old"
    mount --rbind /sys "$old"
    mount -t sysfs sysfs /sys
    for path in fs/cgroup kernel/debug kernel/tracing kernel/security; do
        ! mountpoint -q "$old/$path" || mount --rbind "$old/$path" "/sys/$path"
    done
    umount --lazy "$old"
    mount -t bpf bpf /sys/fs/bpf
}

# The paths where the node's programs, and the agents that run on it, expect
# things, each led to a directory of this node.
private_directories() {
    local source target
    while read -r source target; do
        mkdir -p "$target"
        mount --bind "$STATE/$NODE/$source" "$target"
    done <<EOF
containerd      /var/lib/containerd
kubelet         /var/lib/kubelet
cni-state       /var/lib/cni
seine           /var/lib/seine
pod-logs        /var/log/pods
container-logs  /var/log/containers
cni-conf        /etc/cni/net.d
cni-bin         /opt/cni/bin
EOF
}

# The kubelet sets some of the whole machine's kernel settings, and only those
# that differ from what it wants: show it what it wants to see.
private_sysctls() {
    local key value file
    while read -r key value; do
        file=$STATE/$NODE/sysctl/${key//\//.}
        echo "$value" >"$file"
        mount --bind "$file" "/proc/sys/$key"
    done <<EOF
vm/overcommit_memory       1
vm/panic_on_oom            0
kernel/panic               10
kernel/panic_on_oops       1
kernel/keys/root_maxkeys   1000000
kernel/keys/root_maxbytes  25000000
EOF
}

hostname "$NODE"
private_run
private_sys
private_directories
private_sysctls
# Mounts pass between the node and its pods where a pod asks for it.
mount --make-rshared /

start "$NODE-containerd" "$CGROUP/containerd" containerd --config "$STATE/$NODE/containerd.toml"
wait_for 30 "$NODE's containerd" "$NODE-containerd" ctr version
ctr --namespace k8s.io images import "$STATE/pause.tar"

start "$NODE-kubelet" "$CGROUP/kubelet" "$KUBELET" --config="$STATE/$NODE/kubelet.yaml" \
    --kubeconfig="$STATE/$NODE.kubeconfig" --node-ip="$NODE_IP" --v=2
start "$NODE-kube-proxy" "$CGROUP/kube-proxy" "$KUBE_PROXY" --config="$STATE/$NODE/kube-proxy.yaml"

sleep infinity &
wait
