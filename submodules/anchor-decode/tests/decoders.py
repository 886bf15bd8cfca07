"""Random anchors and decoders for the tests."""

import torch
from anchor_decode import Layout
from torch import Tensor

LAYOUTS = [
    Layout(32, 10, 32),
    Layout(8, 4, 20, (True, False, True)),
    Layout(12, 3, 7, (False, True, False), bank=True),
    Layout(5, 1, 1),
    Layout(64, 17, 48, (True, True, True), bank=True),
]


def scene(
    anchors: int,
    visible: int,
    layout: Layout,
    dtype: torch.dtype = torch.float64,
    *,
    seed: int = 0,
    device: str = "cpu",
    shuffled: bool = False,
) -> dict[str, Tensor]:
    """Arguments of ``decode`` but the layout; every number is random, so that a mixed-up row or column shows."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=dtype)

    rows = torch.randperm(anchors, generator=rng)[:visible]
    given = {
        "position": normal(anchors, 3),
        "offset": normal(anchors, layout.offsets, 3),
        "feature": normal(anchors, layout.features),
        "log_scale": normal(anchors, 6) * 0.3 - 2,
        "visible": rows if shuffled else rows.sort().values,
        "center": torch.tensor([0.3, -0.2, 4.0], dtype=dtype),
        "weights": normal(layout.size) * 0.3,
        "teacher": normal(layout.size) * 0.3,
    }
    return {name: tensor.to(device) for name, tensor in given.items()}


LEARNED = ("offset", "feature", "log_scale", "weights")
ATTRIBUTES = ("means", "scales", "quats", "opacities", "colors", "neural_opacity")


def values_and_gradients(
    function, given: dict[str, Tensor], layout: Layout, outputs: tuple[str, ...] = ATTRIBUTES
) -> tuple[list[Tensor], list[Tensor]]:
    """All outputs, and the gradients of a sum in which each number of ``outputs`` has a random weight of its own."""
    given = {name: tensor.detach().clone().requires_grad_(name in LEARNED) for name, tensor in given.items()}
    decoded = function(**given, layout=layout)
    rng = torch.Generator().manual_seed(5)
    parts = []
    for name in outputs:
        value = getattr(decoded, name)
        weight = torch.randn(value.shape, generator=rng, dtype=torch.float64).to(value)
        parts.append((value * weight).sum())
    gradients = torch.autograd.grad(
        torch.stack(parts).sum(), [given[name] for name in LEARNED], allow_unused=True, materialize_grads=True
    )
    found = [*decoded[:7], *(decoded.targets or ())]
    return [value.detach() for value in found], list(gradients)
