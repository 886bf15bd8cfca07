#!/usr/bin/env bash
# How good is 'prepare'? The images of a scene alone go through it; then the scene with the poses that it came with
# and the prepared one are trained alike, each as a single block, and scored on the same held-out images.
#
#   bash scripts/prepare_caliterra.sh SCENE OUT [key=value ...]      settings of both trainings
#   PREPARE='--camera-model PINHOLE' ...                             flags of prepare
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
SCENE=$1 OUT=$2 SETTINGS=("${@:3}")
TRAIN=(momentum-gs train -c configs/caliterra.yaml -r 4 stage=coarse)

# shellcheck disable=SC2086  # flags are words
momentum-gs prepare "$SCENE/images" "$OUT/scene" ${PREPARE:-}
"${TRAIN[@]}" -s "$SCENE" -m "$OUT/supplied" ${SETTINGS[@]+"${SETTINGS[@]}"}
"${TRAIN[@]}" -s "$OUT/scene" -m "$OUT/prepared" ${SETTINGS[@]+"${SETTINGS[@]}"}
for run in supplied prepared; do
    momentum-gs render "$OUT/$run"
done
momentum-gs eval "$OUT/supplied" "$OUT/prepared" --markdown "$OUT/table.md" --lpips none
