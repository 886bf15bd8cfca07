#!/usr/bin/env bash
# Momentum in the scene's own unit and in the normalized one. Scenes, folders and flags: _table.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_table.sh" units "$@"
