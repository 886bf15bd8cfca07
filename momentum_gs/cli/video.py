"""``momentum-gs video``: renders a run along a camera path into a video."""

import argparse
from pathlib import Path

from momentum_gs.core.device import print_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info
from momentum_gs.viewer.camera_path import PATH_FILE, fly_through, load_path, orbit
from momentum_gs.viewer.image_renderer import COLOR, MODES
from momentum_gs.viewer.models import Models
from momentum_gs.viewer.run import open_run
from momentum_gs.viewer.video import write_video

HELP = "render a run along a camera path into a video"
DESCRIPTION = f"""\
Renders the newest model of a run along a path and writes .mp4, .webm (which browsers play) or .avi.

  momentum-gs video OUT -o orbit.mp4                     around the scene
  momentum-gs video OUT --fly-through -o flight.mp4      along the training cameras
  momentum-gs video OUT --path OUT/{PATH_FILE} -o tour.webm      key frames saved in 'momentum-gs view'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of a run, or a PLY of Gaussians")
    path = parser.add_mutually_exclusive_group()
    path.add_argument("--orbit", action="store_true", help="around the scene (default)")
    path.add_argument("--fly-through", action="store_true", help="along the training cameras, in the order of names")
    path.add_argument("--path", type=Path, metavar="FILE", help="key frames, a file of 'momentum-gs view'")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="video to write")
    parser.add_argument("--size", default="1280x720", metavar="WxH", help="pixels (default: %(default)s)")
    parser.add_argument("--fps", type=float, default=30.0, help="images per second (default: %(default)g)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="duration (default: %(default)g)")
    parser.add_argument("--colors", choices=MODES, default=COLOR, help="as in the viewer (default: %(default)s)")
    parser.add_argument("--up", default="z", metavar="AXIS", help="axis of a PLY that points up (default: %(default)s)")
    parser.add_argument("-s", "--source_path", metavar="SCENE", help="scene folder, if it was moved after training")
    parser.add_argument("--device", help="auto, cpu or cuda (default: the run's own setting)")


def run(args: argparse.Namespace) -> None:
    """Writes the video."""
    shown = open_run(args.out, scene_path=args.source_path, device=args.device, up=args.up)
    print_device(shown.device_setting)
    models = Models([shown])
    labels = models.labels(0)
    if not labels:
        raise UserError(f"{args.out}: no trained model (point_cloud/iteration_<N>); run 'momentum-gs train' first")
    made = fly_through if args.fly_through else orbit
    frames = made(shown) if args.path is None else load_path(args.path)
    count = write_video(
        models, labels[-1], frames, args.output, size=_size(args.size), fps=args.fps, seconds=args.seconds,
        mode=args.colors,
    )  # fmt: skip
    info(f"video: {count} images of {labels[-1]} -> {args.output}")


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"video: --size is {text!r}, expected WIDTHxHEIGHT, such as 1280x720")
    return int(width), int(height)
