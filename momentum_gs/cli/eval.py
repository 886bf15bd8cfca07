"""``momentum-gs eval``: score rendered views and print one table over runs."""

import argparse
from pathlib import Path
from typing import Any

import torch

from momentum_gs.core.device import pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import say
from momentum_gs.eval.lpips_metric import NETS, Lpips, LpipsMissing, load_lpips
from momentum_gs.eval.metrics import score_folder
from momentum_gs.eval.results import SPLITS, code_version, config_hash, merge_json, read_json, result_files
from momentum_gs.eval.table import Row, format_table

HELP = "score rendered views: PSNR, SSIM, LPIPS, raw and colour-corrected"
DESCRIPTION = """\
Reads the PNG pairs that 'momentum-gs render' (or any 3DGS program) wrote below OUT/<split>/ours_<N>, scores every one,
writes OUT/results.json and OUT/per_view.json, and prints one table over all runs given.

Each metric comes raw, as the 3DGS family's tables have it, and after colour correction to the ground truth (cc), as
Momentum-GS' paper has it: the two never share a column. LPIPS is fed [0,1] like the family's (LPIPS_norm in
results.json: [-1,1]). Its network comes from TORCH_HOME or is downloaded; where it cannot be had, LPIPS is left out.

  momentum-gs eval OUT
  momentum-gs eval OUT OUT/coarse OTHER --lpips alex --markdown table.md
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("outs", metavar="OUT", type=Path, nargs="+", help="output folders of runs")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which views (default: test)")
    parser.add_argument("--iteration", type=int, metavar="N", help="only the model of this iteration (default: all)")
    parser.add_argument(
        "--lpips",
        choices=(*NETS, "none"),
        default="vgg",
        help="network of LPIPS; the family's tables use vgg (default)",
    )
    parser.add_argument(
        "--lpips-weights", type=Path, metavar="FOLDER", help="folder with torchvision's file of that network"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table as markdown")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def run(args: argparse.Namespace) -> None:
    """Scores the runs one after another; every run's files are written as soon as it is scored."""
    folders = {out: _method_folders(out, args.split, args.iteration) for out in args.outs}
    device = pick_device(args.device)
    lpips = _lpips(args, device)
    rows = [row for out, methods in folders.items() for row in _score_run(out, args.split, methods, lpips, device)]
    print(format_table(rows))
    if args.markdown is not None:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(format_table(rows, markdown=True) + "\n")


def _method_folders(out: Path, split: str, iteration: int | None) -> list[Path]:
    """OUT/<split>/ours_*, lowest iteration first. Raises UserError where there is none."""
    folders = [path for path in (out / split).glob("ours_*") if path.is_dir()]
    if iteration is not None:
        folders = [path for path in folders if path.name.split("_")[1] == str(iteration)]
    if not folders:
        wanted = "ours_*" if iteration is None else f"ours_{iteration}"
        raise UserError(f"{out / split}: no renders ({wanted}); run 'momentum-gs render {out} --split {split}' first")
    return sorted(folders, key=lambda path: (path.name.split("_")[1].zfill(12), path.name))


def _lpips(args: argparse.Namespace, device: torch.device) -> Lpips | None:
    if args.lpips == "none":
        return None
    try:
        return load_lpips(args.lpips, args.lpips_weights, device)
    except LpipsMissing as missing:
        say(f"eval: {missing}")
        return None


def _score_run(out: Path, split: str, folders: list[Path], lpips: Lpips | None, device: torch.device) -> list[Row]:
    results: dict[str, Any] = {}
    per_view: dict[str, Any] = {}
    rows = []
    for folder in folders:
        scores = score_folder(folder, lpips, device)
        record = read_json(folder / "render.json")
        protocol = {
            "split": split,
            **scores.protocol,
            "anchors": record.get("anchors"),
            "views_per_second": record.get("views_per_second"),
            "peak_memory_bytes": record.get("peak_memory_bytes"),
            "config_sha256": record.get("config_sha256") or config_hash(out),
            "rendered_by": record.get("code"),
            "scored_by": code_version(),
        }
        results[folder.name] = {**scores.mean, "protocol": protocol}
        per_view[folder.name] = scores.per_view
        rows.append(Row(str(out), folder.name, scores.mean, protocol))
    for path, entries in zip(result_files(out, split), (results, per_view), strict=True):
        merge_json(path, entries)
    return rows
