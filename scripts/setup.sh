#!/usr/bin/env bash
# Makes the environment: .venv with torch, this package and its four compiled extensions. Run it as often as you like;
# it only does what is missing or has changed.
#
#   bash scripts/setup.sh                                             what training, rendering and scoring need
#   bash scripts/setup.sh --dev                                       also all extras, and what the tests need
#   PYTHON=python3.11 VENV=/somewhere/.venv bash scripts/setup.sh     another Python, another place
#   NATIVE=1 bash scripts/setup.sh                                    extensions for this very CPU alone
#   FORCE_CUDA=1 bash scripts/setup.sh                                with the GPU's part, or an error
#
# A torch >= 2.11 that is already there is kept, also one that PYTHON brings (as in the CUDA images). The program is
# installed as editable and the extensions as packages of their own, as copies (setup.py has the one wheel of all).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
TORCH=2.13.0
OLDEST_MINOR=11  # of torch 2, that was tried
LOCK=requirements-lock.txt
EXTENSIONS=(diff-gaussian-rasterization simple-knn fused-ssim anchor-decode)
export NATIVE=${NATIVE:-0}

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

dev=
case ${1:-} in
    --dev) dev=-dev ;;
    "") ;;
    *) fail "unknown word $1, expected --dev or nothing" ;;
esac

# version PYTHON PACKAGE: the installed version, or nothing.
version() {
    "$1" - "$2" <<'PY'
import importlib.metadata, sys
try:
    print(importlib.metadata.version(sys.argv[1]))
except importlib.metadata.PackageNotFoundError:
    pass
PY
}

# torch_of PYTHON: the version of a torch that we can keep, or nothing.
torch_of() {
    local found
    found=$(version "$1" torch)
    if [[ $found =~ ^([0-9]+)\.([0-9]+) ]] && ((BASH_REMATCH[1] > 2 || BASH_REMATCH[1] == 2 && BASH_REMATCH[2] >= OLDEST_MINOR)); then
        echo "$found"
    fi
}

pip_install() { "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

# What a finished step was made from lies in $VENV/stamps/NAME: up_to_date NAME FINGERPRINT, done_with NAME FINGERPRINT.
up_to_date() { [[ -n $(version "$VENV/bin/python" "${1%-dev}") && $(cat "$VENV/stamps/$1" 2>/dev/null) == "$2" ]]; }
done_with() { mkdir -p "$VENV/stamps" && echo "$2" >"$VENV/stamps/$1"; }
fingerprint() { sha256sum | cut -d' ' -f1; }

# --- Python ---
if [[ ! -x $VENV/bin/python ]]; then
    command -v "$PYTHON" >/dev/null || fail "no $PYTHON; install Python >= 3.10 or set PYTHON"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$PYTHON" --version), expected >= 3.10; set PYTHON to a newer one"
    see_system=()
    if [[ -n $(torch_of "$PYTHON") ]]; then see_system=(--system-site-packages); fi
    "$PYTHON" -m venv ${see_system[@]+"${see_system[@]}"} "$VENV" ||
        fail "$PYTHON cannot make a venv; on Debian and Ubuntu: apt-get install python3-venv"
    say "made $VENV with $("$VENV/bin/python" --version)"
fi

# --- torch ---
torch=$(torch_of "$VENV/bin/python")
if [[ -z $torch ]]; then
    pip_install "torch==$TORCH"
    torch=$(torch_of "$VENV/bin/python")
    say "torch $torch installed"
else
    say "torch $torch is there"
fi

# --- this package ---
# Constraints: the versions of the lock where Python and torch are the lock's. Elsewhere those of torch and torchvision,
# which would otherwise pull its own torch: torch 2.m.p goes with torchvision 0.(m+15).p.
[[ $torch =~ ^2\.([0-9]+)\.([0-9]+) ]] || fail "torch $torch, expected 2.x"
torchvision=0.$((BASH_REMATCH[1] + 15)).${BASH_REMATCH[2]}
made_from=$({ cat pyproject.toml setup.py "$LOCK"; echo "$torch $PWD"; } | fingerprint)
if up_to_date momentum-gs-dev "$made_from" || { [[ -z $dev ]] && up_to_date momentum-gs "$made_from"; }; then
    say "momentum-gs is up to date"
else
    constraints=$(mktemp)
    trap 'rm -f "$constraints"' EXIT
    python=$("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if [[ $(head -n 1 "$LOCK") == "# Python $python, torch ${torch%%+*}" ]]; then
        cat "$LOCK" >"$constraints"
    else
        installed=$(version "$VENV/bin/python" torchvision)
        printf 'torch==%s\ntorchvision==%s\n' "${torch%%+*}" "${installed:-$torchvision}" >"$constraints"
    fi
    extras=plot
    if [[ -n $dev ]]; then extras=eval,las,log,plot,sfm,dev; fi
    # torch, too, so that what it needs of the others (torch 2.11: setuptools<82) holds.
    pip_install -c "$constraints" "setuptools>=77" wheel ninja torch
    pip_install -c "$constraints" --no-build-isolation -e ".[$extras]"
    done_with "momentum-gs$dev" "$made_from"
    say "momentum-gs installed${dev:+, with what the tests need}"
fi

# --- the extensions ---
# Built from a copy inside the venv: two environments never share objects, and the checkout stays as it is.
export PATH="$(cd "$VENV/bin" && pwd):$PATH"  # ninja
machine=$(uname -m; echo "${FORCE_CUDA:-}"; command -v nvcc || true; grep -m1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null || true)
for name in "${EXTENSIONS[@]}"; do
    files=$(cd "submodules/$name" && find . -type f -not -path './build/*' -not -path '*/__pycache__/*' \
        -not -path './*.egg-info/*' -not -path './tests/*' -not -name '*.so' -not -name '*.md' | LC_ALL=C sort)
    made_from=$({ cd "submodules/$name" && sha256sum ../build_rules.py $files; echo "$torch $NATIVE $machine"; } | fingerprint)
    if up_to_date "$name" "$made_from"; then
        say "$name is up to date"
        continue
    fi
    command -v "${CXX:-g++}" >/dev/null || fail "no C++ compiler ${CXX:-g++}; on Debian and Ubuntu: apt-get install g++"
    start=$SECONDS
    mkdir -p "$VENV/src/$name"
    # Only the compiler's objects outlive a build: a file that the checkout no longer has must not be installed.
    find "$VENV/src/$name" -mindepth 1 -maxdepth 2 -not -name build -not -path '*/build/temp*' -exec rm -rf {} +
    tar -C submodules --exclude=build --exclude='*.egg-info' --exclude=__pycache__ --exclude='*.so' -cf - "$name" \
        build_rules.py | tar -C "$VENV/src" -xf -
    pip_install --no-build-isolation --no-deps --force-reinstall "$VENV/src/$name"
    done_with "$name" "$made_from"
    say "$name built in $((SECONDS - start)) s"
done
