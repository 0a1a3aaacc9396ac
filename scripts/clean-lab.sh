#!/usr/bin/env bash
# Ends every lab of this machine and removes what dead ones left: their processes, cgroups and
# state directories. Interfaces, rules and eBPF programs go with the processes.
set -uo pipefail

((EUID == 0)) || { echo "clean-lab needs root" >&2; exit 1; }
cgroups=$(findmnt --raw --noheadings --first-only --types cgroup2 --output TARGET)
for lab in "$cgroups"/seine-lab-*/; do
    [[ -d $lab ]] || continue
    echo "ending ${lab%/}"
    echo 1 >"$lab/cgroup.kill"
    for _ in {1..100}; do
        find "$lab" -depth -type d -exec rmdir {} + 2>/dev/null
        [[ -d $lab ]] || break
        sleep 0.1
    done
done
rm -rf /run/seine-lab
