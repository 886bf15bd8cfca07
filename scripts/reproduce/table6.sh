#!/usr/bin/env bash
# Table 6: 4, 8 and 16 blocks. Scenes, folders and flags: _table.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_table.sh" table6 "$@"
