"""Renders a model within a budget of Gaussians."""

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.types import Camera
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.lod import LodTree
from momentum_gs.model.splats import Harmonics
from momentum_gs.render.splat_view import decode_splats
from momentum_gs.render.view import ViewRender, draw, learned_background


@torch.no_grad()
def render_lod(
    tree: LodTree, budget: int, decoder: Decoder | Harmonics, camera: Camera, background: Float[Tensor, "3"]
) -> ViewRender:
    """Renders the cut of the tree for a camera.

    Args:
        tree: Levels of detail of a baked model.
        budget: Largest number of Gaussians (``LodTree.for_view``).
        decoder: That of the model before the bake; only its learned background is used.
        camera: The view.
        background: Colour behind everything, unless the decoder has learned one.
    """
    splats = tree.for_view(camera, budget)
    decoded = decode_splats(splats, Harmonics(splats.sh_degree), camera)
    behind = learned_background(decoder, camera, background)
    return ViewRender(draw(decoded.gaussians, camera, background, behind), decoded, None, behind)
