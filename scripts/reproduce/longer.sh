#!/usr/bin/env bash
# Table 7 with four times the steps. Scenes, folders and flags: _table.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_table.sh" longer "$@"
