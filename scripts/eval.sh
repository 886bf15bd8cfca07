#!/usr/bin/env bash
# Renders and scores finished runs, of one scene or several, and prints one PSNR / SSIM / LPIPS table over all of them.
#
#   bash scripts/eval.sh RUN...                          the last model of every run, test views
#   LPIPS=none SPLIT=train bash scripts/eval.sh RUN...   LPIPS: vgg (default), alex, squeeze or none; SPLIT: test or train
#   BLOCKS=1 bash scripts/eval.sh RUN...                 also the blocks before their merge
#   MARKDOWN=table.md bash scripts/eval.sh RUN...        the table as a file, too
set -euo pipefail

if (($# == 0)); then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 2
fi
split=${SPLIT:-test}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
if [[ -z ${PYTHON:-} && -x $root/.venv/bin/python ]]; then python=$root/.venv/bin/python; fi

for run in "$@"; do
    "$python" -m momentum_gs render "$run" --split "$split"
    if [[ ${BLOCKS:-0} == 1 ]]; then "$python" -m momentum_gs render "$run" --split "$split" --blocks; fi
done
"$python" -m momentum_gs eval "$@" --split "$split" --lpips "${LPIPS:-vgg}" ${MARKDOWN:+--markdown "$MARKDOWN"}
