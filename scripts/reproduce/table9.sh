#!/usr/bin/env bash
# Table 9: momentum of the teacher. Scenes, folders and flags: _table.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_table.sh" table9 "$@"
