"""The kernels against the readable reference, and facts about decoding."""

import pytest
import torch
from anchor_decode import Layout, decode
from anchor_decode import reference as readable
from decoders import ATTRIBUTES, LAYOUTS, LEARNED, scene, values_and_gradients
from torch import Tensor

ALL_BUT_NEURAL = ATTRIBUTES[:5]


@pytest.mark.parametrize("layout", LAYOUTS)
# Fewer than a tile, several tiles, several units, groups of units.
@pytest.mark.parametrize(("anchors", "visible"), [(3, 1), (100, 66), (700, 600)])
@pytest.mark.parametrize("outputs", [ATTRIBUTES, ALL_BUT_NEURAL, ("neural_opacity",), ("means",)])
def test_equals_the_reference_in_double(
    device: str, layout: Layout, anchors: int, visible: int, outputs: tuple[str, ...]
) -> None:
    given = scene(anchors, visible, layout, device=device, shuffled=anchors == 100)
    found, expected = (values_and_gradients(f, given, layout, outputs) for f in (decode, readable.decode))
    for a, b in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
        # Sums of up to 600 terms of size 1 in another order.
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
def test_more_anchors_than_groups_of_one_unit() -> None:
    layout = Layout(8, 2, 8)
    given = scene(20_000, 18_000, layout)
    found, expected = (values_and_gradients(f, given, layout) for f in (decode, readable.decode))
    for a, b in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS[:3])
def test_single_precision_is_as_good_as_the_reference(device: str, layout: Layout) -> None:
    given = scene(900, 700, layout, torch.float32, device=device)
    exact = values_and_gradients(readable.decode, {k: _double(v) for k, v in given.items()}, layout)
    ours, reference = (values_and_gradients(f, given, layout) for f in (decode, readable.decode))
    assert torch.equal(ours[0][6], exact[0][6])  # with this seed no opacity is within round-off of zero
    for got, other, truth in zip(ours[0] + ours[1], reference[0] + reference[1], exact[0] + exact[1], strict=True):
        got, other, truth = got.double(), other.double(), truth.double()
        scale = float(truth.abs().max())
        error, allowed = float((got - truth).abs().max()), float((other - truth).abs().max())
        # Twice the reference's error in float32, and at least some rounding steps (6e-8).
        assert error <= max(2 * allowed, 5e-7 * scale)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


@pytest.mark.parametrize("layout", [Layout(4, 2, 5), Layout(8, 3, 4, (True, True, False), bank=True)])
def test_gradcheck(layout: Layout) -> None:
    given = scene(9, 6, layout)
    leaves = [given[name].requires_grad_() for name in LEARNED]

    def attributes(*learned: Tensor) -> tuple[Tensor, ...]:
        return tuple(decode(**given | dict(zip(LEARNED, learned, strict=True)), layout=layout)[:6])

    assert torch.autograd.gradcheck(attributes, leaves)


@pytest.mark.parametrize("anchors", [0, 5])
def test_no_visible_anchor_gives_no_gaussian(device: str, anchors: int) -> None:
    layout = Layout(8, 3, 8)
    values, gradients = values_and_gradients(decode, scene(anchors, 0, layout, device=device), layout)
    assert [value.shape for value in values[:7]] == [(0, 3), (0, 3), (0, 4), (0, 1), (0, 3), (0, 3), (0, 3)]
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("bias", [-3.0, -100.0])
def test_anchors_that_keep_nothing_have_a_gradient_by_their_neural_opacity_alone(device: str, bias: float) -> None:
    layout = Layout(8, 3, 8)
    given = scene(300, 280, layout, device=device)
    readable.split(given["weights"], layout)[0][3].fill_(bias)  # views: the bias of the opacities
    found, expected = (values_and_gradients(f, given, layout) for f in (decode, readable.decode))
    assert len(found[0][0]) == 0 and not found[0][6].any()
    for a, b in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert not found[1][0].any() and bool(found[1][1].any()) == (bias == -3)  # tanh(-100) is flat


def test_the_teacher_decodes_what_the_student_keeps(device: str) -> None:
    layout = Layout(8, 4, 8, (False, True, False))
    given = scene(300, 200, layout, device=device)
    alone = ({"weights": given[name], "teacher": None} for name in ("weights", "teacher"))
    student, teacher = (decode(**given | weights, layout=layout) for weights in alone)
    both = decode(**given, layout=layout)
    assert all(torch.equal(a, b) for a, b in zip(both[:7], student[:7], strict=True))
    assert both.targets is not None and torch.equal(both.targets.neural_opacity, teacher.neural_opacity)
    shared = student.kept & teacher.kept
    assert 0 < shared.sum() < student.kept.sum()
    for name in ("scales", "quats", "colors"):
        assert torch.equal(
            getattr(both.targets, name)[shared[student.kept]], getattr(teacher, name)[shared[teacher.kept]]
        )
    assert not any(target.requires_grad for target in both.targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    layout = Layout(32, 10, 32)
    given = scene(12_000, 9_000, layout, dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            values, gradients = values_and_gradients(decode, given, layout)
            results.append(values + gradients)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_an_anchor_has_the_same_bits_whatever_is_decoded_with_it(device: str) -> None:
    """So a part of a view is that part of the whole view."""
    layout = Layout(32, 10, 32, bank=True)
    given = scene(700, 600, layout, torch.float32, device=device)
    every = decode(**given, layout=layout)
    for rows in (torch.arange(3, 600, 7), torch.arange(599, -1, -1)):
        some = decode(**given | {"visible": given["visible"][rows]}, layout=layout)
        assert torch.equal(some.neural_opacity, every.neural_opacity[rows])
        of = torch.full((600, 10), -1, device=device)
        of[every.kept] = torch.arange(len(every.means), device=device)
        gaussians = of[rows][every.kept[rows]]
        for name in ATTRIBUTES[:5]:
            assert torch.equal(getattr(some, name), getattr(every, name)[gaussians])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 1e-42])
