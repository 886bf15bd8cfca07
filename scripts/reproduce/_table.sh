#!/usr/bin/env bash
# One sweep of configs/sweeps on the scenes of docs/lab_log.md:
#
#   _table.sh SWEEP [flags and settings of 'momentum-gs sweep']      e.g. _table.sh table7 --seeds 0,1,2,3,4
#
# OUT        output folder (default: output/ablations); all tables of a scene share OUT/<scene>, and so their runs
# SCENES     which scenes (default: city, and caliterra where CALITERRA is set)
# CALITERRA  folder of the drone scene (docs/prepare_data.md); it is trained at -r 4
# JOBS       runs at a time (default: one for each GPU, on CPUs one)
# LPIPS      network: vgg (default), alex, squeeze or none
#
# Started again it goes on where it was broken off.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ -d "$root/.venv/bin" ] && PATH="$root/.venv/bin:$PATH"
sweep=$1
shift
out=${OUT:-output/ablations}

for scene in ${SCENES:-city ${CALITERRA:+caliterra}}; do
    case $scene in
    city)
        place=$out/city/scene
        # The list of held-out views is the last thing that synth writes.
        [ -f "$place/sparse/0/test.txt" ] || momentum-gs synth "$place" --blocks-x 4 --blocks-y 4 --views 160 --size 240x180
        ;;
    caliterra) place=${CALITERRA:?is the folder of the drone scene} ;;
    *) echo "reproduce: SCENES has '$scene', expected city or caliterra" >&2 && exit 2 ;;
    esac
    bash "$root/scripts/sweep.sh" "$root/configs/sweeps/$sweep.yaml" -s "$place" -m "$out/$scene" \
        -c "$root/configs/ablations/$scene.yaml" --lpips "${LPIPS:-vgg}" ${JOBS:+--jobs "$JOBS"} "$@"
done
