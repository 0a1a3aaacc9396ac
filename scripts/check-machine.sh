#!/usr/bin/env bash
# Says clearly what this machine lacks to run a lab, before anything is built.
set -uo pipefail

problems=()
((EUID == 0)) || problems+=("root: namespaces, cgroups and eBPF need it (sudo make ...)")
[[ $(uname -s) == Linux ]] || problems+=("Linux: this is $(uname -s)")

# The oldest kernel that the eBPF programs are expected to load on.
IFS=.- read -r major minor _ < <(uname -r)
if ((major < 5 || (major == 5 && minor < 15))); then
    problems+=("a kernel of 5.15 or newer: this is $(uname -r)")
fi
[[ -e /sys/kernel/btf/vmlinux ]] || problems+=("the kernel's type information (CONFIG_DEBUG_INFO_BTF): /sys/kernel/btf/vmlinux is missing")
grep -qw cgroup2 /proc/mounts || problems+=("a mounted cgroup v2: mount -t cgroup2 none /sys/fs/cgroup/unified")
grep -qw bpf /proc/filesystems || problems+=("bpffs (CONFIG_BPF_SYSCALL)")
if ! grep -qw overlay /proc/filesystems && ! modprobe overlay 2>/dev/null; then
    problems+=("overlayfs (modprobe overlay)")
fi

if ((${#problems[@]} > 0)); then
    echo "This machine can't run a lab. It lacks:" >&2
    printf '  - %s\n' "${problems[@]}" >&2
    exit 1
fi
