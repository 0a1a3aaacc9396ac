#!/usr/bin/env bash
# Boots Debian's kernels in qemu and runs the redirection tests on each of them: the eBPF object
# loads, attaches and catches connections there, not only on the kernel of this machine.
#
#   tests/kernels/run.sh [SERIES...]      default: 6.1 6.12
#
# Emulated (no KVM needed): right for "does it work", useless for timing. Kernels are Debian
# packages, downloaded and unpacked below ${XDG_CACHE_HOME:-~/.cache}/seine-kernels, not installed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/seine-kernels
[ $# -gt 0 ] || set -- 6.1 6.12
# What this machine's tests need of a kernel beyond its built-in parts.
modules="veth sch_ingress cls_bpf af_packet dummy ipv6 nf_tables nft_chain_nat nft_masq tcp_diag inet_diag"
# A boot and the tests take some four minutes under emulation.
limit=${SEINE_KERNEL_TIMEOUT:-600}

say() { printf 'kernels: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

for tool in qemu-system-x86_64 busybox cpio depmod apt-get dpkg-deb cargo python3; do
    command -v $tool >/dev/null || die "$tool is missing; 'make test-kernels' installs it (qemu-system-x86 busybox-static cpio kmod)"
done

# Prints the folder with /boot and /lib of the newest cloud kernel of a series.
kernel() {
    local series=$1 package tree
    package=$(apt-cache search --names-only "^linux-image-${series//./\\.}\.[0-9.]+[-+].*-cloud-amd64$" |
        awk '{print $1}' | sort -V | tail -1)
    [ -n "$package" ] || die "apt offers no cloud kernel of series $series (apt-get update?)"
    tree=$cache/$package
    if [ ! -e "$tree/.complete" ]; then
        say "downloading $package"
        rm -rf "$tree" && mkdir -p "$tree"
        (cd "$tree" && apt-get download -q "$package" >&2 && dpkg-deb -x ./*.deb . && rm ./*.deb)
        touch "$tree/.complete"
    fi
    echo "$tree"
}

# Copies a program with the shared libraries it wants to the same paths below a folder.
with_libraries() {
    local program=$1 to=$2 library
    install -D "$program" "$to"
    for library in $(ldd "$program" | grep -o '/[^ ]*'); do
        install -D "$library" "$image$library"
    done
}

# Prints the module files that the named modules need, in the order in which they load.
module_files() {
    python3 - "$1" $modules <<'PY'
import pathlib, sys
folder, names = pathlib.Path(sys.argv[1]), sys.argv[2:]
depends = {}
for line in (folder / "modules.dep").read_text().splitlines():
    path, _, rest = line.partition(":")
    depends[path] = rest.split()
by_name = {pathlib.Path(p).name.split(".ko")[0].replace("-", "_"): p for p in depends}
seen = []
for name in names:
    path = by_name.get(name)
    if path is None:
        continue  # built in, or not in this kernel: the tests say what they lack
    for p in list(reversed(depends[path])) + [path]:
        if p not in seen:
            seen.append(p)
print("\n".join(seen))
PY
}

say "building the tests"
test=$(cd "$root" && cargo test -q --locked --workspace --test redirect --no-run --message-format=json |
    python3 -c 'import json,sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "redirect": print(message["executable"])')
[ -x "$test" ] || die "the redirection tests did not build"

failed=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for series in "$@"; do
    tree=$(kernel "$series")
    release=$(ls "$tree/lib/modules")
    image=$work/$series
    mkdir -p "$image"/{bin,proc,sys,dev,tmp,run,etc,modules}
    cp "$(command -v busybox)" "$image/bin/busybox"
    # depmod's list is made at installation, so make it here.
    depmod -b "$tree" "$release"
    number=0
    for file in $(module_files "$tree/lib/modules/$release"); do
        number=$((number + 1))
        case $file in
            *.xz) xz -dc "$tree/lib/modules/$release/$file" >"$image/modules/$(printf %03d $number).ko" ;;
            *) cp "$tree/lib/modules/$release/$file" "$image/modules/$(printf %03d $number).ko" ;;
        esac
    done
    with_libraries "$test" "$image/bin/redirect"
    for tool in ip nft; do
        path=$(command -v $tool || true)
        [ -z "$path" ] || with_libraries "$path" "$image/usr/sbin/$tool"
    done
    cat >"$image/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/bin HOME=/tmp
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf none /sys/fs/bpf
mount -t tmpfs none /tmp
mount -t tmpfs none /run
for module in /modules/*.ko; do insmod "$module" || echo "kernels: insmod $module failed"; done
ip link set lo up
echo "kernels: running on $(uname -r)"
cd /tmp
redirect --test-threads=1
echo "kernels: exit status $?"
poweroff -f
INIT
    chmod +x "$image/init"
    (cd "$image" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/$series.cpio.gz"
    say "booting $release"
    timeout "$limit" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 2048 -nographic -no-reboot \
        -kernel "$tree/boot/vmlinuz-$release" -initrd "$work/$series.cpio.gz" \
        -append "console=ttyS0 quiet panic=-1 net.ifnames=0" </dev/null 2>&1 | tr -d '\r' | tee "$work/$series.log" |
        grep --line-buffered -aE '^(test |running|kernels:|failures|thread|assert|SKIPPED)|panicked|left:|right:' || true
    if grep -aq '^kernels: exit status 0$' "$work/$series.log" &&
        ! grep -aq '^SKIPPED' "$work/$series.log"; then
        say "$release: passed"
    else
        say "$release: FAILED; the end of its console:"
        tail -n 40 "$work/$series.log" >&2
        failed=$((failed + 1))
    fi
done
echo "$(($# - failed)) passed, $failed failed"
[ "$failed" -eq 0 ]
