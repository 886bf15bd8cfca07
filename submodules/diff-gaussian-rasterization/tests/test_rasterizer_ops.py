"""The kernels against the readable reference: values, gradients, and facts about the image."""

from collections.abc import Callable

import pytest
import torch
from diff_gaussian_rasterization import Rasterization, rasterize, visible_radii
from diff_gaussian_rasterization.reference import rasterize_reference
from rasterizer_scenes import Scene, make_scene, screen_scene, with_cov3d
from torch import Tensor

# float64: round-off of sums of some thousand terms. float32: the error of alpha is 2e-7 (the fitted exponential),
# summed over tens of layers; gradients also divide by 1 - alpha, down to 0.05 here.
TOLERANCE = {torch.float64: (1e-12, 1e-11), torch.float32: (5e-6, 2e-5)}


def gradients(
    draw: Callable[..., Rasterization], scene: Scene, outputs: str = "image alpha depth"
) -> dict[str, Tensor]:
    """Gradients of a fixed random functional of the named outputs."""
    inputs = {k: v.clone().requires_grad_() for k, v in scene.items() if isinstance(v, Tensor)}
    inputs["means2d"] = torch.zeros_like(scene["means"]).requires_grad_()
    out = draw(**(scene | inputs))
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=scene["means"].dtype)
    for name in outputs.split():
        image = getattr(out, name)
        loss = loss + (image * torch.randn(image.shape, generator=generator, dtype=torch.float64).to(image)).sum()
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    return {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(inputs.items(), grads, strict=True)}


def assert_same(actual: Rasterization, expected: Rasterization, tolerance: float) -> None:
    torch.testing.assert_close(actual.image, expected.image, atol=tolerance, rtol=0)
    torch.testing.assert_close(actual.alpha, expected.alpha, atol=tolerance, rtol=0)
    torch.testing.assert_close(actual.depth, expected.depth, atol=4 * tolerance, rtol=0)  # z up to 4
    assert torch.equal(actual.radii, expected.radii)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 9])
