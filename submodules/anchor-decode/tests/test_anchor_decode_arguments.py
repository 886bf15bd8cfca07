"""The raw operators with arguments of other shapes, dtypes, devices and layouts: an error, or the right result."""

import contextlib
from collections.abc import Callable

import pytest
import torch
from anchor_decode import Layout
from decoders import scene
from torch import Tensor

LAYOUT = Layout(8, 3, 5)
NAMES = ("position", "offset", "feature", "log_scale", "visible", "center", "weights")
VALUES = ("scales", "quats", "colors", "neural_opacity", "kept")
SAVED = ("shape", "hidden_opacity", "hidden_rest")
GRADS = ("d_means", "d_scales", "d_quats", "d_opacities", "d_colors")


def arguments(device: str) -> dict[str, Tensor]:
    """Of both operators."""
    given = scene(30, 20, LAYOUT, torch.float32, device=device)
    found = torch.ops.anchor_decode.decode(*(given[n] for n in NAMES), given["teacher"], 5, 0, False, True)
    given |= dict(zip(VALUES, (found[1], found[2], found[4], found[5], found[6]), strict=True))
    given |= dict(zip(SAVED, found[11:14], strict=True))
    given |= {name: torch.ones_like(value) for name, value in zip(GRADS, found[:5], strict=True)}
    return given | {"d_neural": torch.ones_like(found[5])}


def call(name: str, given: dict[str, Tensor]) -> list[Tensor]:
    anchors = [given[n] for n in NAMES]
    if name == "decode":
        return list(torch.ops.anchor_decode.decode(*anchors, given["teacher"], 5, 0, False, True))
    lists = ([given[n] for n in names] for names in (VALUES, SAVED, GRADS))
    return list(torch.ops.anchor_decode.decode_backward(*anchors, 5, 0, False, *lists, given["d_neural"]))


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "a row less": lambda t: t[:-1],
    "a column less": lambda t: t[..., :-1],
    "a dimension more": lambda t: t[None],
    "flat, twice": lambda t: torch.cat([t.flatten(), t.flatten()]),
    "no rows": lambda t: t[:0],
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "whole numbers": lambda t: t.int(),
}
# What only values tell, which are not read on a GPU. Nothing is read or written out of place all the same.
UNREAD = {
    ("decode", "visible", "flat, twice"),
    ("decode_backward", "hidden_rest", "a row less"),
    ("decode_backward", "hidden_rest", "no rows"),
}
TAKEN = [("decode", name) for name in (*NAMES, "teacher")]
TAKEN += [("decode_backward", name) for name in (*NAMES, *VALUES, *SAVED, *GRADS, "d_neural")]


@pytest.mark.parametrize(("operator", "argument"), TAKEN)
@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused(device: str, operator: str, argument: str, change: str) -> None:
    given = arguments(device)
    given[argument] = CHANGES[change](given[argument])
    if argument == "visible" and operator == "decode" and change in ("a row less", "a column less", "no rows"):
        call(operator, given)  # fewer visible anchors
        return
    if (operator, argument, change) in UNREAD:
        with contextlib.suppress(RuntimeError):
            call(operator, given)
        return
    with pytest.raises((RuntimeError, ValueError), match="anchor_decode: "):
        call(operator, given)


@pytest.mark.parametrize(("operator", "argument"), TAKEN)
def test_layouts_do_not_matter(device: str, operator: str, argument: str) -> None:
    given = arguments(device)
    expected = call(operator, given)
    tensor = given[argument]
    other = torch.stack([tensor, tensor], -1)[..., 0]
    assert not other.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(call(operator, given | {argument: other}), expected, strict=True))


@pytest.mark.parametrize(
    ("rows", "message"),
    [([0, 30], "visible holds 30, expected rows of 30"), ([-1], "holds -1"), ([3, 1, 3], "holds 3 twice")],
)
def test_rows_that_are_not_there_or_twice_are_refused(rows: list[int], message: str) -> None:
    given = scene(30, 20, LAYOUT) | {"visible": torch.tensor(rows)}
    with pytest.raises(RuntimeError, match=f"anchor_decode: visible .*{message.removeprefix('visible ')}"):
        torch.ops.anchor_decode.decode(*(given[n] for n in NAMES), None, 5, 0, False, False)


def test_what_was_kept_must_be_what_was_saved() -> None:
    given = arguments("cpu")
    given["kept"] = ~given["kept"]
    with pytest.raises(RuntimeError, match="anchor_decode: kept has"):
        call("decode_backward", given)
