#!/usr/bin/env bash
# The main job, small, on this machine's own device: a synthetic city -> coarse model -> 4 blocks, 2 at a time, with
# the shared decoder, the momentum teacher and block weighting -> merge -> render -> scores. Minutes on two CPU cores.
#
#   bash scripts/demo.sh            result in output/demo
#   OUT=/tmp/demo RANKS=2 bash scripts/demo.sh
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
PATH="$PWD/.venv/bin:$PATH"

OUT=${OUT:-output/demo}
RANKS=${RANKS:-1}
CONFIG=configs/demo.yaml
if [ -e "$OUT" ]; then
    echo "demo: $OUT is there already; remove it, or choose another folder with OUT=..." >&2
    exit 2
fi

say() { printf '\n== %s\n' "$*"; }
say "1/6 a city, its images and its sparse points"
momentum-gs synth "$OUT/scene" --blocks-x 4 --blocks-y 4 --views 80 --size 240x180
say "2/6 coarse model of the whole scene"
momentum-gs train -c $CONFIG -s "$OUT/scene" -m "$OUT/coarse" stage=coarse
say "3/6 four blocks, and who sees them"
momentum-gs partition "$OUT/scene" -c $CONFIG -m "$OUT"
say "4/6 two of the four blocks at a time"
if [ "$RANKS" -gt 1 ]; then
    torchrun --standalone --nproc_per_node="$RANKS" -m momentum_gs train -c $CONFIG -s "$OUT/scene" -m "$OUT"
else
    momentum-gs train -c $CONFIG -s "$OUT/scene" -m "$OUT"
fi
say "5/6 merge and render"
momentum-gs merge "$OUT"
momentum-gs render "$OUT"
momentum-gs render "$OUT" --blocks
momentum-gs render "$OUT/coarse"
say "6/6 scores on the held-out views"
momentum-gs eval "$OUT" "$OUT/coarse" --markdown "$OUT/table.md"
python scripts/figures/side_by_side.py "$OUT" "$OUT/renders.png"
momentum-gs report "$OUT"

cat <<TEXT

Done. Look at
  $OUT/report.html         everything about the run on one page
  $OUT/renders.png         held-out views: ground truth, render, error
  $OUT/partition.png       the blocks from above, their cameras and points
  $OUT/test/ours_*/        every held-out view: renders/ beside gt/
  $OUT/point_cloud/        the model: point_cloud.ply (anchors) and the decoder
  $OUT/results.json        the scores;  $OUT/events.jsonl: the training (also: tensorboard --logdir $OUT)
TEXT
