"""Loss terms against values of the official code, and in special cases."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from anchor_scene import parity, parity_anchors, parity_decoder, random_anchors, random_decoder

from momentum_gs.config.schema import Config, LossConfig, TeacherConfig
from momentum_gs.core.image import l1, ssim
from momentum_gs.core.types import TargetImage
from momentum_gs.model.expand import decode, decode_with_teacher
from momentum_gs.train.losses import CONSISTENCY_TERMS, IMAGE_TERMS, consistency, loss_terms, reconstruction, volume

CENTER = torch.tensor([0.0, 0.0, 5.0])


def images() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.rand(3, 24, 20, generator=rng), torch.rand(3, 24, 20, generator=rng)


def test_parity_of_the_consistency_terms() -> None:
    figures = parity("decoder")
    decoded, targets = decode_with_teacher(
        parity_anchors(),
        parity_decoder("student"),
        parity_decoder("teacher"),
        figures["camera_center"],
        figures["visible"].nonzero().squeeze(1),
    )
    found = consistency(decoded, targets)
    assert found.keys() == {"color", "rotation", "scale", "opacity"}
    for name, value in found.items():
        # Means of up to 5156 float32 squares: the order of summation changes the last two digits.
        torch.testing.assert_close(value.detach(), figures[f"loss_{name}"], rtol=3e-6, atol=0)


def test_consistency_is_zero_for_the_student_itself_and_is_a_mean() -> None:
    anchors, student, teacher = random_anchors(10), random_decoder(), random_decoder(seed=1)
    same = consistency(*decode_with_teacher(anchors, student, student, CENTER))
    assert all(value == 0 for value in same.values())
    once = consistency(*decode_with_teacher(anchors, student, teacher, CENTER))
    twice = consistency(*decode_with_teacher(type(anchors).cat([anchors, anchors]), student, teacher, CENTER))
    for name in once:
        # A mean over the same numbers twice.
        torch.testing.assert_close(twice[name], once[name], rtol=1e-5, atol=0)


def test_consistency_has_a_gradient_for_the_student_only() -> None:
    anchors, student, teacher = random_anchors(10), random_decoder(), random_decoder(seed=1)
    sum(consistency(*decode_with_teacher(anchors, student, teacher, CENTER)).values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_reconstruction_is_eq_3() -> None:
    image, target = images()
    parts = reconstruction(image, TargetImage(target), LossConfig(dssim=0.2))
    torch.testing.assert_close(parts["l1"], 0.8 * l1(image, target))
    torch.testing.assert_close(parts["dssim"], 0.2 * (1 - ssim(image, target)))
    perfect = reconstruction(target, TargetImage(target), LossConfig(dssim=0.2))
    assert perfect["l1"] == 0
    # SSIM of an image with itself is 1 up to float32 round-off of its moments.
    assert abs(float(perfect["dssim"])) < 1e-6


def test_volume_is_the_mean_product() -> None:
    scales = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.5, 4.0]], dtype=torch.float64, requires_grad=True)
    assert volume(scales) == (6 + 1) / 2
    assert torch.autograd.gradcheck(volume, scales)
    torch.testing.assert_close(volume(scales), scales.prod(dim=1).mean())


@pytest.mark.parametrize("with_teacher", [True, False])
def test_terms_are_weighted_and_named(with_teacher: bool) -> None:
    image, target = images()
    anchors, student = random_anchors(10), random_decoder()
    config = Config(loss=LossConfig(dssim=0.2, volume=0.5), teacher=TeacherConfig(consistency=7.0))
    if with_teacher:
        decoded, targets = decode_with_teacher(anchors, student, random_decoder(seed=1), CENTER)
    else:
        decoded, targets = decode(anchors, student, CENTER), None
    terms = loss_terms(image, TargetImage(target), decoded, targets, config)
    assert tuple(terms) == IMAGE_TERMS + (CONSISTENCY_TERMS if with_teacher else ())
    torch.testing.assert_close(terms["volume"], 0.5 * decoded.gaussians.scales.prod(dim=1).mean())
    if targets is not None:
        torch.testing.assert_close(terms["consistency_color"], 7 * F.mse_loss(decoded.gaussians.colors, targets.color))
        assert all(terms[name] > 0 for name in CONSISTENCY_TERMS)


@pytest.mark.parametrize("opacity_bias", [-10.0, None], ids=["nothing kept", "nothing visible"])
def test_a_view_without_gaussians_gives_zeros_and_finite_gradients(opacity_bias: float | None) -> None:
    anchors, student, teacher = random_anchors(6), random_decoder(), random_decoder(seed=1)
    visible = torch.arange(6 if opacity_bias is not None else 0)
    if opacity_bias is not None:
        with torch.no_grad():
            student.opacity[2].bias.fill_(opacity_bias)
    decoded, targets = decode_with_teacher(anchors, student, teacher, CENTER, visible)
    assert len(decoded.gaussians) == 0
    image, target = images()
    config = replace(Config(), teacher=TeacherConfig(consistency=50.0))
    terms = loss_terms(image, TargetImage(target), decoded, targets, config)
    assert terms["volume"] == 0
    assert all(terms[f"consistency_{name}"] == 0 for name in ("color", "rotation", "scale"))
    assert (terms["consistency_opacity"] == 0) == (opacity_bias is None)
    torch.stack(list(terms.values())).sum().backward()
    # Offsets would get a gradient through the image alone, which is a constant here.
    for leaf in (anchors.feature, anchors.log_scale, *student.parameters()):
        assert leaf.grad is not None and leaf.grad.isfinite().all()
