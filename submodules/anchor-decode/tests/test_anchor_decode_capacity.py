"""Anchors decoded before it is known how many there are and what they keep: the same bits with any capacity."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from anchor_decode import Capacity, Layout, decode
from anchor_decode import reference as readable
from decoders import LAYOUTS, scene, values_and_gradients
from torch import Tensor

CSRC = Path(__file__).parents[1] / "csrc"
LAYOUT = Layout(8, 4, 8)


def masked(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with a mask for the list of anchors."""
    mask = torch.zeros(len(given["position"]), dtype=torch.bool, device=given["position"].device)
    mask[given["visible"]] = True
    return given | {"visible": mask}


def found(given: dict[str, Tensor], layout: Layout, capacity: Capacity | None = None) -> list[Tensor]:
    """All values and gradients; the capacity serves for decoding with gradients."""
    values, gradients = values_and_gradients(lambda **all_of: decode(**all_of, capacity=capacity), given, layout)
    return values + gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS[:3])
@pytest.mark.parametrize("mask", [False, True])
def test_any_capacity_gives_the_same_bits_and_gradients(
    device: str, layout: Layout, dtype: torch.dtype, mask: bool
) -> None:
    given = scene(130, 97, layout, dtype, device=device)
    expected = found(given, layout)
    anchors, gaussians = 97, len(expected[0])
    assert 20 < gaussians < 97 * layout.offsets - 20
    given = masked(given) if mask else given
    assert all(torch.equal(a, b) for a, b in zip(found(given, layout), expected, strict=True))
    for expects in ((97, gaussians), (96, gaussians), (97, gaussians - 1), (1, 1), (500, 10**9), (0, 5), (5, 0)):
        capacity = Capacity(*expects)
        for a, b in zip(found(given, layout, capacity), expected, strict=True):
            assert torch.equal(a, b) and a.is_contiguous(), expects
        assert capacity.anchors == max(anchors + anchors // 4, expects[0] - expects[0] // 64)
        assert capacity.gaussians == max(gaussians + gaussians // 4, expects[1] - expects[1] // 64)


@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize("expects", [(30, 60), (200, 1000), (0, 0)])
def test_without_gradients(device: str, teacher: bool, expects: tuple[int, int]) -> None:
    given = masked(scene(130, 97, LAYOUT, torch.float32, device=device))
    given |= {} if teacher else {"teacher": None}
    plain, ample = decode(**given, layout=LAYOUT), decode(**given, layout=LAYOUT, capacity=Capacity(*expects))
    assert all(torch.equal(a, b) for a, b in zip(plain[:7], ample[:7], strict=True))
    assert torch.equal(ample.rows, given["visible"].nonzero()[:, 0]) and torch.equal(ample.rows, plain.rows)
    assert (ample.targets is None) == (not teacher)
    if ample.targets is not None and plain.targets is not None:
        assert all(torch.equal(a, b) for a, b in zip(plain.targets, ample.targets, strict=True))


@pytest.mark.parametrize(("anchors", "visible"), [(0, 0), (5, 0), (1, 1), (300, 300)])
@pytest.mark.parametrize("expects", [(0, 0), (3, 3), (1000, 10_000)])
def test_a_mask_of_nothing_and_of_everything(
    device: str, anchors: int, visible: int, expects: tuple[int, int]
) -> None:
    given = masked(scene(anchors, visible, LAYOUT, device=device))
    values, gradients = values_and_gradients(lambda **a: decode(**a, capacity=Capacity(*expects)), given, LAYOUT)
    other = values_and_gradients(readable.decode, given, LAYOUT)
    for a, b in zip(values + gradients, other[0] + other[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_scene_that_keeps_nothing_and_then_much(device: str) -> None:
    given = masked(scene(300, 280, LAYOUT, device=device))
    faint = given | {"weights": given["weights"].clone()}
    readable.split(faint["weights"], LAYOUT)[0][3].fill_(-100.0)  # views: the bias of the opacities
    capacity = Capacity()
    for now in (given, faint, faint, given, faint):
        ample, plain = decode(**now, layout=LAYOUT, capacity=capacity), decode(**now, layout=LAYOUT)
        assert all(torch.equal(a, b) for a, b in zip(ample[:7], plain[:7], strict=True))
    for _ in range(300):
        capacity.after(10, 20)
    assert (capacity.anchors, capacity.gaussians) == (63, 63)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["reverse", "1"])
def test_order_of_threads_does_not_matter(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = pytest.importorskip("cuda_emulator", reason="the CUDA emulator is in the repository's tests/")
    given = masked(scene(300, 260, LAYOUT, torch.float32))
    emulator.load(CSRC)
    with emulator.instead_of_cpu("anchor_decode"):
        expected = found(given, LAYOUT)
        monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
        for expects in ((100, 100), (400, 2000)):
            made = found(given, LAYOUT, Capacity(*expects))
            assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("teacher", [True, False])
def test_the_host_waits_once_with_the_attributes_behind_it(
    teacher: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = pytest.importorskip("cuda_emulator", reason="the CUDA emulator is in the repository's tests/")
    given = masked(scene(300, 260, LAYOUT)) | ({} if teacher else {"teacher": None})
    given["feature"].requires_grad_()
    waits = tmp_path / "waits"
    emulator.load(CSRC)
    with emulator.instead_of_cpu("anchor_decode"):
        monkeypatch.setenv("CUDA_EMULATOR_WAITS", str(waits))
        decode(**given, layout=LAYOUT, capacity=Capacity(300, 2000)).means.sum().backward()
    assert waits.read_text() == f"{1 + teacher}\n"  # a kernel for each decoder


@pytest.mark.parametrize("capacity", [[-1, 3], [3, -1], [3], [1, 2, 3]])
def test_a_capacity_that_is_none_is_refused(device: str, capacity: list[int]) -> None:
    given = scene(10, 5, LAYOUT, device=device)
    names = ("position", "offset", "feature", "log_scale", "visible", "center", "weights")
    with pytest.raises(RuntimeError, match="anchor_decode: capacity is"):
        torch.ops.anchor_decode.decode(*(given[n] for n in names), None, 8, 0, False, False, capacity)


@pytest.mark.parametrize("rows", [9, 11])
def test_a_mask_of_other_anchors_is_refused(device: str, rows: int) -> None:
    given = scene(10, 5, LAYOUT, device=device) | {"visible": torch.ones(rows, dtype=torch.bool, device=device)}
    with pytest.raises(RuntimeError, match=r"visible is Bool of shape .*, expected int64 \[M\] or bool \[10\]"):
        decode(**given, layout=LAYOUT)


def test_the_gradient_takes_no_mask(device: str) -> None:
    given = scene(10, 5, LAYOUT, device=device)
    names = ("position", "offset", "feature", "log_scale", "visible", "center", "weights")
    made = torch.ops.anchor_decode.decode(*(given[n] for n in names), None, 8, 0, False, True)
    values, saved, grads = [made[i] for i in (1, 2, 4, 5, 6)], list(made[11:14]), [torch.ones_like(v) for v in made[:5]]
    with pytest.raises(RuntimeError, match="visible is Bool, expected int64"):
        torch.ops.anchor_decode.decode_backward(
            *(masked(given)[n] for n in names), 8, 0, False, values, saved, grads, None
        )


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [[], [3, 4], [100, 100]])
@pytest.mark.parametrize("train", [False, True])
def test_declared_as_torch_expects(device: str, capacity: list[int], train: bool) -> None:
    given = masked(scene(20, 15, LAYOUT, device=device))
    names = ("position", "offset", "feature", "log_scale", "visible", "center", "weights")
    torch.library.opcheck(
        torch.ops.anchor_decode.decode, (*(given[n] for n in names), given["teacher"], 8, 0, False, train, capacity),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


@pytest.mark.parametrize("expects", [None, (3, 3), (100, 1000)])
def test_the_layout_of_a_mask_does_not_matter(device: str, expects: tuple[int, int] | None) -> None:
    given = masked(scene(60, 41, LAYOUT, device=device))
    strided = torch.stack([given["visible"], ~given["visible"]], -1)[..., 0]
    assert not strided.is_contiguous()
    capacity = None if expects is None else Capacity(*expects)
    masks = strided, given["visible"]
    found, expected = (decode(**given | {"visible": mask}, layout=LAYOUT, capacity=capacity) for mask in masks)
    assert all(torch.equal(a, b) for a, b in zip(found[:7], expected[:7], strict=True))


@pytest.mark.parametrize(
    "change", [lambda t: t.to(torch.uint8), lambda t: t.float(), lambda t: t[None], lambda t: t.to("meta")]
)
def test_a_mask_of_another_kind_is_refused(device: str, change: Callable[[Tensor], Tensor]) -> None:
    given = masked(scene(60, 41, LAYOUT, device=device))
    with pytest.raises((RuntimeError, ValueError, NotImplementedError)):
        changed = given | {"visible": change(given["visible"])}
        decode(**changed, layout=LAYOUT, capacity=Capacity(100, 100)).means.sum().item()


def test_the_extensions_read_numbers_late_by_the_same_code() -> None:
    """Each has a copy, as each is built on its own."""
    copies = [path.read_text() for path in Path(__file__).parents[2].glob("*/csrc/cuda/late.cuh")]
    assert len({text.replace("namespace dgr", "namespace anchor_decode") for text in copies}) == 1
