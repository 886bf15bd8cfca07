#!/usr/bin/env bash
# Block weights of several strengths and what they do to the worst block. Scenes, folders and flags: _table.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_table.sh" weights "$@"