def test_value_and_gradients_match_the_reference(dtype: torch.dtype, channels: int) -> None:
    scene = make_scene(channels=channels, dtype=dtype)
    value, gradient = TOLERANCE[dtype]
    assert_same(rasterize(**scene), rasterize_reference(**scene), value)
    expected = gradients(rasterize_reference, scene)
    for name, grad in gradients(rasterize, scene).items():
        scale = expected[name].abs().max()
        assert scale > 0, name
        torch.testing.assert_close(
            grad, expected[name], atol=gradient * scale.item(), rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("outputs", ["image", "alpha", "depth", "image depth", "image alpha"])
def test_gradient_of_each_output_alone(outputs: str) -> None:
    scene = make_scene()
    expected = gradients(rasterize_reference, scene, outputs)
    for name, grad in gradients(rasterize, scene, outputs).items():
        torch.testing.assert_close(grad, expected[name], atol=1e-9, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_cov3d_draws_what_scales_and_quats_draw() -> None:
    scene = make_scene()
    assert_same(rasterize(**with_cov3d(scene)), rasterize(**scene), 1e-12)
    expected = gradients(rasterize_reference, with_cov3d(scene))
    actual = gradients(rasterize, with_cov3d(scene))
    torch.testing.assert_close(actual["cov3d"], expected["cov3d"], atol=1e-9, rtol=1e-9)


def test_scale_modifier_multiplies_scales() -> None:
    scene = make_scene()
    larger = scene | {"scales": scene["scales"] * 1.7}
    assert_same(rasterize(**scene, scale_modifier=1.7), rasterize(**larger), 1e-12)


def test_large_footprints_over_many_tiles_match_the_reference() -> None:
    scene = make_scene(40, width=131, height=97)
    scene["scales"] = scene["scales"] * 6
    assert_same(rasterize(**scene), rasterize_reference(**scene), 1e-12)
    expected = gradients(rasterize_reference, scene)
    for name, grad in gradients(rasterize, scene).items():
        torch.testing.assert_close(grad, expected[name], atol=1e-10 * expected[name].abs().max().item(), rtol=0)


def test_opaque_stack_stops_as_the_reference_does() -> None:
    # 200 nearly opaque layers: every pixel passes the cap of alpha and the stop of the transmittance.
    scene = make_scene(200, max_opacity=1.0)
    scene["opacities"] = 0.5 + 0.5 * scene["opacities"]
    scene["scales"] = scene["scales"] * 4
    out = rasterize(**scene)
    # A pixel stops before its transmittance falls under 1e-4.
    assert (1 - out.alpha).min() >= 1e-4 - 1e-12
    assert (out.alpha > 0.99).any()
    assert_same(out, rasterize_reference(**scene), 1e-12)
    expected = gradients(rasterize_reference, scene)
    for name, grad in gradients(rasterize, scene).items():
        torch.testing.assert_close(grad, expected[name], atol=1e-10 * expected[name].abs().max().item(), rtol=0)


@pytest.mark.parametrize("name", ["means", "scales", "quats", "opacities", "colors", "background", "world_view"])
def test_gradcheck(name: str) -> None:
    # Few Gaussians, wide and faint: no pixel is within the difference step of 1/255, 0.99 or 1e-4, where values jump.
    scene = make_scene(5, width=9, height=7, max_opacity=0.5)
    scene |= {"fx": 8.0, "fy": 8.0, "cx": 4.6, "cy": 3.4}
    scene["scales"] = scene["scales"] + 1.0

    def draw(tensor: Tensor) -> tuple[Tensor, ...]:
        return tuple(rasterize(**(scene | {name: tensor}))[:3])

    assert torch.autograd.gradcheck(draw, scene[name].clone().requires_grad_(), eps=1e-6, atol=1e-6)


def test_gradcheck_cov3d() -> None:
    scene = make_scene(5, width=9, height=7, max_opacity=0.5)
    scene |= {"fx": 8.0, "fy": 8.0, "cx": 4.6, "cy": 3.4}
    scene["scales"] = scene["scales"] + 1.0
    scene = with_cov3d(scene)

    def draw(cov3d: Tensor) -> tuple[Tensor, ...]:
        return tuple(rasterize(**(scene | {"cov3d": cov3d}))[:3])

    assert torch.autograd.gradcheck(draw, scene["cov3d"].clone().requires_grad_(), eps=1e-6, atol=1e-6)


def test_float32_agrees_with_float64_on_a_crowded_image() -> None:
    scene = screen_scene(20000, 300, 200)
    exact = rasterize(**{k: v.double() if isinstance(v, Tensor) else v for k, v in scene.items()})
    out = rasterize(**scene)
    # A float32 mean is off by 1e-5 px; an alpha on the threshold 1/255 may fall on either side.
    assert (out.image - exact.image).abs().max() < 1.5 / 255
    assert (out.image - exact.image).abs().mean() < 1e-5


def test_centre_of_a_gaussian_is_where_the_camera_puts_it() -> None:
    # A point on the optical axis is projected to the principal point; pixel i spans i to i + 1.
    scene = make_scene(1, dtype=torch.float32) | {"cx": 20.5, "cy": 10.5, "world_view": torch.eye(4)}
    scene |= {"means": torch.tensor([[0.0, 0.0, 2.0]]), "opacities": torch.tensor([[0.8]])}
    scene |= {"scales": torch.full((1, 3), 0.1), "quats": torch.tensor([[1.0, 0.0, 0.0, 0.0]])}
    out = rasterize(**scene)
    assert divmod(int(out.alpha.argmax()), 50) == (10, 20)
    # At the centre alpha is the opacity.
    expected = 0.8 * scene["colors"][0] + 0.2 * scene["background"]
    torch.testing.assert_close(out.image[:, 10, 20], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(out.depth[10, 20], torch.tensor(1.6), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.image[:, 36, 49], scene["background"], atol=0, rtol=0)


def test_nearer_gaussian_hides_the_farther_whatever_the_order() -> None:
    scene = make_scene(2, dtype=torch.float32) | {"world_view": torch.eye(4), "background": torch.zeros(3)}
    scene |= {"means": torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 2.0]]), "opacities": torch.full((2, 1), 0.99)}
    scene |= {"scales": torch.full((2, 3), 1.0), "quats": torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 2)}
    scene |= {"colors": torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])}
    swapped = scene | {k: scene[k].flip(0) for k in ("means", "colors")}
    out = rasterize(**scene)
    assert out.image[1, 18, 25] > 0.95 > 0.05 > out.image[0, 18, 25]
    assert torch.equal(out.image, rasterize(**swapped).image)


