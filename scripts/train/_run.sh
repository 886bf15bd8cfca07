#!/usr/bin/env bash
# One scene from images to table: coarse -> partition -> blocks -> merge -> render -> eval.
#
#   _run.sh CONFIG SCENE [GPUS] [key=value ...]
#
# CONFIG  name of a file in configs/scenes, without .yaml
# SCENE   scene folder below $DATA, which holds the data sets (default: data)
# GPUS    processes that share the active blocks (default: 1); the model does not depend on it. At most blocks.active,
#         which is 4 in these files: for more GPUs add blocks.active=8
# OUT     output folder (default: output/CONFIG)
#
# Started again after an interruption it continues: finished steps are read back, training resumes at its checkpoint.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ -d "$repository/.venv/bin" ] && PATH="$repository/.venv/bin:$PATH"

name=$1
scene=${DATA:-data}/$2
gpus=${3:-1}
shift $(($# < 3 ? $# : 3))
config=$repository/configs/scenes/$name.yaml
out=${OUT:-output/$name}

resume() { # --resume where the run has a checkpoint
    if compgen -G "$1/checkpoint/step_*" >/dev/null; then echo --resume; fi
}

# The coarse model is one block, so one process trains it.
momentum-gs train -c "$config" -s "$scene" -m "$out/coarse" $(resume "$out/coarse") stage=coarse "$@"
[ -f "$out/partition.json" ] || momentum-gs partition "$scene" -c "$config" -m "$out" "$@"
torchrun --standalone --nproc_per_node="$gpus" -m momentum_gs \
    train -c "$config" -s "$scene" -m "$out" $(resume "$out") "$@"
momentum-gs merge "$out"
momentum-gs render "$out"
momentum-gs eval "$out"
