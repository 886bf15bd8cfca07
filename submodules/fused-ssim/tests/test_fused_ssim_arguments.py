"""The raw operators with arguments of other shapes, dtypes, devices and layouts: an error, or the right result."""

from collections.abc import Callable

import fused_ssim  # noqa: F401  (loads the operators)
import pytest
import torch
from torch import Tensor

OPERATORS = ("mean_ssim", "mean_ssim_with_grad")


def arguments() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "img1": torch.rand(2, 3, 17, 23, generator=generator),
        "img2": torch.rand(2, 3, 17, 23, generator=generator),
        "weights": torch.rand(17, 23, generator=generator),
    }


def call(name: str, given: dict[str, Tensor]) -> list[Tensor]:
    found = getattr(torch.ops.fused_ssim, name)(given["img1"], given["img2"], False, given["weights"])
    return [found] if isinstance(found, Tensor) else list(found)


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


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("argument", ["img1", "img2", "weights"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused(device: str, name: str, argument: str, change: str) -> None:
    given = {k: v.to(device) for k, v in arguments().items()}
    given[argument] = CHANGES[change](given[argument])
    with pytest.raises((RuntimeError, ValueError), match="fused_ssim: "):
        call(name, given)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("argument", ["img1", "img2", "weights"])
def test_layouts_do_not_matter(device: str, name: str, argument: str) -> None:
    given = {k: v.to(device) for k, v in arguments().items()}
    expected = call(name, given)
    tensor = given[argument]
    for other in (tensor.mT.contiguous().mT, torch.stack([tensor, tensor + 1], -1)[..., 0]):
        assert not other.is_contiguous()
        for a, b in zip(call(name, given | {argument: other}), expected, strict=True):
            assert torch.equal(a, b)
