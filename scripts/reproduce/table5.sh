#!/usr/bin/env bash
# Table 5: one block, independent blocks, a shared decoder, momentum, weighting. Scenes, folders and flags: _table.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_table.sh" table5 "$@"
