#!/usr/bin/env bash
# Everything that must hold before a change is done: lint, types, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/setup.sh
PATH="$(cd "${VENV:-.venv}/bin" && pwd):$PATH"

ruff check .
mypy
bash scripts/docs.sh
bash scripts/compile_cuda.sh
# One run over the package's tests and those of every extension, so that the last line speaks for all of them.
pytest --durations=15 tests submodules/*/tests "$@"
