#!/usr/bin/env bash
# Building (Mill19): bash scripts/train/building.sh [GPUS] [key=value ...]; DATA and OUT as in _run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_run.sh" building mill19/building-pixsfm "$@"
