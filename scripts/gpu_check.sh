#!/usr/bin/env bash
# Proof and figures on a GPU, in one call that may be cut and called again. Needs CUDA (nvcc, torch with CUDA, pytest)
# and no network.
#
#   bash scripts/gpu_check.sh                       all parts that 9 minutes allow, into output/gpu_check
#   bash scripts/gpu_check.sh --minutes 25 --out FOLDER --wheels FOLDER --scene COLMAP_SCENE
#   bash scripts/gpu_check.sh --only tests,kernels  these parts, again if they are done
#   bash scripts/gpu_check.sh --rehearse            the same commands on a CPU, with small loads and the CUDA emulator
#
# --out     also $OUT: gpu_check.json, gpu_check.md, and gpu_check.log with what the programs printed
# --wheels  Python packages that the machine lacks, as wheels for its Python: plyfile, beartype; gsplat to compare with
# --scene   a COLMAP scene to train on beside the synthetic city
# --state   where finished parts, builds and runs are kept from call to call (default build/gpu_check)
# PYTHON    the Python to use (default: .venv/bin/python if it is there, else python3)
#
# A call goes on where the last one ended: finished parts are kept, others run again. scripts/gpu/check.py lists them.
set -euo pipefail
shopt -s nullglob extglob
cd "$(dirname "${BASH_SOURCE[0]}")/.."

state=build/gpu_check
wheels=
rest=()
while (($#)); do
    case $1 in
        -h | --help) awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; exit ;;
        --state) state=$2; shift 2 ;;
        --wheels) wheels=$2; shift 2 ;;
        *) rest+=("$1"); shift ;;
    esac
done
mkdir -p "$state"
state=$(cd "$state" && pwd)
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || command -v python3)}

# gsplat goes elsewhere: it compiles its kernels when it is first used, which only the part that compares waits for.
install() {
    local site=$1
    shift
    if (($#)) && [[ ! -e $site ]]; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site.part" "$@"
        mv "$site.part" "$site"
    fi
}
if [[ -n $wheels ]]; then
    install "$state/site" "$wheels"/!(gsplat-*).whl
    install "$state/site_gsplat" "$wheels"/gsplat-*.whl
fi

export PYTHONUNBUFFERED=1 PYTHONPATH="$state/site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" scripts/gpu/check.py --state "$state" "${rest[@]+"${rest[@]}"}"
