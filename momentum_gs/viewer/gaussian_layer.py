"""Explicit Gaussians that the browser draws itself: smooth on any laptop, with colours that are fixed."""

from collections.abc import Sequence

import torch
import viser

from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.types import Camera, Gaussians
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.expand import decode
from momentum_gs.model.splats import SH_CONSTANT, Splats
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
            self._handle = add_gaussians(self._scene, bake(shown, run.cameras), run.upright)
            self._sent = shown
        if self._handle is not None:
            self._handle.visible = True

    def hide(self) -> None:
        """Hides them; they stay in the browser."""
        if self._handle is not None:
            self._handle.visible = False


@torch.no_grad()
def bake(shown: Shown, cameras: Sequence[Camera]) -> Gaussians:
    """The Gaussians with colours that do not depend on the direction, on the CPU.

    Of anchors, those that the mean camera sees: a placeholder for ``momentum_gs.bake``.
    """
    model = shown.model
    if isinstance(model, Splats):
        return Gaussians(
            model.position.cpu(), model.scales.cpu(), model.rotation.cpu(), model.opacity.sigmoid().cpu(),
            (0.5 + SH_CONSTANT * model.sh_dc[:, 0]).clamp(0, 1).cpu(),
        )  # fmt: skip
    assert isinstance(model, Anchors)
    center = torch.stack([camera.center for camera in cameras]).mean(dim=0)
    found = decode(model, shown.decoder, center.to(model.position)).gaussians  # type: ignore[arg-type]
    return Gaussians(
        found.means.cpu(), found.scales.cpu(), found.quats.cpu(), found.opacities.cpu(), found.colors.clamp(0, 1).cpu()
    )


def add_gaussians(scene: viser.SceneApi, gaussians: Gaussians, upright: Upright) -> viser.GaussianSplatHandle:
    """Sends Gaussians in training coordinates to a browser."""
    axes = upright.frame.rotation.float() @ quat_to_matrix(gaussians.quats) * gaussians.scales[:, None]
    axes = axes / upright.frame.unit
    return scene.add_gaussian_splats(
        "/gaussians", upright.points(gaussians.means).astype("float32"), (axes @ axes.transpose(1, 2)).numpy(),
        gaussians.colors.numpy(), gaussians.opacities.numpy(),
    )  # fmt: skip
