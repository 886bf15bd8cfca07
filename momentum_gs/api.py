"""The Python interface for notebooks and scripts: load a scene and a trained model, render a camera, score the image.

``import momentum_gs as mgs`` provides these names; torch is loaded on first use of one. docs/python.md has an example.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.config.load import config_from_dict, config_to_dict
from momentum_gs.config.run import load_run_config
from momentum_gs.config.schema import Config
from momentum_gs.core.device import pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.image import to_uint8
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.data import scene as scenes
from momentum_gs.data.scene import Scene
from momentum_gs.data.views import Views
from momentum_gs.eval import lpips_metric
from momentum_gs.eval.lpips_metric import Lpips
from momentum_gs.eval.metrics import score_pair
from momentum_gs.model import io
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.appearance import AppearanceTable, load_appearance
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.poses import PoseTable, load_poses
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render import view

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class TrainedModel:
    """A model from a file, on the device that renders it. Made by ``load_model``."""

    primitives: Anchors | Splats
    """Anchors, which a decoder turns into Gaussians for each view, or explicit Gaussians."""
    decoder: Decoder | Harmonics
    """The decoder of the anchors; for explicit Gaussians the degree of their spherical harmonics."""
    background: Float[Tensor, "3"]
    """RGB in [0, 1] behind everything; unused if the decoder has learned a background."""
    file: Path
    """The PLY file."""
    appearance: AppearanceTable | None = None
    """Colour corrections of the training images (``appearance.model``); None if the run learned none."""
    poses: PoseTable | None = None
    """Pose corrections of the training images (``optim.pose``); None if the run learned none."""

    def __len__(self) -> int:
        """Number of anchors or explicit Gaussians."""
        return len(self.primitives)


def load_scene(path: StrPath | None = None, *, run: StrPath | None = None, **settings: Any) -> Scene:
    """Read a scene: the posed training and held-out views, and the points. Images are read later, by ``load_image``.

    To render a trained model, use the cameras of ``load_scene(run=OUT)``: they are in the coordinates of the training,
    which differ from those of the scene's files if ``scene.unit`` or ``scene.offset`` is set.

    Args:
        path: Folder of the scene, in any layout of docs/scenes.md; with ``run`` only needed if the scene has moved.
        run: Output folder of a run whose scene settings to use.
        settings: Settings of the section ``scene`` by name; they override those of the run: ``resolution=4``.

    Returns:
        The scene. ``scene.train`` and ``scene.test`` are lists of ``Camera`` at training resolution; ``scene.frame``
        converts training coordinates to those of the scene's files.

    Raises:
        UserError: if neither ``path`` nor ``run`` is given, a setting is wrong, or the scene is damaged or incomplete.
    """
    if path is None and run is None:
        raise UserError("load_scene: neither path nor run is given, expected one; name the scene or the run's folder")
    if path is not None:
        settings["path"] = os.fspath(path)
    earlier = config_to_dict(Config() if run is None else load_run_config(Path(run)))
    return scenes.load_scene(config_from_dict({"scene": earlier["scene"] | settings}, "load_scene").scene)


def load_model(path: StrPath, *, iteration: int = -1, block: int | None = None, device: str = "auto") -> TrainedModel:
    """Load a trained model: the merged (or coarse) model of a run, or one of its blocks before the merge.

    Args:
        path: Output folder of a run, or a PLY file. A file of anchors needs its decoder beside it; explicit Gaussians,
            also those of other 3DGS codebases, need only the PLY file. With a file, the background is black.
        iteration: With a folder: loads ``point_cloud/iteration_<N>``; -1 is the last.
        block: With a folder: number of the block, from 0; ``None`` is the merged or coarse model.
        device: ``auto``, ``cpu`` or ``cuda``; ``auto`` is CUDA if torch and the kernels support it here.

    Raises:
        UserError: if there is no such model, its files are damaged, or CUDA was asked for and is not available.
    """
    path, chosen = Path(path), pick_device(device)
    if path.is_file():
        ply, white = path, False
    else:
        ply = io.model_file(io.model_folder(path, iteration), block)
        white = load_run_config(path).scene.white_background
    primitives, decoder = io.load_model(ply)
    return TrainedModel(
        primitives.to(chosen),
        decoder.to(chosen).eval(),
        torch.full((3,), float(white), device=chosen),
        ply,
        load_appearance(ply.parent),
        load_poses(ply.parent),
    )


def render_image(model: TrainedModel, camera: Camera, *, as_trained: bool = False) -> Float[Tensor, "3 h w"]:
    """Render one view, without gradients.

    Args:
        model: The model.
        camera: The view, in training coordinates (``load_scene(run=OUT)``); ``camera.resized(width, height)`` is the
            same view at another size.
        as_trained: For training views: apply the colour and pose corrections that the run has learned, as in training
            and in ``momentum-gs render --split train``. Other views have none.

    Returns:
        RGB in [0, 1], [3,H,W] float32 on the model's device.
    """
    if as_trained and model.poses is not None:
        camera = model.poses.camera(camera)
    appearance = model.appearance if as_trained else None
    return view.render_image(model.primitives, model.decoder, camera, model.background, appearance)


def load_image(scene: Scene, camera: Camera) -> TargetImage:
    """Read the image of one of the scene's views, at the view's size, and its mask if it has one.

    Returns:
        ``image``: RGB in [0, 1], [3,H,W]; ``mask``: [1,H,W], 1 for pixels that count, or None. On the CPU.

    Raises:
        UserError: if the camera is not of this scene, or the file is missing or cannot be decoded.
    """
    if camera.name not in scene.image_paths:
        raise UserError(f"load_image: {camera.name!r} is not in {scene.path}, expected a view of scene.train or .test")
    # A single image needs no cache.
    alone = replace(scene, train=[camera], test=[])
    with Views(alone, 0, torch.device("cpu")) as views:
        return views.target(camera.name)


def load_lpips(net: str = "vgg", *, weights: StrPath | None = None, device: str = "auto") -> Lpips:
    """The LPIPS metric, for ``score_image``.

    Args:
        net: Backbone: ``vgg`` (as 3DGS codebases report it), ``alex`` or ``squeeze``.
        weights: Folder with torchvision's weights of that backbone; default: ``TORCH_HOME``, otherwise a download.
        device: ``auto``, ``cpu`` or ``cuda``; the device of the images to score.

    Raises:
        UserError: if the weights are unavailable or damaged, or the packages of ``momentum-gs[eval]`` are missing.
    """
    return lpips_metric.load_lpips(net, None if weights is None else Path(weights), pick_device(device))


@torch.no_grad()
def score_image(
    image: Float[Tensor, "3 h w"], target: TargetImage | Float[Tensor, "3 h w"], lpips: Lpips | None = None
) -> dict[str, float]:
    """Score a rendered image against its target image. Both are first rounded to 8 bits, so the scores are those that
    ``momentum-gs eval`` computes from the PNG files of the same view.

    Args:
        image: The render, RGB in [0, 1].
        target: The target image, with or without a mask, of the same size.
        lpips: Adds LPIPS (``load_lpips``).

    Returns:
        ``PSNR`` (dB, higher is better), ``SSIM`` (at most 1, higher is better) and with ``lpips`` ``LPIPS`` (at least
        0, lower is better; named e.g. ``LPIPS_squeeze`` with another backbone than vgg). For each of these also the
        score after colour correction to the target image (``PSNR_cc``), and the score of the right half after a
        correction fitted on the left half (``PSNR_fit``; docs/evaluation.md).

    Raises:
        UserError: if the sizes differ.
    """
    target = target if isinstance(target, TargetImage) else TargetImage(target)
    if image.shape != target.image.shape:
        found, expected = ("x".join(map(str, tensor.shape[:0:-1])) for tensor in (image, target.image))
        raise UserError(f"score_image: the image is {found}, expected {expected} as the true one; render at that size")
    shown, truth = (to_uint8(tensor).to(image.device).float() / 255 for tensor in (image, target.image))
    mask = None if target.mask is None else target.mask.to(image.device)
    return score_pair(shown, truth, lpips, mask)
