"""``momentum-gs eval``: score rendered views and print one table over runs."""

import argparse
from pathlib import Path
from typing import Any

import torch

from momentum_gs.core.device import pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info
from momentum_gs.eval.lpips_metric import NETS, Lpips, LpipsMissing, load_lpips
from momentum_gs.eval.metrics import score_folder
from momentum_gs.eval.record import method_record, with_merge_gaps
from momentum_gs.eval.results import SPLITS, merge_json, read_json, result_files, write_json
from momentum_gs.eval.table import Row, compare

HELP = "score rendered views: PSNR, SSIM, LPIPS, raw, colour-corrected and fitted"
DESCRIPTION = """\
Reads the PNG pairs that 'momentum-gs render' (or any 3DGS program) wrote below OUT/<split>/ours_<N>, scores every one,
writes OUT/results.json and OUT/per_view.json, and prints one table over all runs given.

Each metric comes raw, as in the tables of 3DGS papers, and after colour correction to the ground truth (cc), as
Momentum-GS' paper has it. Fitted scores (fit) are of the right half of each view alone, after an affine correction of
colours that was fitted on its left half. Where 'momentum-gs render --covered' wrote maps, the pixels whose place at
least three training views see have a column of their own, with their share. None of these share a column. LPIPS is fed
[0,1] as in 3DGS (LPIPS_norm in results.json: [-1,1]). Its network comes from TORCH_HOME or is downloaded; where
it cannot be had, LPIPS is left out. Another network than vgg has its name in the metric's: LPIPS_alex.

Runs that were scored on other views, sizes or images get a table of their own. --compare scores nothing: it reads
the results.json of finished runs and refuses to put such runs into one table, unless --separate gives them one each.

  momentum-gs eval OUT
  momentum-gs eval OUT OUT/coarse OTHER --lpips alex --markdown table.md
  momentum-gs eval --compare OUT OTHER
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("outs", metavar="OUT", type=Path, nargs="+", help="output folders of runs")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which views (default: test)")
    parser.add_argument("--iteration", type=int, metavar="N", help="only the model of this iteration (default: all)")
    parser.add_argument(
        "--lpips",
        choices=(*NETS, "none"),
        default="vgg",
        help="network of LPIPS; published tables use vgg (default)",
    )
    parser.add_argument(
        "--lpips-weights", type=Path, metavar="FOLDER", help="folder with torchvision's file of that network"
    )
    parser.add_argument("--compare", action="store_true", help="score nothing, make the table from results.json")
    parser.add_argument("--separate", action="store_true", help="with --compare: one table for each protocol")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table as markdown")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def run(args: argparse.Namespace) -> None:
    """Scores the runs one after another; every run's files are written as soon as it is scored."""
    if args.compare:
        rows = [row for out in args.outs for row in _scored_rows(out, args.split, args.iteration)]
    else:
        folders = {out: _method_folders(out, args.split, args.iteration) for out in args.outs}
        device = pick_device(args.device)
        lpips = _lpips(args, device)
        rows = [row for out, methods in folders.items() for row in _score_run(out, args.split, methods, lpips, device)]
    # What has just been scored is shown in any case.
    separate = args.separate or not args.compare
    print(compare(rows, separate))
    if args.markdown is not None:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(compare(rows, separate, markdown=True) + "\n")


def _method_folders(out: Path, split: str, iteration: int | None) -> list[Path]:
    """OUT/<split>/ours_*, lowest iteration first. Raises UserError where there is none."""
    folders = [path for path in (out / split).glob("ours_*") if path.is_dir()]
    if iteration is not None:
        folders = [path for path in folders if _iteration(path.name) == str(iteration)]
    if not folders:
        wanted = "ours_*" if iteration is None else f"ours_{iteration}"
        raise UserError(f"{out / split}: no renders ({wanted}); run 'momentum-gs render {out} --split {split}' first")
    return sorted(folders, key=lambda path: (_iteration(path.name).zfill(12), path.name))


def _lpips(args: argparse.Namespace, device: torch.device) -> Lpips | None:
    if args.lpips == "none":
        return None
    try:
        return load_lpips(args.lpips, args.lpips_weights, device)
    except LpipsMissing as missing:
        info(f"eval: {missing}")
        return None


def _score_run(out: Path, split: str, folders: list[Path], lpips: Lpips | None, device: torch.device) -> list[Row]:
    results_file, per_view_file = result_files(out, split)
    results: dict[str, Any] = read_json(results_file)
    per_view: dict[str, Any] = {}
    for folder in folders:
        scores = score_folder(folder, lpips, device)
        results[folder.name] = method_record(out, folder, split, scores)
        per_view[folder.name] = scores.per_view
    write_json(results_file, with_merge_gaps(results))
    merge_json(per_view_file, per_view)
    # As the file has them, so that the table is the one that --compare makes later.
    results = read_json(results_file)
    return [Row(str(out), folder.name, results[folder.name]) for folder in folders]


def _scored_rows(out: Path, split: str, iteration: int | None) -> list[Row]:
    """What results.json holds. Raises UserError where that is nothing, or scores without a protocol."""
    path, _ = result_files(out, split)
    records = read_json(path)
    if iteration is not None:
        records = {name: record for name, record in records.items() if _iteration(name) == str(iteration)}
    if not records:
        wanted = "scores" if iteration is None else f"scores of ours_{iteration}"
        raise UserError(f"{path}: no {wanted}; run 'momentum-gs eval {out} --split {split}' first")
    for name, record in records.items():
        if "protocol" not in record:
            raise UserError(
                f"{path}: {name} does not say how it was scored, expected a protocol; run 'momentum-gs eval {out}'"
            )
    return [Row(str(out), name, record) for name, record in records.items()]


def _iteration(method: str) -> str:
    """'30' of ours_30 and ours_30_blocks; other programs' names may have none."""
    return (method.split("_") + [""])[1]
