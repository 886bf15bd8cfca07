#!/usr/bin/env bash
# Length of a round, without and with momentum. Scenes, folders and flags: _table.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_table.sh" rounds "$@"
