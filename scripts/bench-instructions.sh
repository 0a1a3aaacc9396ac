#!/usr/bin/env bash
# Counts the instructions that two proxies spend on a round trip, a connection, a megabyte: the figures that don't move
# with what else the machine does. Each work is run twice with different counts, through the proxies and without them;
# the difference of the differences is what the proxies add. The kernel's part is not counted.
set -euo pipefail

cargo build --locked --release --package seine-hbone --example instructions
program=target/release/examples/instructions

# counted WAY WORK COUNT: instructions of a run.
counted() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" "$@" 2>&1 |
        awk '/Collected/ { print $NF }'
}

# each WAY WORK COUNT: instructions of one.
each() {
    local few many
    few=$(counted "$1" "$2" "$3")
    many=$(counted "$1" "$2" $(($3 * 3)))
    echo $(((many - few) / ($3 * 2)))
}

row() {
    local name=$1 way=$2 work=$3 count=$4
    printf '%-44s %10d\n' "$name" $(($(each "$way" "$work" "$count") - $(each direct "$work" "$count")))
}

echo "instructions, both proxies, without the kernel's"
row "round trip of 64 B" tunnel round-trips 2000
row "round trip of 64 B, 16 at once" tunnel round-trips-16 3200
row "new connection, warm tunnel, 1 B" tunnel connections 500
row "new connection, new tunnel, 1 B" fresh connections 20
row "MB, one stream" tunnel megabytes 32
