#!/usr/bin/env bash
# Everything that must hold before a change is done: lint, types, CUDA sources, tests.
#
#   bash scripts/test.sh [PYTEST ARGUMENT...]         all of it, as CI does
#   bash scripts/test.sh fast [PYTEST ARGUMENT...]    while editing: no CUDA sources, no tests with the marker 'slow'
#   WORKERS=4 bash scripts/test.sh                    with more processes than two
#
# Ends with what was skipped and why; a skip that tests/skip_table.py does not know is a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tier=all
if [[ ${1:-} == fast ]]; then
    tier=fast
    shift
fi

bash scripts/setup.sh --dev
PATH="$(cd "${VENV:-.venv}/bin" && pwd):$PATH"
# Compiled modules and rewritten tests are kept, also where the environment says otherwise (containers often do): 8 s of
# every worker.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$(cd "${VENV:-.venv}" && pwd)/pycache"

ruff check .
mypy
if [[ $tier == fast ]]; then
    set -- -m "not slow" "$@"
else
    bash scripts/docs.sh
    bash scripts/compile_cuda.sh
fi
# One run over the package's tests and those of every extension, so that the last line speaks for all of them. Two
# workers, and a file's tests in one of them, as they share what the first of them makes; in the order of conftest.py.
pytest -n "${WORKERS:-2}" --dist loadfile --no-loadscope-reorder --check-skips --durations=15 tests submodules/*/tests "$@"
