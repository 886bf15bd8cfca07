#!/usr/bin/env bash
# Our changes to the paper's training, one at a time. Scenes, folders and flags: _table.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_table.sh" weights "$@"
