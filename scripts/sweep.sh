#!/usr/bin/env bash
# A table of experiments that differ in a few settings: 'momentum-gs sweep' with the environment of this checkout.
#
#   bash scripts/sweep.sh configs/sweeps/table7.yaml -s SCENE -m OUT -c configs/ablations/city.yaml --seeds 0,1,2
#   bash scripts/sweep.sh --help
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
if [[ -z ${PYTHON:-} && -x $root/.venv/bin/python ]]; then python=$root/.venv/bin/python; fi
exec "$python" -m momentum_gs sweep "$@"
