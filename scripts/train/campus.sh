#!/usr/bin/env bash
# Campus (UrbanScene3D): bash scripts/train/campus.sh [GPUS] [key=value ...]; DATA and OUT as in _run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_run.sh" campus urbanscene3d/campus "$@"
