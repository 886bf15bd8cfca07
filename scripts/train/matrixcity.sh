#!/usr/bin/env bash
# Small City, aerial (MatrixCity), with its block_all folders as train/ and val/: bash scripts/train/matrixcity.sh [GPUS] [key=value ...]; DATA and OUT as in _run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_run.sh" matrixcity matrix_city/aerial "$@"
