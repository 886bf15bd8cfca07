#!/usr/bin/env bash
# Sci-Art (UrbanScene3D): bash scripts/train/sciart.sh [GPUS] [key=value ...]; DATA and OUT as in _run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_run.sh" sciart urbanscene3d/sci-art "$@"