def test_means2d_receives_the_pixel_gradient_in_ndc_units() -> None:
    # Moving the principal point moves every projected mean: its gradient is the sum of the pixel gradients.
    scene = make_scene()
    grads = gradients(rasterize, scene, "image")["means2d"]
    weights = torch.randn(3, 37, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-6

    def loss(cx: float) -> Tensor:
        return (rasterize(**(scene | {"cx": cx})).image * weights).sum()

    numeric = (loss(scene["cx"] + step) - loss(scene["cx"] - step)) / (2 * step)
    torch.testing.assert_close(grads[:, 0].sum() / (0.5 * 50), numeric, rtol=1e-4, atol=1e-4)
    assert torch.equal(grads[:, 2], torch.zeros_like(grads[:, 2]))


# ------------------------------------------------------------------------------------------------- hostile input


def test_empty_scene_is_background() -> None:
    scene = make_scene(0, dtype=torch.float32)
    out = rasterize(**scene)
    assert torch.equal(out.image, scene["background"][:, None, None].expand(3, 37, 50))
    assert out.radii.shape == (0,)
    grads = gradients(rasterize, scene, "image")
    assert grads["means"].shape == (0, 3)
    assert grads["background"].abs().sum() > 0


@pytest.mark.parametrize("size", [(1, 1), (3, 791), (791, 3), (33, 31)])
def test_odd_image_sizes(size: tuple[int, int]) -> None:
    scene = make_scene(30, width=size[0], height=size[1])
    assert_same(rasterize(**scene), rasterize_reference(**scene), 1e-12)


def test_behind_and_near_the_camera_is_culled() -> None:
    scene = make_scene(4, dtype=torch.float32) | {"world_view": torch.eye(4)}
    scene["means"] = torch.tensor([[0.0, 0.0, z] for z in (-1.0, 0.0, 0.2, 0.21)])
    assert (rasterize(**scene).radii > 0).tolist() == [False, False, False, True]
    assert (rasterize(**scene, near=0.0).radii > 0).tolist() == [False, False, True, True]


def test_visible_radii_are_the_radii_of_drawing() -> None:
    scene = make_scene(200, dtype=torch.float32)
    scene["means"] = scene["means"] * 4 - 3
    radii = rasterize(**scene).radii
    camera = {k: scene[k] for k in ("world_view", "fx", "fy", "cx", "cy", "width", "height")}
    assert torch.equal(visible_radii(scene["means"], scene["scales"], scene["quats"], **camera), radii)
    assert 0 < int((radii > 0).sum()) < 200


def test_wrong_arguments_are_named() -> None:
    scene = make_scene(120)
    cases = [
        (
            {"quats": scene["quats"][:, :3]},
            r"quats has shape \[120, 3\], expected \[G, 4\] with G=120 from means \(wxyz order\)",
        ),
        ({"opacities": scene["opacities"][:, 0]}, r"opacities has shape \[120\], expected \[G, 1\] with G=120"),
        ({"colors": scene["colors"][:7]}, r"colors has shape \[7, 3\], expected \[G, C\] with G=120"),
        ({"background": scene["background"][:2]}, r"background has shape \[2\], expected \[C\] with C=3 from colors"),
        ({"scales": scene["scales"].float()}, r"scales is torch.float32 .* expected torch.float64"),
        ({"means": scene["means"].half()}, "means is torch.float16, expected torch.float32 or torch.float64"),
        ({"quats": None}, "quats is missing; give scales and quats, or cov3d"),
        ({"cov3d": scene["scales"]}, "cov3d beside scales or quats"),
        ({"width": 0}, "image of 0x37 pixels"),
        ({"near": -1.0}, "near is -1.0, expected 0 or more"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match="rasterize: .*" + message):
            rasterize(**(scene | change))
