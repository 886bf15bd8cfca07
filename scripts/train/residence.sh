#!/usr/bin/env bash
# Residence (UrbanScene3D): bash scripts/train/residence.sh [GPUS] [key=value ...]; DATA and OUT as in _run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_run.sh" residence urbanscene3d/residence "$@"
