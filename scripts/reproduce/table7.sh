#!/usr/bin/env bash
# Table 7: blocks at once, alternating, alternating with momentum. Scenes, folders and flags: _table.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_table.sh" table7 "$@"
