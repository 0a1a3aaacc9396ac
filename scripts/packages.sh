#!/usr/bin/env bash
# Installs the Debian packages that a task needs and that are missing, and says which.
#
#   scripts/packages.sh build    what cargo needs besides Rust
#   scripts/packages.sh bpf      what bpf/build.sh needs besides
#   scripts/packages.sh lab      what the lab runs on
#   scripts/packages.sh demo     what the demo's pods run
#   scripts/packages.sh kernels  what boots other kernels
#   scripts/packages.sh charts   what checks the charts
#   scripts/packages.sh test     what tests run beside the lab
#   scripts/packages.sh kubernetes  what nodes of a real cluster need
#   scripts/packages.sh interop  what builds others' programs
#   scripts/packages.sh l7       what gets Envoy
#   scripts/packages.sh instructions  what counts instructions
#
# Several may be given. Services that come with a package are not started.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }

packages() {
    case $1 in
        build) echo gcc g++ libc6-dev ;;
        bpf) echo python3 ;;
        lab) echo iproute2 nftables tcpdump procps ;;
        demo) echo nginx-light postgresql redis-server redis-tools python3 python3-psycopg2 \
            python3-redis curl iperf3 ;;
        charts) echo python3 python3-venv golang-go ;;
        test) echo prometheus ;;
        interop) echo golang-go ;;
        kubernetes) echo containerd runc containernetworking-plugins nftables iproute2 procps util-linux openssl curl \
            python3 binutils golang-go ;;
        l7) echo python3 python3-venv ;;
        instructions) echo valgrind ;;
        kernels) echo qemu-system-x86 busybox-static cpio kmod xz-utils python3 ;;
        *) say "packages.sh: no such task: $1"; exit 2 ;;
    esac
}

# present PACKAGE: whether it, or what stands for it, is installed.
present() {
    case $1 in
        # Any flavour of nginx will do.
        nginx-light) [[ -x /usr/sbin/nginx ]] ;;
        gcc) type -P cc gcc >/dev/null && return ;;
        # Any version: scripts/go.sh gets the right one by it.
        golang-go) type -P go >/dev/null && return ;;
        *) [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null) == installed ]] ;;
    esac
}

missing=()
for task in "$@"; do
    for package in $(packages "$task"); do
        present "$package" || missing+=("$package")
    done
done
((${#missing[@]} > 0)) || exit 0

say "These Debian packages are missing: ${missing[*]}"
if ! type -P apt-get >/dev/null; then
    say "There is no apt-get here: install what stands for them on this system, then try again."
    exit 1
fi
if ((EUID != 0)); then
    say "Installing them needs root: sudo apt-get install ${missing[*]}"
    exit 1
fi

say "Installing them with apt-get ..."
# Debian starts services as they are installed; the pods bring their own.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { apt-get install --yes --no-install-recommends "${missing[@]}" ||
    { apt-get update && apt-get install --yes --no-install-recommends "${missing[@]}"; }; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    say "apt-get could not install: ${missing[*]} (the end of its output is above)"
    rm -f "$log"
    exit 1
fi
rm -f "$log"
