#!/usr/bin/env bash
# The explicit baseline on a scene: coarse 3DGS -> partition -> 3DGS in every block, from the coarse model -> crop and
# join -> render -> scores (docs/baseline_3dgs.md).
#
#   bash scripts/baseline_3dgs.sh SCENE OUT [CONFIG]          CONFIG: the scene's settings (default: configs/base.yaml)
#   RANKS=4 bash scripts/baseline_3dgs.sh SCENE OUT configs/scenes/rubble.yaml
set -euo pipefail
if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    echo "usage: baseline_3dgs.sh SCENE OUT [CONFIG]" >&2
    exit 2
fi
SCENE=$1 OUT=$2
ROOT=$(cd "$(dirname "$0")/.." && pwd)
SETTINGS=(-c "${3:-$ROOT/configs/base.yaml}" -c "$ROOT/configs/modes/gaussians.yaml" -s "$SCENE")
PATH="$ROOT/.venv/bin:$PATH"

momentum-gs train "${SETTINGS[@]}" -m "$OUT/coarse" stage=coarse
momentum-gs partition "$SCENE" "${SETTINGS[@]:0:4}" -m "$OUT"
if [ "${RANKS:-1}" -gt 1 ]; then
    torchrun --standalone --nproc_per_node="$RANKS" -m momentum_gs train "${SETTINGS[@]}" -m "$OUT"
else
    momentum-gs train "${SETTINGS[@]}" -m "$OUT"
fi
momentum-gs merge "$OUT"
momentum-gs render "$OUT"
momentum-gs render "$OUT" --blocks
momentum-gs render "$OUT/coarse"
momentum-gs eval "$OUT" "$OUT/coarse" --markdown "$OUT/table.md"
