#!/bin/sh
# The papers' tables that take a GPU, one after another; what an earlier call left unfinished goes on:
#   sh results/reproduced/gpu.sh STORE OUT DATA_DIR
# STORE keeps the runs; OUT receives the tables and what stands behind them; DATA_DIR holds cifar10-jpeg, which stands in
# for CIFAR-10. LIMIT=9m interrupts each table after so long. DEVICE=cpu SCALE=short TABLES=fsp2017_cifar10_small shows
# on a CPU that it works.
set -eu
store=$1 out=$2 data=$3
mkdir -p "$out"
for table in ${TABLES:-at2017_cifar10 vid2019_cifar10 sp2019_cifar10 fsp2017_cifar10_small}; do
    asked="reproduce $table --data cifar10-jpeg --scale ${SCALE:-full}"
    timeout --signal INT "${LIMIT:-0}" python -m sweeps $asked --store "$store" --device "${DEVICE:-cuda}" \
        --data-dir "$data" || echo "$table: ended with code $?; call again to go on" >&2
    python -m sweeps $asked --store "$store" --no-train --format markdown --plot "$out/$table.png" > "$out/$table.md"
    python -m sweeps $asked --store "$store" --no-train --format csv > "$out/$table.csv"
    python -m sweeps export "$table" "$out/records" --store "$store"
done
