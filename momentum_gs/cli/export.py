"""``momentum-gs export``: writes the model of a run as explicit Gaussians, for viewers and engines."""

import argparse
from pathlib import Path
from typing import Any

from momentum_gs.core.device import pick_device, print_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info
from momentum_gs.eval.lpips_metric import NETS, lpips_or_none
from momentum_gs.export.files import FORMATS
from momentum_gs.export.run import PAGE, Options, export_run, json_file

KINDS = (*FORMATS, PAGE.removeprefix("."))
HELP = "write the model as standard 3D Gaussians, and say what that costs"
DESCRIPTION = """\
Bakes anchors and decoder into explicit 3D Gaussians, which viewers and engines read, and writes them in the coordinates
of the scene's files. Colours become spherical harmonics, fitted to what the decoder gives for the training cameras that
see a Gaussian. Opacity, size and rotation become their means. Runs of explicit Gaussians are written as they are.

With --refine, the Gaussians then train against the model's renders and the images. Model and file are rendered for the
held-out views, and what was lost is printed and written to FILE.json (docs/export.md).

  momentum-gs export OUT                               OUT/export/gaussians.ply
  momentum-gs export OUT --refine 1000 --format ply,spz,html
  momentum-gs export OUT --format html                 a page to look at: OUT/export/gaussians.html
  momentum-gs export OUT --format spz                  small; also compressed.ply, splat, sog
  momentum-gs export OUT --lod                         levels of detail, for 'render OUT --budget N' and for streaming
  momentum-gs export OUT -o small.ply --sh 1 --max-gaussians 200000
  momentum-gs export OUT -o part.ply --blocks 3,5
  momentum-gs export OUT -o house.ply --crop=-10,-10,0,10,10,20 --y-up
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add = parser.add_argument
    add("out", metavar="OUT", type=Path, help="output folder of a run")
    add("--format", metavar="FORMAT,...", help=f"{', '.join(KINDS)}, or several of them, for which the "
        "model is baked once; html: a page that shows the model, opens from disk and needs no server (default: that of "
        "FILE's suffix, else ply)")  # fmt: skip
    add("-o", "--output", metavar="FILE", type=Path, help="file to write (default: OUT/export/gaussians.FORMAT)")
    add("--sh", type=int, choices=range(4), default=3, help="degree of the spherical harmonics (default: 3)")
    add("--refine", type=int, metavar="STEPS", default=0, help="train the baked Gaussians for so many steps (default: "
        "0); models of more than a million Gaussians in parts of a million, each for so many")  # fmt: skip
    add("--crop", metavar="X0,Y0,Z0,X1,Y1,Z1", help="only Gaussians in this box, in the coordinates of the scene's "
        "files; write --crop=-1,... if the first number is negative")  # fmt: skip
    add("--blocks", metavar="3,5", help="only Gaussians in the cells of these blocks")
    add("--max-gaussians", type=int, metavar="N", help="only the N Gaussians that contribute most to the images")
    add("--lod", action="store_true", help="also write levels of detail, for 'momentum-gs render OUT --budget N' and "
        "for viewers that stream; a PLY only")  # fmt: skip
    add("--no-background", action="store_true", help="leave out the far Gaussians that show a learned background; "
        "parts (--crop, --blocks) and pages have none")  # fmt: skip
    add("--y-up", action="store_true", help="rotate the scene so that y points up, as web viewers expect")
    add("--georeference", action="store_true",
        help="also write the scene's place on the Earth (scene.json) to FILE.json")  # fmt: skip
    add("--iteration", type=int, default=-1, metavar="N", help="model to export (default: the last)")
    add("--lpips", choices=(*NETS, "none"), default="none", help="also score LPIPS with this network (default: none)")
    add("--lpips-weights", type=Path, metavar="FOLDER", help="folder with torchvision's weights of that network")
    add("-s", "--source_path", metavar="SCENE", help="scene folder, if it was moved after training")
    add("--device", default="auto", help="auto, cpu or cuda (default: auto)")


def run(args: argparse.Namespace) -> None:
    """Exports one model and prints its price."""
    files = _files(args)
    for name, least in (("refine", 0), ("max_gaussians", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"export: --{name.replace('_', '-')} is {value}, expected at least {least}; correct it")
    names = ", ".join(file.name for file in files)
    if args.lod and (len(files) > 1 or files[0].suffix != ".ply" or names.endswith(".compressed.ply")):
        raise UserError(f"export: --lod with {names}, expected a PLY; leave out --format, or rename the file")
    crop = None if args.crop is None else _numbers("crop", args.crop, float)
    if crop is not None and len(crop) != 6:
        raise UserError(f"export: --crop is {args.crop}, expected six numbers: x0,y0,z0,x1,y1,z1")
    options = Options(
        sh_degree=args.sh,
        refine=args.refine,
        crop=crop,
        blocks=None if args.blocks is None else _numbers("blocks", args.blocks, int),
        max_gaussians=args.max_gaussians,
        y_up=args.y_up,
        georeference=args.georeference,
        lod=args.lod,
        shell=not args.no_background,
    )
    print_device(args.device)
    device = pick_device(args.device)
    records = export_run(
        args.out, files, options, device, iteration=args.iteration, scene_path=args.source_path,
        lpips=lpips_or_none(args.lpips, args.lpips_weights, device, "export"),
    )  # fmt: skip
    for file, record in zip(files, records, strict=True):
        info(_table(record))
        info(f"export: {file} and {json_file(file).name}")


def _files(args: argparse.Namespace) -> list[Path]:
    """The files to write; the suffix of each is one of the formats."""
    kinds = list(dict.fromkeys(args.format.split(","))) if args.format else []
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"export: --format is {args.format}, expected some of {', '.join(KINDS)}; correct {kind!r}")
    if args.output is None:
        return [Path(args.out) / "export" / f"gaussians.{kind}" for kind in kinds or KINDS[:1]]
    if len(kinds) > 1:
        raise UserError(f"export: -o {args.output} for {len(kinds)} formats, expected one; leave out -o")
    found = [kind for kind in KINDS if args.output.name.endswith(f".{kind}")]
    if not found or (kinds and kinds[0] not in found):
        wanted = args.format or ", ".join(KINDS)
        raise UserError(f"export: -o is {args.output}, expected a file that ends in .{wanted}; rename it")
    return [Path(args.output)]


def _numbers(name: str, text: str, kind: Any) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"export: --{name} is {text!r}, expected numbers separated by commas; correct it") from error


def _table(record: dict[str, Any]) -> str:
    """The price in a few lines."""
    names = list(record["model"])
    lines = [f"{record['views']} {record['split']} views  " + "".join(f"{name:>15}" for name in names)]
    rows = [("model", "model"), ("file", "export"), ("lost", "lost"), ("file on black", "export_on_black")]
    for title, row in rows:
        if record[row] is None:
            continue
        lines.append(f"  {title:<15}" + "".join(f"{record[row][name]:15.3f}" for name in names))
    size, seconds = record["bytes"] / 2**20, record["seconds"]["export"]
    lines.append(
        f"{record['gaussians']:,} Gaussians of {record['offsets']:,} offsets, {size:.1f} MiB, {seconds:.0f} s, "
        f"peak memory {record['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    if record["background_gaussians"]:
        lines.append(f"and {record['background_gaussians']:,} far Gaussians that show the background")
    lines += [
        f"  at most {level['budget']:,} Gaussians in a view: PSNR {level['PSNR']:.3f}, SSIM {level['SSIM']:.4f}, "
        f"{level['views_per_second']:.1f} views/s"
        for level in record.get("lod", [])
    ]
    return "\n".join(lines)
