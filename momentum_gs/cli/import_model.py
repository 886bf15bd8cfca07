"""``momentum-gs import``: makes a run of a model that another program trained."""

import argparse
import json
from pathlib import Path

from momentum_gs.cli.common import add_run_arguments, settings_of
from momentum_gs.core.geometry import in_any_view
from momentum_gs.core.log import info, warn
from momentum_gs.data.scene import load_scene
from momentum_gs.experiments.resolve import resolve
from momentum_gs.formats.foreign import read_foreign
from momentum_gs.formats.run_folder import write_run

HELP = "make a run of a model that another program trained"
DESCRIPTION = """\
Reads a model of another program and writes it as the output folder of a run, which 'render', 'eval' and the other
commands accept, and from which block training can start (partition.coarse). SOURCE is one of

  the output folder of Scaffold-GS or Momentum-GS    anchors with their decoder (opacity_mlp.pt, cov_mlp.pt, ...)
  the output folder of 3DGS or CityGaussian          explicit Gaussians
  a .ply, .compressed.ply, .splat, .spz or .sog      explicit Gaussians

No code of SOURCE is run. Its coordinates are those of the scene's files; with other ones (scene.unit=auto), the model
is converted to them. Background and image folder are taken from its cfg_args; key=value settings override them.

  momentum-gs import MODEL -m OUT -s SCENE                  then: momentum-gs render OUT; momentum-gs eval OUT
  momentum-gs import city.spz -m OUT -s SCENE scene.resolution=4
  momentum-gs import MODEL -m OUT/coarse -s SCENE scene.unit=auto       as the start of a block training in OUT
"""

_SAMPLE = 2000
"""Number of the model's rows whose visibility is tested, at most."""
_FEW = 0.1
"""Share of the model in view of any camera below which its coordinates are doubtful; floaters lie anywhere."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("source", metavar="SOURCE", type=Path, help="output folder or file of the other program")
    parser.add_argument("--iteration", type=int, default=-1, metavar="N", help="of a folder: point_cloud/iteration_N "
                        "(default: the last)")  # fmt: skip
    parser.add_argument("--appearance", type=int, metavar="I", help="of a model with an appearance code per image: the "
                        "code to keep (default: their mean)")  # fmt: skip
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Reads the model, takes it to the run's coordinates and writes the folder."""
    foreign = read_foreign(args.source, args.iteration, args.appearance)
    said = [f"{name}={json.dumps(value)}" for name, value in foreign.settings.items()]
    config, _ = resolve(args.config or (), [*said, *settings_of(args)])
    scene = None if config.scene.path is None else load_scene(config.scene)
    folder, model = write_run(config, foreign, scene)
    info(f"import: {len(model):,} {foreign.about} -> {folder}")
    if scene is None:
        info("import: no scene is known; give it with 'momentum-gs render OUT -s SCENE'")
        return
    sample = model.position.detach()[:: -(-len(model) // _SAMPLE)].double()
    seen = float(in_any_view(sample, [*scene.train, *scene.test]).double().mean())
    if seen < _FEW:
        warn(
            f"import: {seen:.0%} of the model is in view of the scene's cameras; it may have been trained in other "
            "coordinates, or on another scene"
        )
