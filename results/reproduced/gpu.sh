#!/bin/sh
# The papers' tables that take a GPU, one after another; what an earlier call left unfinished goes on:
#   sh results/reproduced/gpu.sh STORE OUT DATA_DIR
# STORE keeps the runs; OUT receives the tables and what stands behind them; DATA_DIR holds cifar10-jpeg, which stands in
# for CIFAR-10. LIMIT=9m interrupts each table after so long. DEVICE=cpu SCALE=short TABLES=fsp2017_cifar10_small shows
# on a CPU that it works.
set -eu
store=$1 out=$2 data=$3
mkdir -p "$out"

# keep NAME COMMAND: what the command prints becomes OUT/NAME once it has ended well; else what was there stays.
keep() {
    name=$1
    shift
    if "$@" > "$out/.$name.tmp"; then
        mv "$out/.$name.tmp" "$out/$name"
    else
        rm -f "$out/.$name.tmp"
        echo "$name: not written" >&2
    fi
}

for table in ${TABLES:-at2017_cifar10 vid2019_cifar10 sp2019_cifar10 fsp2017_cifar10_small}; do
    asked="reproduce $table --data cifar10-jpeg --scale ${SCALE:-full}"
    timeout --signal INT "${LIMIT:-0}" python -m kdbench.sweeps $asked --store "$store" --device "${DEVICE:-cuda}" \
        --data-dir "$data" || echo "$table: ended with code $?; call again to go on" >&2
    keep "$table.md" python -m kdbench.sweeps $asked --store "$store" --no-train --format markdown
    keep "$table.csv" python -m kdbench.sweeps $asked --store "$store" --no-train --format csv
    python -m kdbench.sweeps $asked --store "$store" --no-train --plot "$out/$table.png" > /dev/null ||
        echo "$table: no plot yet" >&2
    python -m kdbench.sweeps export "$table" "$out/evidence" --store "$store" || echo "$table: not exported" >&2
done
