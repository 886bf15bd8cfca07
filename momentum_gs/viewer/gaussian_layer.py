"""Explicit Gaussians that the browser draws itself: smooth on any laptop, with colours that are fixed."""

from collections.abc import Sequence

import torch
import viser

from momentum_gs.bake.baking import bake
from momentum_gs.bake.shell import background_shell, reach_of, shown_part
from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.types import Camera
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.splats import SH_CONSTANT, Harmonics, Model, Splats
from momentum_gs.viewer.run import ViewerRun
from momentum_gs.viewer.shown import Shown
from momentum_gs.viewer.upright import Upright

BAKED_FROM = 40
"""Cameras that decide colours and sizes; each is rendered once, which a browser waits for."""
BAKED_SIDE = 320
"""Longer side of these renders in pixels."""


class GaussianLayer:
    """The Gaussians of one browser; they are sent when they are first shown, and again when the model changes."""

    def __init__(self, scene: viser.SceneApi) -> None:
        self._scene = scene
        self._handle: viser.GaussianSplatHandle | None = None
        self._sent: Model | None = None

    def show(self, shown: Shown, run: ViewerRun) -> None:
        """Shows a model."""
        if self._sent is not shown.model:
            if self._handle is not None:
                self._handle.remove()
            self._handle = add_gaussians(self._scene, baked(shown, run.cameras), run.upright)
            self._sent = shown.model
        if self._handle is not None:
            self._handle.visible = True

    def hide(self) -> None:
        """Hides them; they stay in the browser."""
        if self._handle is not None:
            self._handle.visible = False


def baked(shown: Shown, cameras: Sequence[Camera]) -> Splats:
    """A model as explicit Gaussians with colours of degree 0, from a part of the cameras and small images; a learned
    background as a shell."""
    if isinstance(shown.model, Splats):
        return shown.model
    assert not isinstance(shown.decoder, Harmonics), "anchors have a decoder"
    chosen = cameras[:: max(1, len(cameras) // BAKED_FROM)]
    shares = [min(1.0, BAKED_SIDE / max(camera.width, camera.height)) for camera in chosen]
    small = [
        camera.resized(max(1, round(camera.width * share)), max(1, round(camera.height * share)))
        for camera, share in zip(chosen, shares, strict=True)
    ]
    splats = bake(shown.model, shown.decoder, small, sh_degree=0)
    learned = shown.decoder.background if isinstance(shown.decoder, GaussianDecoder) else None
    if learned is None:
        return splats
    around = background_shell(learned, *reach_of(splats.position, torch.ones(len(splats)), cameras))
    return Splats.cat([splats, shown_part(around, splats, Harmonics(0), small)])


@torch.no_grad()
def add_gaussians(scene: viser.SceneApi, splats: Splats, upright: Upright) -> viser.GaussianSplatHandle:
    """Sends Gaussians in training coordinates to a browser, with their colours of degree 0, which is all it draws."""
    splats = splats.to("cpu")
    axes = upright.frame.rotation.float() @ quat_to_matrix(splats.rotation) * splats.scales[:, None]
    axes = axes / upright.frame.unit
    return scene.add_gaussian_splats(
        "/gaussians", upright.points(splats.position).astype("float32"), (axes @ axes.transpose(1, 2)).numpy(),
        (0.5 + SH_CONSTANT * splats.sh_dc[:, 0]).clamp(0, 1).numpy(), splats.opacity.sigmoid().numpy(),
    )  # fmt: skip
