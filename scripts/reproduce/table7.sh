#!/usr/bin/env bash
# Table 7: blocks at once, by rounds, by rounds with momentum. Scenes, folders and flags: _table.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_table.sh" table7 "$@"
