#!/bin/sh
# The speed figures of a GPU, in one go:
#   sh results/speed/gpu.sh OUT DATA_DIR [CHECKOUT_OF_REPDISTILLER]
# OUT receives the figures; DATA_DIR holds cifar10-jpeg. DEVICE=cpu ROUNDS=3 BATCHES=40 EPOCHS=1 shows on a CPU that it works.
set -eu
out=$1 data=$2 rival=${3:-}
device=${DEVICE:-cuda}
mkdir -p "$out"
python -m kdbench.bench.speed --device "$device" --students 8 --rounds "${ROUNDS:-10}" --batches "${BATCHES:-1200}" \
    ${rival:+--repdistiller "$rival"} ${NO_COMPILE:+--no-compile} --output "$out/$device.json"
# WRN-16-1 for 200 epochs on 45,000 images: the target is 60 s for 50,000
python -m kdbench.sweeps run --method student --student wrn_16_1 --data cifar10-jpeg --data-dir "$data" --device "$device" \
    --epochs "${EPOCHS:-200}" --recipe batch_size=128 --recipe lr=0.1 --recipe "milestones=[0.3,0.6,0.8]" \
    --recipe decay=0.2 --store "$out/store" --json > "$out/wrn_16_1_$device.json"
