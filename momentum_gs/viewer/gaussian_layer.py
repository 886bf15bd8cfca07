"""Explicit Gaussians that the browser draws itself: smooth on any laptop, with colours that are fixed."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import viser

from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.types import Camera
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.expand import decode
from momentum_gs.model.splats import SH_CONSTANT, Harmonics, Splats
from momentum_gs.viewer.run import ViewerRun
from momentum_gs.viewer.shown import Shown
from momentum_gs.viewer.upright import Upright


class GaussianLayer:
    """The Gaussians of one browser; they are sent when they are first shown, and again when the model changes."""

    def __init__(self, scene: viser.SceneApi) -> None:
        self._scene = scene
        self._handle: viser.GaussianSplatHandle | None = None
        self._sent: Shown | None = None

    def show(self, shown: Shown, run: ViewerRun) -> None:
        """Shows a model."""
        if self._sent is not shown:
            if self._handle is not None:
                self._handle.remove()
            self._handle = add_gaussians(self._scene, baked(shown, run.cameras), run.upright)
            self._sent = shown
        if self._handle is not None:
            self._handle.visible = True

    def hide(self) -> None:
        """Hides them; they stay in the browser."""
        if self._handle is not None:
            self._handle.visible = False


def baked(shown: Shown, cameras: Sequence[Camera]) -> Splats:
    """A model as explicit Gaussians."""
    if isinstance(shown.model, Splats):
        return shown.model
    return _placeholder(shown, cameras)  # To be momentum_gs.bake.baking.bake(..., sh_degree=0).


@torch.no_grad()
def _placeholder(shown: Shown, cameras: Sequence[Camera]) -> Splats:
    """The Gaussians of the anchors as seen from the middle of the cameras."""
    center = torch.stack([camera.center for camera in cameras]).mean(dim=0)
    assert isinstance(shown.model, Anchors) and not isinstance(shown.decoder, Harmonics)
    found = decode(shown.model, shown.decoder, center.to(shown.model.position)).gaussians
    splats = Splats.fresh(found.means, found.colors, found.scales.log(), 0)
    return replace(splats, rotation=found.quats, opacity=found.opacities.clamp(1e-6, 1 - 1e-6).logit())


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
