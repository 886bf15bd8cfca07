"""The panel of one training or held-out view: image, render and error beside each other, its PSNR, its blocks."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import viser
from jaxtyping import Float, UInt8

from momentum_gs.core.errors import UserError
from momentum_gs.core.image import psnr, to_uint8
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.eval.metrics import error_map
from momentum_gs.viewer.image_renderer import Image, beside
from momentum_gs.viewer.run import ViewerRun

_WIDTH = 480
"""Pixels of an image in the panel, in which it is scaled to fit."""
_PANEL_WIDTH = 400.0


@dataclass(frozen=True)
class Comparison:
    """A view beside its image, 8 bit RGB."""

    image: UInt8[np.ndarray, "h w 3"]
    render: UInt8[np.ndarray, "h w 3"]
    error: UInt8[np.ndarray, "h w 3"]
    psnr: float
    """dB, over the pixels that count; of the 8-bit render, as in the scores."""


def compare(render: Float[torch.Tensor, "3 h w"], target: TargetImage) -> Comparison:
    """Compares a render in [0, 1] with its image, both on the CPU."""
    stored = to_uint8(render).float() / 255
    image, drawn, error = (
        to_uint8(part).permute(1, 2, 0).contiguous().numpy()
        for part in (target.image, render, error_map(render, target.image))
    )
    return Comparison(image, drawn, error, float(psnr(stored, target.image, target.mask)))


def fitted(image: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
    """As wide as the panel."""
    height, width = image.shape[:2]
    size = (_WIDTH, max(1, round(height * _WIDTH / width)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if width > _WIDTH else cv2.INTER_CUBIC)


class CameraPanel:
    """Shown once a view is chosen."""

    def __init__(
        self, client: viser.ClientHandle, draw: Callable[[Camera], Float[torch.Tensor, "3 h w"]]
    ) -> None:
        """``draw``: renders a view of the run in color, on the CPU, in [0, 1]."""
        self._draw = draw
        self._panel = client.gui.add_panel(visible=False)
        nothing = np.zeros((8, 8, 3), np.uint8)
        with self._panel.add_tab("Camera"):
            self._text = client.gui.add_markdown("")
            self._slider = client.gui.add_slider("image | render", 0.0, 1.0, 0.01, 0.5)
            self._wiped = client.gui.add_image(nothing, label="image left, render right", format="jpeg")
            self._error = client.gui.add_image(nothing, label="error (white: a quarter of the range)", format="jpeg")
        # Floating: docked, it would make the canvas narrower, of which the server only hears at the next move.
        self._panel.float(x=15.0, y=15.0, width=_PANEL_WIDTH)
        self._slider.on_update(lambda _: self._show())
        self._comparison: Comparison | None = None

    @property
    def text(self) -> str:
        """What the panel says of the view."""
        return str(self._text.content)

    def open(self, run: ViewerRun, camera: Camera) -> None:
        """Shows a view, with its image if the scene is there and the image can be read."""
        lines = [f"**{camera.name}** ({'held out' if camera.name in run.held_out else 'training view'})"]
        render = self._draw(camera)
        if run.appearance is not None and camera.name not in run.held_out:
            render = run.appearance.correct(render, camera.name).clamp(0, 1)
        self._comparison = None
        try:
            if run.views is not None:
                self._comparison = compare(render, run.views.target(camera.name))
                lines.append(f"PSNR {self._comparison.psnr:.2f} dB")
        except UserError as error:
            lines.append(f"No image: {error}")
        if self._comparison is None:
            drawn = to_uint8(render).permute(1, 2, 0).contiguous().numpy()
            self._comparison = Comparison(drawn, drawn, np.zeros_like(drawn), float("nan"))
        trains = run.trains(camera)
        if run.table is not None:
            owner = run.table.owner(camera)
            lines.append(f"stands in block {owner}; trains blocks {', '.join(map(str, trains)) or 'none'}")
        self._text.content = "\n\n".join(lines)
        self._error.image = fitted(self._comparison.error)
        self._show()
        self._panel.visible = True

    def close(self) -> None:
        """Hides the panel."""
        self._panel.visible = False

    def _show(self) -> None:
        if self._comparison is not None:
            found = self._comparison
            none = np.zeros(found.image.shape[:2], np.float32)
            wiped = beside(Image(found.image, none), Image(found.render, none), float(self._slider.value))
            self._wiped.image = fitted(wiped.rgb)
