"""The Gaussian decoder: small networks (heads) that turn an anchor's feature and the direction it is seen from into the
attributes of K Gaussians.

Student and teacher are two instances. Source: scene/gaussian_model.py::GaussianModel.__init__ of Scaffold-GS and
Momentum-GS (paper section 3.1).
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from momentum_gs.model.background import Background

HEADS = ("opacity", "cov", "color")


class DecoderOutput(NamedTuple):
    """The heads' outputs for M anchors."""

    opacity: Float[Tensor, "m k"]
    """In (-1, 1); a Gaussian exists where it is positive."""
    cov: Float[Tensor, "m k 7"]
    """Three scale logits, then an unnormalised quaternion (w, x, y, z)."""
    color: Float[Tensor, "m k 3"]
    """RGB in (0, 1)."""


class GaussianDecoder(nn.Module):
    """Heads ``opacity``, ``cov`` and ``color``, each with two linear layers, and an optional ``feature_bank``.

    The inputs of a head are the feature [F], the direction [3] and, with its ``add_*_dist``, the distance [1]. A
    learned ``background`` decodes no anchor; it is a part of the decoder because it is shared, trained and stored in
    the same way.
    """

    def __init__(
        self,
        feature_dim: int = 32,
        n_offsets: int = 10,
        *,
        hidden_dim: int | None = None,
        use_feature_bank: bool = False,
        add_opacity_dist: bool = False,
        add_cov_dist: bool = False,
        add_color_dist: bool = False,
        background_degree: int | None = None,
    ) -> None:
        super().__init__()
        hidden_dim = feature_dim if hidden_dim is None else hidden_dim
        self.architecture: dict[str, Any] = {
            "feature_dim": feature_dim,
            "n_offsets": n_offsets,
            "hidden_dim": hidden_dim,
            "use_feature_bank": use_feature_bank,
            "add_opacity_dist": add_opacity_dist,
            "add_cov_dist": add_cov_dist,
            "add_color_dist": add_color_dist,
        }
        """The constructor's arguments: ``GaussianDecoder(**decoder.architecture)`` takes this one's state dict."""
        if background_degree is not None:  # Files of models without a background do not record it.
            self.architecture["background_degree"] = background_degree
        self.n_offsets = n_offsets

        def head(with_distance: bool, n_out: int, *activation: nn.Module) -> nn.Sequential:
            n_in = feature_dim + 3 + with_distance
            return nn.Sequential(nn.Linear(n_in, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, n_out), *activation)

        self.opacity = head(add_opacity_dist, n_offsets, nn.Tanh())
        self.cov = head(add_cov_dist, 7 * n_offsets)
        self.color = head(add_color_dist, 3 * n_offsets, nn.Sigmoid())
        self.feature_bank = (
            nn.Sequential(nn.Linear(4, feature_dim), nn.ReLU(), nn.Linear(feature_dim, 3), nn.Softmax(dim=1))
            if use_feature_bank
            else None
        )
        self.background = None if background_degree is None else Background(background_degree)

    def at(self, rows: Int[Tensor, "m"]) -> "GaussianDecoder":
        """The decoder of the anchors in these rows, always this one (unlike ``DecoderBank.at``)."""
        return self

    def forward(
        self, feature: Float[Tensor, "m f"], direction: Float[Tensor, "m 3"], distance: Float[Tensor, "m 1"]
    ) -> DecoderOutput:
        """Decode M anchors; ``direction`` is the unit vector from camera to anchor, ``distance`` in training units."""
        if self.feature_bank is not None:
            feature = blend_strides(feature, self.feature_bank(torch.cat([direction, distance], dim=1)))
        near = torch.cat([feature, direction], dim=1)
        with_distance = [self.architecture[f"add_{name}_dist"] for name in HEADS]
        far = torch.cat([near, distance], dim=1) if any(with_distance) else near
        opacity, cov, color = (
            getattr(self, name)(far if reads else near) for name, reads in zip(HEADS, with_distance, strict=True)
        )
        return DecoderOutput(opacity, cov.unflatten(1, (self.n_offsets, 7)), color.unflatten(1, (self.n_offsets, 3)))


def blend_strides(feature: Float[Tensor, "m f"], weight: Float[Tensor, "m 3"]) -> Float[Tensor, "m f"]:
    """The feature bank: a blend of every 4th entry tiled 4 times, every 2nd tiled twice, and the feature itself.

    So distant anchors can use a coarser stride (Scaffold-GS, section 3.2.1). F is a multiple of 4.
    """
    coarse, middle, fine = weight.split(1, dim=1)
    return feature[:, ::4].repeat(1, 4) * coarse + feature[:, ::2].repeat(1, 2) * middle + feature * fine
