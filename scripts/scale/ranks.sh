#!/usr/bin/env bash
# The number of processes does not change the model: k = 4 of 8 blocks of a small city, 500 steps each, by 1, 2 and 4
# processes of one thread. Prints a line for each run, compares the bits of all files, then times the all-reduce.
#   scripts/scale/ranks.sh FOLDER
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bash scripts/setup.sh
PATH="$(cd "${VENV:-.venv}/bin" && pwd):$PATH"
work=${1:?folder for everything}
export OMP_NUM_THREADS=1
settings=(-c configs/demo.yaml partition.blocks=8 blocks.active=4 log.tensorboard=false device=cpu)
scene=(-s "$work/scene")

[ -d "$work/scene" ] || momentum-gs synth "$work/scene" --blocks-x 4 --blocks-y 2 --views 96 --size 240x135
[ -d "$work/coarse/point_cloud" ] || momentum-gs train "${settings[@]}" "${scene[@]}" -m "$work/coarse" stage=coarse steps=500
momentum-gs partition "$work/scene" "${settings[@]}" -m "$work"
for ranks in 1 2 4; do
    out="$work/ranks_$ranks"
    mkdir -p "$out"
    cp "$work/partition.json" "$out"
    torchrun --standalone --nproc_per_node="$ranks" -m momentum_gs train "${settings[@]}" "${scene[@]}" -m "$out" steps=500
    (cd "$out/point_cloud/iteration_500" && sha256sum ./*.ply ./*.safetensors > "../../sums")
    cmp "$work/ranks_1/sums" "$out/sums" && echo "$ranks ranks: $(wc -l < "$out/sums") files, the same bits as with one"
done
for ranks in 2 4; do
    torchrun --standalone --nproc_per_node="$ranks" -m momentum_gs bench step "${settings[@]}" "${scene[@]}" -m "$work/ranks_1"
done
