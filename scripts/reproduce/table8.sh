#!/usr/bin/env bash
# Table 8: weight of the consistency loss. Scenes, folders and flags: _table.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_table.sh" table8 "$@"
