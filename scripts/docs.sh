#!/usr/bin/env bash
# Builds the documentation into site/ (mkdocs.yml). Broken links, missing pages and missing references fail.
#
#   bash scripts/docs.sh             build
#   bash scripts/docs.sh serve       build anew on every change, http://127.0.0.1:8000
#
# The tools have an environment of their own, .venv-docs: they read the source and do not import it, so torch is not
# needed here and the main environment stays small.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
VENV=${DOCS_VENV:-.venv-docs}
# The versions of the extra 'docs' in pyproject.toml.
made_from=$(grep '^docs = \[' pyproject.toml)  # One line.
if [[ $(cat "$VENV/stamp" 2>/dev/null) != "$made_from" ]]; then
    "$PYTHON" -m venv "$VENV"
    readarray -t packages < <(grep -o '"[^"]*"' <<<"$made_from" | tr -d '"')
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
    echo "$made_from" >"$VENV/stamp"
fi

# The theme's notice on another program's future says nothing of this site.
export NO_MKDOCS_2_WARNING=1
if [[ ${1:-} == serve ]]; then
    exec "$VENV/bin/mkdocs" serve
fi
"$VENV/bin/mkdocs" build --strict  # Without --quiet, which hides warnings from --strict, too.
echo "docs: site/index.html"
