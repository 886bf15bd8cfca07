"""Statistics of growth: the kernel against the readable reference."""

from collections.abc import Callable

import pytest
import torch
from anchor_decode import count_view, reference
from torch import Tensor

STATISTICS = ("opacities", "views", "gradients", "drawn")


def arguments(
    anchors: int = 50, visible: int = 30, offsets: int = 4, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> dict[str, Tensor]:
    """Of a view; the statistics are those of earlier views."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    neural = 2 * rand(visible, offsets) - 1
    gaussians = int((neural > 0).sum())
    given = {
        "visible": torch.randperm(anchors, generator=generator)[:visible],
        "kept": neural > 0,
        "neural_opacity": neural,
        "radii": torch.randint(-1, 3, (gaussians,), generator=generator, dtype=torch.int32),
        "gradient": rand(gaussians, 3) - 0.5,
    }
    given |= {"opacities": rand(anchors), "views": rand(anchors)}
    given |= {name: rand(anchors, offsets) for name in ("gradients", "drawn")}
    return {name: tensor.to(device) for name, tensor in given.items()}


def after(function: Callable[..., None], given: dict[str, Tensor | None]) -> list[Tensor]:
    """The statistics after a view."""
    given = {name: value.clone() if name in STATISTICS else value for name, value in given.items()}
    function(**given)
    return [given[name] for name in STATISTICS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("anchors", "visible", "offsets"), [(50, 30, 4), (700, 700, 10), (5, 0, 3), (1, 1, 1)])
def test_equals_the_reference(device: str, dtype: torch.dtype, anchors: int, visible: int, offsets: int) -> None:
    given = arguments(anchors, visible, offsets, dtype, device)
    for part in ({}, {"gradient": None}, {"gradient": given["gradient"][:, :2]}):
        found, wanted = (after(function, given | part) for function in (count_view, reference.count_view))
        for ours, expected in zip(found, wanted, strict=True):
            # Sums of up to ten opacities in another order.
            torch.testing.assert_close(ours, expected, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=0)


@pytest.mark.parametrize("name", arguments())
@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t[None], lambda t: t.half(), lambda t: t.to("meta")])
def test_what_does_not_fit_is_refused(device: str, name: str, change: Callable[[Tensor], Tensor]) -> None:
    given = arguments(device=device)
    given[name] = change(given[name])
    with pytest.raises((RuntimeError, ValueError, NotImplementedError)):
        count_view(**given)


def test_values_that_are_out_of_place_are_refused() -> None:
    given = arguments()
    with pytest.raises(RuntimeError, match="visible holds 50, expected rows of 50 anchors"):
        count_view(**given | {"visible": torch.full_like(given["visible"], 50)})
    with pytest.raises(RuntimeError, match="kept has 120 Gaussians"):
        count_view(**given | {"kept": torch.ones_like(given["kept"])})


@pytest.mark.slow
def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.anchor_decode.count_view, tuple(arguments().values()))
