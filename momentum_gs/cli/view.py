"""``momentum-gs view``: shows runs, exports and running training in a browser."""

import argparse
import getpass
import os
import socket
import time
from pathlib import Path

from momentum_gs.core.device import print_device
from momentum_gs.core.log import info
from momentum_gs.viewer.companion import NICENESS, require_viser

HELP = "show runs, exports or a running training in a browser"
DESCRIPTION = """\
Serves a page that shows a run: its model, rendered exactly on this machine or as Gaussians by the browser, with cells
and their scores, cameras, sparse points and a grid. A click on a camera flies there and shows image, render and error
beside each other. Several runs can be flicked through with the key N.

  momentum-gs view OUT
  momentum-gs view OUT OTHER
  momentum-gs view model.ply --up=-y

The page is served to this machine only. From another one, forward the port over ssh; the command prints the line. With
--host, it is served to others as well, and its address holds a token without which nobody gets in. Ctrl-C ends it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("runs", metavar="OUT", type=Path, nargs="+", help="folder of a run, or a file of Gaussians")
    parser.add_argument("-s", "--source_path", metavar="SCENE", help="scene folder, if it was moved after training")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=8080, help="port to serve at; 0: any (default: %(default)s)")
    parser.add_argument("--up", default="z", metavar="AXIS",
        help="the axis of a file that points up: x, y, z, or with a minus (default: %(default)s)")
    parser.add_argument("--beside", type=int, metavar="PID", help=argparse.SUPPRESS)  # Of the training that started it.
    parser.add_argument("--device", help="auto, cpu or cuda (default: the run's own setting)")


def run(args: argparse.Namespace) -> None:
    """Serves until it is interrupted."""
    require_viser()
    # Here, as these import viser.
    from momentum_gs.viewer.run import open_run
    from momentum_gs.viewer.server import LOCAL, ViewerServer

    runs = [open_run(path, scene_path=args.source_path, device=args.device, up=args.up) for path in args.runs]
    print_device(runs[0].device_setting)
    with ViewerServer(runs, args.host, args.port) as server:
        info(f"view: {', '.join(run.name for run in runs)} at {server.url}")
        if args.host in LOCAL:
            info(
                f"view: served to this machine only; from another one: "
                f"ssh -L {server.port}:localhost:{server.port} {getpass.getuser()}@{socket.gethostname()}"
            )
        else:
            info("view: served to whoever reaches this address with its token; it is sent unencrypted")
        if args.beside is not None:
            os.nice(NICENESS)  # Only now: at this priority, starting takes minutes on a busy machine.
        while args.beside is None or server.sessions or _lives(args.beside):
            time.sleep(1)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # Sends nothing; asks whether there is such a process.
    except ProcessLookupError:
        return False
    return True
