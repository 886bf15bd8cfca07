#!/usr/bin/env bash
# Builds the wheels: momentum-gs with everything in it, and the four kernels' packages for those who want only them.
# Install either the one or the four: they hold the same modules.
#
#   bash scripts/build_wheels.sh                                all five, to dist/
#   OUT=/tmp/w bash scripts/build_wheels.sh momentum-gs         only these, to another folder
#   NATIVE=1 bash scripts/build_wheels.sh                       for this very CPU instead of any with AVX2
#
# They are built by the Python of .venv (or PYTHON) for its torch; where that is a CUDA build and nvcc is there, with the
# GPU's part (FORCE_CUDA=1: or it is an error). Nothing is downloaded. Compiled objects are kept in BUILD.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "${OUT:=$root/dist}" "${BUILD:=$root/build/wheels}"
OUT=$(cd "$OUT" && pwd) BUILD=$(cd "$BUILD" && pwd)
python=${PYTHON:-python3}
if [[ -z ${PYTHON:-} && -x $root/.venv/bin/python ]]; then python=$root/.venv/bin/python; fi
PATH="$(dirname "$("$python" -c 'import sys; print(sys.executable)')"):$PATH"  # ninja
export PATH

names=("$@")
if (($# == 0)); then names=(momentum-gs diff-gaussian-rasterization simple-knn fused-ssim anchor-decode); fi
for name in "${names[@]}"; do
    folder=$root
    if [[ $name != momentum-gs ]]; then folder=$root/submodules/$name; fi
    [[ -f $folder/setup.py ]] || { echo "build_wheels: no package is called $name" >&2; exit 2; }
    mkdir -p "$BUILD/$name"
    rm -rf "$BUILD/$name"/lib* "$BUILD/$name"/bdist*  # What the checkout no longer has must not get into the wheel.
    printf '[build]\nbuild_base=%s\n' "$BUILD/$name" >"$BUILD/$name.cfg"
    DIST_EXTRA_CONFIG=$BUILD/$name.cfg "$python" -m pip wheel --quiet --disable-pip-version-check --no-index --no-deps \
        --no-build-isolation --wheel-dir "$OUT" "$folder"
    echo "build_wheels: $name -> $OUT"
done
