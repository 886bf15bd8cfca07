#!/usr/bin/env bash
# Compiles every CUDA source with nvcc for sm_80 and sm_90, warnings being errors, and prints what each kernel takes.
# Needs no GPU and no torch with CUDA; where nvcc is missing it says so and succeeds.
#
#   bash scripts/compile_cuda.sh                all sources as two units, which takes a quarter of the time
#   bash scripts/compile_cuda.sh NAME...        only sources whose path contains one of the names, each alone
#   ARCHS="80" NVCC_JOBS=1 bash scripts/compile_cuda.sh
#
# What has once compiled is not compiled again until it, a header beside it, nvcc or torch changes (.venv/stamps).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
ARCHS=${ARCHS:-80 90}
JOBS=${NVCC_JOBS:-2}

nvcc=$(command -v nvcc || true)
if [[ -z $nvcc && -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]; then nvcc=${CUDA_HOME:-/usr/local/cuda}/bin/nvcc; fi
if [[ -z $nvcc ]]; then
    echo "compile_cuda: no nvcc; the CUDA sources were not compiled"
    exit 0
fi

{ read -r torch_version; read -r torch_include; read -r python_include; } < <("$VENV/bin/python" - <<'PY'
import sysconfig
from pathlib import Path

import torch

print(torch.__version__, Path(torch.__file__).parent / "include", sysconfig.get_paths()["include"], sep="\n")
PY
)
flags=(-std=c++20 -O3 -Xcompiler -fPIC --expt-relaxed-constexpr -Werror all-warnings -Xptxas -v
    -DC10_CUDA_NO_CMAKE_CONFIGURE_FILE  # a header that torch for CPUs does not carry
    -isystem "$torch_include" -isystem "$torch_include/torch/csrc/api/include" -isystem "$python_include")
for arch in $ARCHS; do flags+=(-gencode "arch=compute_$arch,code=sm_$arch"); done

stamps=$VENV/stamps/cuda
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$stamps"

# One line a kernel and architecture from what ptxas says on stdin: architecture, registers, spills, shared, kernel.
table() {
    c++filt | awk '
        /Compiling entry function/ { split($0, part, "\047"); kernel = part[2]; arch = part[4] }
        /bytes stack frame/ { stack = $1; spills = $5 + $9 }
        /Used [0-9]+ registers/ {
            shared = 0
            for (i = 2; i <= NF; ++i) {
                if ($i == "registers,") registers = $(i - 1)
                if ($i ~ /^smem/) shared = $(i - 2)
            }
            name = kernel
            sub(/^void /, "", name)
            gsub(/\(anonymous namespace\)::/, "", name)
            sub(/\([^()]*(\([^()]*\)[^()]*)*\)( const)?$/, "", name)
            if (name !~ /^cub::/)
                printf "  %-6s %4d registers %6d B spilled %6d B stack %6d B shared  %s\n", arch, registers, spills, stack, shared, name
        }'
}

# digest_of SOURCE...: of all that the result for these sources depends on.
digest_of() {
    {
        find "${@%%/cuda/*}" -type f \( -name '*.h' -o -name '*.cuh' \) -print0 | LC_ALL=C sort -zu |
            xargs -0 sha256sum
        sha256sum "$@"
        "$nvcc" --version
        echo "$torch_version ${flags[*]} $(declare -f table)"
    } | sha256sum | cut -d' ' -f1
}

# check NAME SOURCE...: compiles the sources as one unit, unless the stamp NAME is good: most of the time is spent on
# torch's headers, which are then read once. The report goes to the screen and is kept as the stamp. Sources that do not
# compile together may only have names in common, so each is then compiled alone. (tests/cuda_emulator compiles each
# alone always, and so finds one that does not include what it needs.)
check() {
    local name=$1 made_from start source failed=0
    shift
    made_from=$(digest_of "$@")
    if [[ $(head -n 1 "$stamps/$name" 2>/dev/null) == "$made_from" ]]; then
        { echo "$(one_line "$@"): compiled before"; tail -n +3 "$stamps/$name"; } >"$work/$name.report"
        cat "$work/$name.report"
        return
    fi
    start=$(date +%s)
    for source in "$@"; do echo "#include \"$PWD/$source\""; done >"$work/$name.cu"
    if ! "$nvcc" -c "$work/$name.cu" -o "$work/$name.o" "${flags[@]}" >"$work/$name.log" 2>&1; then
        { echo "$(one_line "$@"): nvcc failed"; grep -v '^ptxas info' "$work/$name.log"; } >&2
        (($# > 1)) || return 1
        echo "$(one_line "$@"): each alone" >&2
        for source in "$@"; do check "$(stamp_of "$source")" "$source" || failed=1; done
        return $failed
    fi
    { echo "$(one_line "$@"): $(($(date +%s) - start)) s"; table <"$work/$name.log"; } >"$work/$name.report"
    { echo "$made_from"; cat "$work/$name.report"; } >"$work/$name.stamp"
    mv "$work/$name.stamp" "$stamps/$name"
    cat "$work/$name.report"
}

stamp_of() { echo "${1#submodules/}" | tr / _; }

# one_line SOURCE...: extension and name of each.
one_line() { local names=("${@#submodules/}"); echo "${names[@]/\/csrc\/cuda/}"; }

wanted() { local name; for name in "${@:2}"; do [[ $1 == *$name* ]] && return; done; return 1; }

failed=0
running=0
# start NAME SOURCE...: checks in the background; waits while JOBS others run.
start() {
    if ((running == JOBS)); then
        wait -n || failed=1
        running=$((running - 1))
    fi
    check "$@" &
    running=$((running + 1))
}
if (($# == 0)); then
    # Two units that take equally long.
    rasterizer=(submodules/diff-gaussian-rasterization/csrc/cuda/*.cu) others=()
    for source in submodules/*/csrc/cuda/*.cu; do
        [[ " ${rasterizer[*]} " == *" $source "* ]] || others+=("$source")
    done
    start rasterizer "${rasterizer[@]}"
    start others "${others[@]}"
else
    for source in submodules/*/csrc/cuda/*.cu; do
        if wanted "$source" "$@"; then start "$(stamp_of "$source")" "$source"; fi
    done
fi
while ((running > 0)); do
    wait -n || failed=1
    running=$((running - 1))
done
exit $failed
