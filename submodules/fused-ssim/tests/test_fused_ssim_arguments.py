"""The raw operators with arguments of other shapes, dtypes, devices and layouts: an error, or the right result."""

from collections.abc import Callable

import fused_ssim  # noqa: F401  (loads the operators)
import pytest
import torch
from torch import Tensor

SHAPES = {
    "img1": (2, 3, 17, 23),
    "img2": (2, 3, 17, 23),
    "weights": (17, 23),
    "render": (3, 17, 23),
    "target": (3, 17, 23),
    "mask": (1, 17, 23),
    "grad": (3, 17, 23),
    "l1": (),
    "dssim": (),
    "slope": (),
}
IMAGE_LOSS = ("render", "target", "weights", "mask")
ARGUMENTS = {
    "mean_ssim": ("img1", "img2", "weights"),
    "mean_ssim_with_grad": ("img1", "img2", "weights"),
    "image_loss": IMAGE_LOSS,
    "image_loss_with_grad": IMAGE_LOSS,
    "image_loss_backward": ("l1", "dssim", "grad", "slope", *IMAGE_LOSS),
}
CASES = [(name, argument) for name, names in ARGUMENTS.items() for argument in names]


def arguments(name: str, device: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {argument: torch.rand(SHAPES[argument], generator=generator).to(device) for argument in ARGUMENTS[name]}


def call(name: str, given: dict[str, Tensor]) -> list[Tensor]:
    number: dict[str, float] = {"mean_ssim": {"valid": False}, "image_loss": {"dssim": 0.2}}.get(
        name.removesuffix("_with_grad"), {}
    )
    found = getattr(torch.ops.fused_ssim, name)(**given, **number)
    return [found] if isinstance(found, Tensor) else list(found)


# Of a scalar, "flat" is a vector.
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "a row less": lambda t: t[..., :-1, :],
    "a column less": lambda t: t[..., :-1],
    "a dimension more": lambda t: t[None],
    "flat": lambda t: t.flatten(),
    "no rows": lambda t: t[..., :0, :],
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "whole numbers": lambda t: t.int(),
    "no data": lambda t: t.to("meta"),
}


ROWS_OR_COLUMNS = ("a row less", "a column less", "no rows")
"""Changes that a scalar does not have."""


@pytest.mark.parametrize(
    ("name", "argument", "change"),
    [(*case, change) for case in CASES for change in CHANGES if SHAPES[case[1]] or change not in ROWS_OR_COLUMNS],
)
def test_what_does_not_fit_is_refused(device: str, name: str, argument: str, change: str) -> None:
    given = arguments(name, device)
    given[argument] = CHANGES[change](given[argument])
    with pytest.raises((RuntimeError, ValueError), match="fused_ssim: "):
        call(name, given)


@pytest.mark.parametrize(("name", "argument"), [case for case in CASES if len(SHAPES[case[1]]) > 1])
def test_layouts_do_not_matter(device: str, name: str, argument: str) -> None:
    given = arguments(name, device)
    expected = call(name, given)
    tensor = given[argument]
    for other in (tensor.mT.contiguous().mT, torch.stack([tensor, tensor + 1], -1)[..., 0]):
        assert not other.is_contiguous()
        for a, b in zip(call(name, given | {argument: other}), expected, strict=True):
            assert torch.equal(a, b)
