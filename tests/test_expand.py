"""Decoding anchors, against values of the official code and a readable reference, in value and gradient."""

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from anchor_scene import parity, parity_anchors, parity_decoder, random_anchors, random_decoder
from torch import Tensor

from momentum_gs.core.types import Gaussians
from momentum_gs.model import fused
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder_bank import DecoderBank
from momentum_gs.model.expand import decode, decode_with_teacher, expand_reference

CENTER = torch.tensor([0.3, -0.2, 4.0])
# The values come from the same float32 operations with sums in another order.
ROUND_OFF = {"rtol": 2e-6, "atol": 1e-6}


def weighted_sum(gaussians: Gaussians, dtype: torch.dtype = torch.float64) -> Tensor:
    """A sum with a random weight for each number, so that no gradients cancel or can be exchanged."""
    rng = torch.Generator().manual_seed(5)
    weights = [torch.randn(part.shape, generator=rng, dtype=dtype) for part in vars(gaussians).values()]
    return torch.stack([(p * w).sum() for p, w in zip(vars(gaussians).values(), weights, strict=True)]).sum()


def test_parity_of_student_and_teacher() -> None:
    figures = parity("decoder")
    visible = figures["visible"].nonzero().squeeze(1)
    decoded, targets = decode_with_teacher(
        parity_anchors(), parity_decoder("student"), parity_decoder("teacher"), figures["camera_center"], visible
    )
    gaussians = decoded.gaussians
    assert torch.equal(decoded.kept, figures["mask"])
    for found, name in [
        (gaussians.means, "xyz"),
        (gaussians.colors, "color"),
        (gaussians.opacities, "opacity"),
        (gaussians.scales, "scale"),
        (gaussians.quats, "rotation"),
        (decoded.neural_opacity, "neural_opacity"),
        (targets.color, "teacher_color"),
        (targets.scale, "teacher_scale"),
        (targets.rotation, "teacher_rotation"),
        (targets.neural_opacity, "teacher_neural_opacity"),
    ]:
        torch.testing.assert_close(found.detach(), figures[name], **ROUND_OFF, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("flags", [{}, {"use_feature_bank": True, "add_cov_dist": True, "add_color_dist": True}])
@pytest.mark.parametrize("visible", [[1, 4, 5, 17, 39], list(range(40)), [39, 0, 20], []])
def test_value_and_gradient_are_those_of_the_reference(visible: list[int], flags: dict[str, bool]) -> None:
    anchors = random_anchors(40, dtype=torch.float64)
    decoder = random_decoder(**flags).double()
    rows = torch.tensor(visible, dtype=torch.int64)
    inputs = [*(anchors.rows()[name] for name in Anchors.LEARNABLE), *decoder.parameters()]

    found = decode(anchors, decoder, CENTER, rows).gaussians
    expected = expand_reference(anchors, decoder, CENTER.double(), rows)
    for field in fields(Gaussians):
        # float64; the decoder's products may be summed in another order for another number of rows.
        torch.testing.assert_close(getattr(found, field.name), getattr(expected, field.name), rtol=1e-12, atol=1e-12)
    found_grads = torch.autograd.grad(weighted_sum(found), inputs, allow_unused=True, materialize_grads=True)
    expected_grads = torch.autograd.grad(weighted_sum(expected), inputs, allow_unused=True, materialize_grads=True)
    for a, b in zip(found_grads, expected_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_all_visible_is_the_default() -> None:
    anchors, decoder = random_anchors(12), random_decoder()
    every, listed = decode(anchors, decoder, CENTER), decode(anchors, decoder, CENTER, torch.arange(12))
    assert torch.equal(every.visible, listed.visible)
    assert all(
        torch.equal(a, b) for a, b in zip(vars(every.gaussians).values(), vars(listed.gaussians).values(), strict=True)
    )


def test_gaussians_are_those_of_positive_opacity() -> None:
    decoded = decode(random_anchors(30), random_decoder(), CENTER)
    assert 0 < len(decoded.gaussians) < 30 * 4
    assert torch.equal(decoded.kept, decoded.neural_opacity.squeeze(1) > 0)
    assert torch.equal(decoded.gaussians.opacities, decoded.neural_opacity[decoded.kept])
    assert (decoded.gaussians.scales > 0).all()
    # A unit vector after one float32 division of four components.
    torch.testing.assert_close(
        decoded.gaussians.quats.norm(dim=1), torch.ones(len(decoded.gaussians)), rtol=0, atol=5e-7
    )


def test_a_teacher_equal_to_the_student_gives_the_same() -> None:
    anchors, student = random_anchors(20), random_decoder()
    decoded, targets = decode_with_teacher(anchors, student, student, CENTER, torch.arange(3, 17))
    assert torch.equal(targets.color, decoded.gaussians.colors)
    assert torch.equal(targets.scale, decoded.gaussians.scales)
    assert torch.equal(targets.rotation, decoded.gaussians.quats)
    assert torch.equal(targets.neural_opacity, decoded.neural_opacity)


def test_the_teachers_targets_are_for_the_gaussians_that_the_student_keeps() -> None:
    anchors, teacher = random_anchors(20), random_decoder(seed=1)
    decoded, targets = decode_with_teacher(anchors, random_decoder(), teacher, CENTER)
    alone = decode(anchors, teacher, CENTER)
    both = decoded.kept & alone.kept
    assert 0 < both.sum() < decoded.kept.sum()
    assert torch.equal(targets.color[both[decoded.kept]], alone.gaussians.colors[both[alone.kept]])
    assert torch.equal(targets.neural_opacity, alone.neural_opacity)


@pytest.mark.parametrize("detach", [True, False])
def test_detach_decides_whether_the_teacher_moves_the_anchors(detach: bool) -> None:
    anchors = random_anchors(20)
    teacher = random_decoder(seed=1).requires_grad_(False)
    _, targets = decode_with_teacher(anchors, random_decoder(), teacher, CENTER, None, detach)
    for target in vars(targets).values():
        assert target.requires_grad != detach
    if not detach:
        feature, log_scale = torch.autograd.grad(targets.scale.sum(), [anchors.feature, anchors.log_scale])
        assert feature.any() and log_scale[:, 3:].any() and not log_scale[:, :3].any()


def test_the_camera_moves_no_gaussian() -> None:
    """Positions depend on anchors and offsets alone; the camera changes opacity, colour and shape."""
    anchors, decoder = random_anchors(20), random_decoder()
    here, there = decode(anchors, decoder, CENTER), decode(anchors, decoder, -CENTER)
    both = here.kept & there.kept
    assert both.any()
    assert torch.equal(here.gaussians.means[both[here.kept]], there.gaussians.means[both[there.kept]])


@pytest.fixture
def readable(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, the operator of ``model/fused.py`` is not used."""
    return lambda: monkeypatch.setattr(fused, "covers", lambda *arguments: False)


OPTIONS = [
    {},
    {"use_feature_bank": True},
    {"use_feature_bank": True, "add_opacity_dist": True, "add_cov_dist": True, "add_color_dist": True},
    {"add_opacity_dist": True},
    {"hidden_dim": 20},
    {"background_degree": 1},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("with_teacher", [True, False])
def test_the_operator_and_the_readable_path_agree(
    options: dict[str, int], with_teacher: bool, readable: Callable[[], None]
) -> None:
    anchors = random_anchors(60, dtype=torch.float64)
    student, teacher = (random_decoder(seed=seed, **options).double() for seed in (0, 1))
    teacher.requires_grad_(False)
    rows = torch.arange(0, 60, 2)
    inputs = [*(anchors.rows()[name] for name in Anchors.LEARNABLE), *student.parameters()]

    def result() -> tuple[list[Tensor], list[Tensor]]:
        targets = None
        if with_teacher:
            decoded, targets = decode_with_teacher(anchors, student, teacher, CENTER, rows)
        else:
            decoded = decode(anchors, student, CENTER, rows)
        values = [*vars(decoded.gaussians).values(), decoded.neural_opacity, decoded.kept.double()]
        loss = weighted_sum(decoded.gaussians) + (decoded.neural_opacity.square().sum() if with_teacher else 0)
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
        return values + list(vars(targets).values() if targets else ()), list(gradients)

    assert fused.covers(anchors, CENTER.double(), student, teacher)
    ours = result()
    readable()
    for a, b in zip(sum(ours, []), sum(result(), []), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_what_the_operator_does_not_cover_is_decoded_readably() -> None:
    anchors, decoder = random_anchors(12), random_decoder()
    assert fused.covers(anchors, CENTER, decoder)
    moving = replace(anchors, position=anchors.position.clone().requires_grad_())
    for covered in (
        fused.covers(anchors, CENTER, DecoderBank([decoder, random_decoder(hidden_dim=9)], torch.arange(12) % 2)),
        fused.covers(anchors, CENTER, decoder.double()),
        fused.covers(moving, CENTER, random_decoder()),
        fused.covers(anchors, CENTER, random_decoder(), random_decoder(hidden_dim=9)),
    ):
        assert not covered
    decode(moving, random_decoder(), CENTER).gaussians.means.sum().backward()
    assert moving.position.grad is not None and (moving.position.grad != 0).any()


def test_a_bank_is_decoded_as_its_decoders_are(readable: Callable[[], None]) -> None:
    anchors, rows = random_anchors(30), torch.tensor([29, 3, 4, 8, 0, 11])
    decoders = [random_decoder(seed=seed) for seed in range(3)]
    bank = DecoderBank(decoders, torch.arange(30) % 3)
    found = decode(anchors, bank, CENTER, rows)
    owner = torch.arange(6).repeat_interleave(4)[found.kept]
    for i, row in enumerate(rows.tolist()):
        alone = decode(anchors, decoders[row % 3], CENTER, torch.tensor([row])).gaussians
        for field in fields(Gaussians):
            assert torch.equal(getattr(found.gaussians, field.name)[owner == i], getattr(alone, field.name))
    readable()
    expected = decode(anchors, bank, CENTER, rows)
    assert torch.equal(found.kept, expected.kept)
    for a, b in zip(vars(found.gaussians).values(), vars(expected.gaussians).values(), strict=True):
        torch.testing.assert_close(a, b, **ROUND_OFF)
