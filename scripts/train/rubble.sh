#!/usr/bin/env bash
# Rubble (Mill19): bash scripts/train/rubble.sh [GPUS] [key=value ...]; DATA and OUT as in _run.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_run.sh" rubble mill19/rubble-pixsfm "$@"