@pytest.mark.parametrize("name", ["position", "offset", "feature", "log_scale"])
def test_a_broken_anchor_changes_no_other(device: str, name: str, bad: float) -> None:
    layout = Layout(8, 4, 8, (True, True, True), bank=True)
    given = scene(130, 100, layout, torch.float32, device=device)
    row = int(given["visible"][40])
    broken = given | {name: given[name].clone()}
    broken[name][row] = bad
    clean, dirty = (decode(**arguments, layout=layout) for arguments in (given, broken))
    others = torch.arange(100, device=device) != 40
    assert torch.equal(dirty.neural_opacity[others], clean.neural_opacity[others])
    owner = [torch.arange(100, device=device)[:, None].expand(-1, 4)[d.kept] for d in (clean, dirty)]
    for attribute in ATTRIBUTES[:5]:
        a, b = (getattr(d, attribute)[o != 40] for d, o in zip((clean, dirty), owner, strict=True))
        assert torch.equal(a, b)
    expected = readable.decode(**broken, layout=layout)
    if torch.equal(expected.kept, dirty.kept):
        for attribute in ATTRIBUTES:
            a, b = (getattr(d, attribute) for d in (dirty, expected))
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 1e2, 1e6])
def test_saturated_outputs_are_in_their_ranges(device: str, size: float) -> None:
    layout = Layout(16, 5, 16)
    given = scene(200, 150, layout, torch.float32, device=device)
    given["weights"] = given["weights"] * size
    values, gradients = values_and_gradients(decode, given, layout)
    means, scales, quats, opacities, colors, neural, kept = values[:7]
    assert means.isfinite().all() and (scales >= 0).all() and (colors >= 0).all() and (colors <= 1).all()
    assert (neural.abs() <= 1).all() and (opacities > 0).all() and torch.equal(kept, neural > 0)
    # A length whose square is below the smallest number gives the zero quaternion, as torch's normalize does.
    assert (quats.norm(dim=1) <= 1.000001).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_without_gradients_the_values_are_the_same(device: str) -> None:
    layout = Layout(8, 4, 8)
    given = scene(100, 80, layout, torch.float32, device=device)
    plain = decode(**given, layout=layout)
    given["feature"].requires_grad_()
    trained = decode(**given, layout=layout)
    assert trained.means.requires_grad and not plain.means.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(plain[:7], trained[:7], strict=True))
    with torch.no_grad():
        assert not decode(**given, layout=layout).colors.requires_grad


def test_weights_may_be_parameters_in_their_order(device: str) -> None:
    layout = Layout(8, 4, 8, bank=True)
    given = scene(100, 80, layout, device=device)
    parts = [part.clone().requires_grad_() for network in readable.split(given["weights"], layout) for part in network]
    row = given["weights"].requires_grad_()
    whole, split = decode(**given, layout=layout), decode(**given | {"weights": parts}, layout=layout)
    assert torch.equal(whole.colors, split.colors)
    (expected,) = torch.autograd.grad(whole.colors.sum() + whole.means.sum(), row)
    found = torch.autograd.grad(split.colors.sum() + split.means.sum(), parts)
    assert torch.equal(torch.cat([part.flatten() for part in found]), expected)


@pytest.mark.parametrize("name", ["position", "center", "teacher"])
def test_what_gets_no_gradient_must_not_want_one(name: str) -> None:
    layout = Layout(8, 4, 8)
    given = scene(10, 5, layout)
    given[name].requires_grad_()
    with pytest.raises(ValueError, match=f"{name} requires a gradient, expected none"):
        decode(**given, layout=layout)
    with torch.no_grad():
        decode(**given, layout=layout)


@pytest.mark.slow
def test_declared_as_torch_expects(device: str) -> None:
    layout = Layout(8, 4, 8, (True, False, False), bank=True)
    given = scene(20, 15, layout, device=device)
    checks = ("test_schema", "test_faketensor")
    names = ("position", "offset", "feature", "log_scale", "visible", "center", "weights")
    options = (layout.hidden, layout.distances, layout.bank)
    operator = torch.ops.anchor_decode.decode
    for teacher, train in ((None, False), (given["teacher"], True)):
        torch.library.opcheck(operator, (*(given[n] for n in names), teacher, *options, train), test_utils=checks)
    found = operator(*(given[n] for n in names), None, *options, True)
    values, saved = [found[1], found[2], found[4], found[5], found[6]], list(found[11:14])
    grads = [torch.ones_like(value) for value in found[:5]]
    torch.library.opcheck(
        torch.ops.anchor_decode.decode_backward,
        (*(given[n] for n in names), *options, values, saved, grads, torch.ones_like(found[5])),
        test_utils=checks,
    )
