#!/usr/bin/env bash
# Table 4: block weights by PSNR, by SSIM, by both. Scenes, folders and flags: _table.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/_table.sh" table4 "$@"
