"""``momentum-gs eval``: scores rendered views and prints one table over runs."""

import argparse
from pathlib import Path
from typing import Any

import torch

from momentum_gs.core.device import pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.eval.lpips_metric import NETS, Lpips, lpips_or_none
from momentum_gs.eval.metrics import score_folder
from momentum_gs.eval.record import method_record, with_merge_gaps
from momentum_gs.eval.results import SPLITS, merge_json, read_json, result_files, write_json
from momentum_gs.eval.table import Row, compare

HELP = "score rendered views: PSNR, SSIM, LPIPS; raw, colour-corrected and fitted"
DESCRIPTION = """\
Reads the PNG pairs that 'momentum-gs render' (or any 3DGS program) wrote below OUT/<split>/ours_<N>, scores each pair,
writes OUT/results.json and OUT/per_view.json, and prints one table over all given runs.

Each metric is given raw, as in the tables of 3DGS papers, and after colour correction to the ground truth (cc), as in
the Momentum-GS paper. Fitted scores (fit) are those of the right half of each view, after an affine colour correction
that was fitted on its left half. If 'momentum-gs render --covered' wrote maps, the pixels whose surface point at least
three training views see are also scored, in a column beside their share of the view. These kinds of scores never share
a column. LPIPS gets input in [0,1] as in 3DGS (LPIPS_norm in results.json: [-1,1]). The weights of its network are read
from TORCH_HOME or downloaded; if both fail, LPIPS is left out. Networks other than vgg are named in the metric:
LPIPS_alex.

Runs that were scored on different views, sizes or images get separate tables. --compare scores nothing: it reads the
results.json of scored runs and refuses to put such runs into one table, unless --separate is given.

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
        "--lpips-weights", type=Path, metavar="FOLDER", help="folder with torchvision's weights of that network"
    )
    parser.add_argument("--compare", action="store_true", help="score nothing; make the table from results.json")
    parser.add_argument("--separate", action="store_true", help="with --compare: one table per scoring protocol")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table as markdown")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def run(args: argparse.Namespace) -> None:
    """Scores the runs one after another, writing each run's files as soon as it is scored, and prints the table."""
    if args.compare:
        rows = [row for out in args.outs for row in _scored_rows(out, args.split, args.iteration)]
    else:
        folders = {out: _method_folders(out, args.split, args.iteration) for out in args.outs}
        device = pick_device(args.device)
        lpips = lpips_or_none(args.lpips, args.lpips_weights, device, "eval")
        rows = [row for out, methods in folders.items() for row in _score_run(out, args.split, methods, lpips, device)]
    # Runs that have just been scored are shown in any case.
    separate = args.separate or not args.compare
    print(compare(rows, separate))
    if args.markdown is not None:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(compare(rows, separate, markdown=True) + "\n")


def _method_folders(out: Path, split: str, iteration: int | None) -> list[Path]:
    """The folders OUT/<split>/ours_*, lowest iteration first. Raises UserError if there are none."""
    folders = [path for path in (out / split).glob("ours_*") if path.is_dir()]
    if iteration is not None:
        folders = [path for path in folders if _iteration(path.name) == str(iteration)]
    if not folders:
        wanted = "ours_*" if iteration is None else f"ours_{iteration}"
        raise UserError(f"{out / split}: no renders ({wanted}); run 'momentum-gs render {out} --split {split}' first")
    return sorted(folders, key=lambda path: (_iteration(path.name).zfill(12), path.name))


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
    # Read back, so that the table equals the one that --compare makes later.
    results = read_json(results_file)
    return [Row(str(out), folder.name, results[folder.name]) for folder in folders]


def _scored_rows(out: Path, split: str, iteration: int | None) -> list[Row]:
    """The entries of results.json. Raises UserError if there are none, or one has no protocol."""
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
                f"{path}: {name} has no 'protocol', expected how it was scored; run 'momentum-gs eval {out}'"
            )
    return [Row(str(out), name, record) for name, record in records.items()]


def _iteration(method: str) -> str:
    """The '30' of ours_30 and ours_30_blocks; '' for names of other programs without a second part."""
    return (method.split("_") + [""])[1]
