#!/usr/bin/env bash
# The real drone scene end to end, n = 4 blocks (2 x 2), k = 2: coarse (= single block), partition, blocks on RANKS
# processes, merge, render (merged model, and the blocks before merging), scores of all.
#
#   bash scripts/caliterra.sh SCENE OUT [RANKS] [key=value ...]      settings of the block stage
#   COARSE=OUT/coarse of another run saves training it again
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
SCENE=$1 OUT=$2 RANKS=${3:-1} SETTINGS=("${@:4}") COARSE=${COARSE:-$2/coarse}
CONFIG=configs/caliterra.yaml

[ -e "$COARSE/point_cloud" ] || momentum-gs train -c $CONFIG -s "$SCENE" -m "$COARSE" stage=coarse
momentum-gs partition "$SCENE" -c $CONFIG -m "$OUT" "partition.coarse=$COARSE"
torchrun --standalone --nproc_per_node="$RANKS" -m momentum_gs train -c $CONFIG -s "$SCENE" -m "$OUT" \
    ${SETTINGS[@]+"${SETTINGS[@]}"}
momentum-gs merge "$OUT"
momentum-gs render "$OUT"
momentum-gs render "$OUT" --blocks
momentum-gs render "$COARSE"
momentum-gs eval "$OUT" "$COARSE" --markdown "$OUT/table.md" --lpips "${LPIPS:-vgg}"
for run in "$COARSE stage=coarse" "$OUT"; do
    # shellcheck disable=SC2086  # two words on purpose
    momentum-gs bench step -c $CONFIG -s "$SCENE" -m $run
done
