#!/usr/bin/env bash
# All tables, one after another. Scenes, folders and flags: _table.sh. A table with a failed run does not end the others.
status=0
for table in table4 table5 table6 table7 table8 table9 improvements weights baselines rounds longer units; do
    bash "$(dirname "${BASH_SOURCE[0]}")/_table.sh" "$table" "$@" || status=$?
    ((status < 128)) || exit "$status" # Interrupted.
done
exit "$status"
