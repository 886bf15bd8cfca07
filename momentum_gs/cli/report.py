"""``momentum-gs report``: writes an HTML page about a run."""

import argparse
from pathlib import Path

from momentum_gs.config.run import load_run_config
from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.log import info
from momentum_gs.eval.published import guess_scene, scene_keys
from momentum_gs.eval.report import load_run, report_page
from momentum_gs.eval.results import SPLITS

HELP = "write a self-contained HTML page about a run"
DESCRIPTION = """\
Writes OUT/report.html from the files in OUT: scores beside published ones for the scene, a map of the blocks coloured
by PSNR, training curves, the worst and the best views with error maps, and the settings that differ from the defaults.
The page has no scripts and loads nothing else; it links to the pages in OUT/export. If files of the run are missing,
it gives the command that makes them. The published scene is recognized by the name of the scene folder, or named with
--scene.

  momentum-gs report OUT
  momentum-gs report OUT --scene rubble -o rubble.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("out", metavar="OUT", type=Path, help="output folder of a run")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="file to write (default: OUT/report.html)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which views (default: test)")
    parser.add_argument("--iteration", type=int, metavar="N", help="which model (default: the last)")
    parser.add_argument("--scene", choices=(*scene_keys(), "none"),
                        help="scene whose published numbers to show (default: by folder name)")  # fmt: skip
    parser.add_argument("--views", type=int, default=3, metavar="N",
                        help="number of worst and of best views to show (default: %(default)s)")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Writes the page."""
    if args.views < 0:
        raise UserError(f"report: --views is {args.views}, expected a count of at least 0")
    config = load_run_config(args.out)
    scene = args.scene or guess_scene(config.scene.path or "")
    target: Path = args.output or args.out / "report.html"
    found = load_run(args.out, config, args.split, args.iteration)
    text = report_page(found, None if scene == "none" else scene, args.views, target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part:
        part.write_text(text, encoding="utf-8")
    info(f"report: {len(text.encode()) / 2**20:.1f} MiB -> {target}")
