#!/usr/bin/env bash
# Trains the single-block (coarse) model of a real scene until the held-out views pass a PSNR and an SSIM, and says
# when that was. The clock starts before the scene is read; scoring the held-out views is not counted.
#
#   bash scripts/time_to_quality.sh SCENE OUT [PSNR SSIM]
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
SCENE=$1 OUT=$2 PSNR=${3:-24.2} SSIM=${4:-0.791}
momentum-gs train -c configs/caliterra.yaml -s "$SCENE" -m "$OUT" stage=coarse \
    log.test_every=25 "log.stop_psnr_ssim=[$PSNR, $SSIM]" log.tensorboard=false
grep HeldOutScored "$OUT/events.jsonl"
