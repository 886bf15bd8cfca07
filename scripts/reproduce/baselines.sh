#!/usr/bin/env bash
# The method beside one block and beside explicit 3DGS in blocks. Scenes, folders and flags: _table.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_table.sh" baselines "$@"
