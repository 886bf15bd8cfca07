#!/usr/bin/env bash
# The law of the unit, at length: the demo city in other units, at another place and turned by 90 degrees trains to the
# same model, bit for bit. Prints the SHA-256 of each model's file; they are all equal.
#
#   bash scripts/units.sh OUT [key=value ...]
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -d "$repository/.venv/bin" ] && PATH="$repository/.venv/bin:$PATH"
out=$1
shift
mkdir -p "$out"

momentum-gs synth "$out/s1" --blocks-x 4 --blocks-y 4 --views 80 --size 240x180
move() { python "$repository/scripts/move_scene.py" "$out/s1" "$out/$1" "${@:2}"; }
move s1024 --scale 1024
move s16th --scale 0.0625
move s20th --scale 0.05
move s1000 --scale 1000
move shifted --shift=1e6,-1e6,1e6
move turned --quarter-turns 1
for scene in s1 s1024 s16th s20th s1000 shifted turned; do
    momentum-gs train -c "$repository/configs/own.yaml" -s "$out/$scene" -m "$out/run_$scene" stage=coarse \
        log.tensorboard=false "$@"
    sha256sum "$out/run_$scene"/point_cloud/*/point_cloud.ply
done
