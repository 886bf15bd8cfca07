"""``momentum-gs synth``: generates a procedural city and writes it as a COLMAP scene."""

import argparse
import re
import time
from pathlib import Path

from momentum_gs.core.log import info
from momentum_gs.data.synthetic.scene import CitySettings, write_city

HELP = "generate a procedural city and write it as a COLMAP scene"
DESCRIPTION = """\
Generates a city (streets, blocks of buildings, parks, trees, cars; one sun with shadows), renders images of it from the
poses of a drone survey (straight down, then obliquely in four directions) and writes them as a COLMAP scene:

  OUT/images/              JPEG
  OUT/sparse/0/            cameras, images and points3D as COLMAP writes them, and test.txt with the held-out images
  OUT/depths/              true depth, 16-bit PNG: metres of camera z = value * depth_scale, 0 where unknown
  OUT/reference.ply        points of the surfaces that the images show, for 'momentum-gs eval-mesh'
  OUT/synth.json           the settings, and depth_scale

The unit is the metre, z points up, the city is centred on the origin. The same settings give the same scene.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    default = CitySettings()
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; replaces an earlier synthetic city")
    parser.add_argument("--blocks-x", type=int, default=default.blocks_x, metavar="N",
                        help="city blocks along x, 56 m each (default %(default)s)")  # fmt: skip
    parser.add_argument("--blocks-y", type=int, default=default.blocks_y, metavar="M",
                        help="city blocks along y (default %(default)s)")  # fmt: skip
    parser.add_argument("--views", type=int, default=default.views, metavar="V",
                        help="number of images; every 8th is held out (default %(default)s)")  # fmt: skip
    parser.add_argument("--size", type=_size, default=(default.width, default.height), metavar="WxH",
                        help=f"size of an image in pixels (default {default.width}x{default.height})")  # fmt: skip
    parser.add_argument("--seed", type=int, default=default.seed, help="random seed of the city (default 0)")
    parser.add_argument("--force", action="store_true", help="write even into a folder that holds other files")


def run(args: argparse.Namespace) -> None:
    """Writes the scene and prints a summary."""
    width, height = args.size
    settings = CitySettings(
        blocks_x=args.blocks_x, blocks_y=args.blocks_y, views=args.views, width=width, height=height, seed=args.seed
    )
    start = time.perf_counter()
    points = write_city(args.out, settings, args.force)
    info(
        f"synth: {settings.views} views of {width}x{height} and {points} points of {settings.blocks_x}x"
        f"{settings.blocks_y} city blocks in {args.out} ({time.perf_counter() - start:.0f} s)"
    )


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, expected WIDTHxHEIGHT such as 320x240")
    return int(match[1]), int(match[2])
