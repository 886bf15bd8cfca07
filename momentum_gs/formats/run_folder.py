"""Writes an imported model as the output folder of a run, which all other commands accept."""

from dataclasses import replace
from pathlib import Path

from momentum_gs.config.cfg_args import write_cfg_args
from momentum_gs.config.load import dump_config
from momentum_gs.config.run import out_folder
from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.data.frame import Frame, check_axes
from momentum_gs.data.scene import Scene
from momentum_gs.data.viewer_files import write_cameras_json, write_input_ply
from momentum_gs.formats.foreign import Foreign
from momentum_gs.formats.move import anchors_to_frame, splats_to_frame
from momentum_gs.formats.write import with_degree
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.io import save_decoder, save_model
from momentum_gs.model.splats import Model, Splats


def write_run(config: Config, foreign: Foreign, scene: Scene | None) -> tuple[Path, Model]:
    """Writes ``config.yaml``, ``cfg_args``, the model and its decoder, and with a scene what viewers read of it.

    The model is taken to the coordinates of the run, which are those of the scene's files unless ``scene.unit``,
    ``scene.offset`` or ``scene.axes`` say otherwise.

    Args:
        config: Settings of the run, with absolute paths.
        foreign: The model.
        scene: Its scene; None: not known yet.

    Returns:
        The folder of the model's files, and the model in the coordinates of the run.

    Raises:
        UserError: the folder already holds a model, or the coordinates need a scene and there is none.
    """
    out = out_folder(config)
    if (out / "point_cloud").exists() or (out / "config.yaml").exists():
        raise UserError(f"{out}: holds a run, expected a new folder for the imported model; choose another with -m")
    frame = scene.frame if scene is not None else _frame_without_scene(config)
    model, decoder = _moved(foreign, frame)
    if isinstance(model, Splats) and model.sh_degree != config.gaussians.sh_degree:
        model = with_degree(model, config.gaussians.sh_degree)
    recorded = frame.recorded(replace(config.scene, offset=frame.offset))
    config = replace(config, stage="coarse", steps=foreign.iteration, scene=recorded)
    folder = out / "point_cloud" / f"iteration_{foreign.iteration}"
    folder.mkdir(parents=True)
    save_model(folder / "point_cloud.ply", model)
    if decoder is not None:
        save_decoder(folder, decoder)
    if scene is not None:
        write_cameras_json(out / "cameras.json", scene)
        write_input_ply(out / "input.ply", scene.points)
    write_cfg_args(out, config)
    (out / "config.yaml").write_text(f"# imported: {foreign.about}\n{dump_config(config)}", encoding="utf-8")
    return folder, model


def _moved(foreign: Foreign, frame: Frame) -> tuple[Model, GaussianDecoder | None]:
    if isinstance(foreign.model, Splats):
        return splats_to_frame(foreign.model, frame), None
    assert foreign.decoder is not None, "anchors have a decoder"
    return anchors_to_frame(foreign.model, foreign.decoder, frame)


def _frame_without_scene(config: Config) -> Frame:
    """The coordinates that the settings give; without any, those of the scene's files, whatever the scene."""
    scene = config.scene
    if scene.unit == "auto":
        raise UserError(
            "import: scene.unit=auto without a scene, expected one from which to choose the coordinates; give it with "
            "-s SCENE"
        )
    if scene.axes is not None:
        check_axes(scene.axes)
    axes = scene.axes or ("x", "y", "z")
    return Frame(scene.offset or (0.0, 0.0, 0.0), scene.unit, axes, normalized=scene.axes is not None)
