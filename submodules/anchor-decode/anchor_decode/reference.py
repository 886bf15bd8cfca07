"""The same in readable PyTorch, which documents the kernels and is the reference of their tests."""

import torch
import torch.nn.functional as F
from torch import Tensor

from anchor_decode.ops import Decoded, Layout, Targets


def split(weights: Tensor, layout: Layout) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For each network the first layer's weight and bias, and the second's."""
    sizes = [n for i, h, o in layout.networks for n in (i * h, h, h * o, o)]
    parts = iter(weights.split(sizes))
    return [(next(parts).view(h, i), next(parts), next(parts).view(o, h), next(parts)) for i, h, o in layout.networks]


def _run(inputs: Tensor, network: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    first, first_bias, second, second_bias = network
    return F.linear(F.linear(inputs, first, first_bias).relu(), second, second_bias)


def _outputs(feature: Tensor, ray: Tensor, weights: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """The three heads' outputs: opacity [M,K] in (-1, 1), cov [M,K,7], color [M,K,3] in (0, 1)."""
    distance = ray.norm(dim=1, keepdim=True)
    direction = ray / distance
    networks = split(weights, layout)
    if layout.bank:
        coarse, middle, fine = (
            _run(torch.cat([direction, distance], dim=1), networks[3]).softmax(dim=1).split(1, dim=1)
        )
        blocks = feature[:, ::4].repeat(1, 4), feature[:, ::2].repeat(1, 2)
        feature = blocks[0] * coarse + blocks[1] * middle + feature * fine
    near = torch.cat([feature, direction], dim=1)
    far = torch.cat([near, distance], dim=1)
    opacity, cov, color = (
        _run(far if reads else near, network) for reads, network in zip(layout.distance, networks[:3], strict=True)
    )
    return opacity.tanh(), cov.unflatten(1, (-1, 7)), color.sigmoid().unflatten(1, (-1, 3))


def decode(
    position: Tensor,
    offset: Tensor,
    feature: Tensor,
    log_scale: Tensor,
    visible: Tensor,
    center: Tensor,
    weights: Tensor,
    layout: Layout,
    teacher: Tensor | None = None,
) -> Decoded:
    """``anchor_decode.decode``: all offsets of all visible anchors are decoded, then those that are kept are taken."""
    position, offset, feature, scales = (t[visible] for t in (position, offset, feature, log_scale.exp()))
    ray = position - center
    opacity, cov, color = _outputs(feature, ray, weights, layout)
    kept = opacity > 0
    bound = scales[:, None, 3:].expand(-1, layout.offsets, -1)[kept]
    means = position[:, None] + offset * scales[:, None, :3]
    targets = None
    if teacher is not None:
        with torch.no_grad():
            other = _outputs(feature, ray, teacher, layout)
            shape = other[1][kept]
            targets = Targets(
                bound * shape[:, :3].sigmoid(), F.normalize(shape[:, 3:], dim=1), other[2][kept], other[0]
            )
    return Decoded(
        means=means[kept],
        scales=bound * cov[kept][:, :3].sigmoid(),
        quats=F.normalize(cov[kept][:, 3:], dim=1),
        opacities=opacity[kept][:, None],
        colors=color[kept],
        neural_opacity=opacity,
        kept=kept,
        targets=targets,
        rows=visible.nonzero()[:, 0] if visible.dtype == torch.bool else visible,
    )


def count_view(
    visible: Tensor,
    kept: Tensor,
    neural_opacity: Tensor,
    radii: Tensor,
    gradient: Tensor | None,
    *,
    opacities: Tensor,
    views: Tensor,
    gradients: Tensor,
    drawn: Tensor,
) -> None:
    """``anchor_decode.count_view``."""
    opacities.index_add_(0, visible, neural_opacity.clamp_min(0).sum(dim=1))
    views.index_add_(0, visible, views.new_ones(len(visible)))
    anchor, offset = kept.nonzero(as_tuple=True)
    place = visible[anchor] * kept.shape[1] + offset
    shown = radii > 0
    drawn.view(-1).index_add_(0, place, shown.to(drawn))
    if gradient is not None:
        length = torch.hypot(gradient[:, 0], gradient[:, 1])
        gradients.view(-1).index_add_(0, place, torch.where(shown, length, 0.0))
