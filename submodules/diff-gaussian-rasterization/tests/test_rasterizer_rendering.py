"""The call like gsplat's: against ``rasterize``, camera by camera."""

from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import rasterization, rasterize, spherical_harmonics
from rasterizer_scenes import Scene, make_scene
from torch import Tensor

Call = dict[str, Any]


def two_views() -> tuple[list[Scene], Call]:
    """The same Gaussians seen by two cameras: as ``rasterize`` takes them, and as one call."""
    first = make_scene() | {"near": 0.01}
    second = first | {"fx": 37.0, "cy": first["cy"] + 2, "world_view": first["world_view"].clone()}
    second["world_view"][:3, 3] += torch.tensor([0.3, -0.2, 0.4])
    second["background"] = first["background"].flip(0)
    matrices = [
        torch.tensor([[s["fx"], 0, s["cx"]], [0, s["fy"], s["cy"]], [0, 0, 1]], dtype=torch.float64)
        for s in (first, second)
    ]
    call = {name: first[name] for name in ("means", "scales", "colors", "width", "height")}
    call |= {"opacities": first["opacities"][:, 0], "quats": 3 * first["quats"], "Ks": torch.stack(matrices)}
    call["viewmats"] = torch.stack([first["world_view"], second["world_view"]])
    call["backgrounds"] = torch.stack([first["background"], second["background"]])
    return [first, second], call


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_each_camera_is_rasterize(packed: bool, mode: str) -> None:
    scenes, call = two_views()
    renders, alphas, meta = rasterization(**call, packed=packed, rasterize_mode=mode, render_mode="RGB+ED")
    assert renders.shape == (2, 37, 50, 4) and alphas.shape == (2, 37, 50, 1)
    for i, scene in enumerate(scenes):
        expected = rasterize(**scene, antialiasing=mode == "antialiased")
        torch.testing.assert_close(renders[i, ..., :3].permute(2, 0, 1), expected.image)
        torch.testing.assert_close(alphas[i, ..., 0], expected.alpha)
        torch.testing.assert_close(renders[i, ..., 3] * expected.alpha, expected.depth)
        radii = meta["radii"]
        if packed:
            own = meta["camera_ids"] == i
            assert torch.equal(meta["gaussian_ids"][own], expected.radii.nonzero()[:, 0])
            assert torch.equal(radii[own][:, 0], expected.radii[expected.radii > 0])
        else:
            assert torch.equal(radii[i], expected.radii[:, None].expand(-1, 2))
    assert (meta["width"], meta["height"], meta["n_cameras"]) == (50, 37, 2)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("D", 1), ("ED", 1), ("RGB+D", 4), ("RGB+ED", 4)])
def test_modes(mode: str, channels: int) -> None:
    scenes, call = two_views()
    renders, alphas, _ = rasterization(**call, render_mode=mode)
    assert renders.shape == (2, 37, 50, channels)
    if mode != "RGB":
        depth = torch.stack([rasterize(**scene).depth for scene in scenes])
        if "ED" in mode:
            depth = depth / alphas[..., 0].clamp_min(1e-10)
        torch.testing.assert_close(renders[..., -1], depth)


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_and_those_of_the_projected_means(packed: bool) -> None:
    scenes, call = two_views()
    names = ("means", "scales", "opacities", "colors", "viewmats", "backgrounds")
    leaves = {name: call[name].clone().requires_grad_() for name in names}
    renders, _, meta = rasterization(**(call | leaves), packed=packed, rasterize_mode="antialiased")
    meta["means2d"].retain_grad()
    weight = torch.randn(renders.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (renders * weight).sum().backward()
    total: dict[str, Tensor] = {}
    for i, scene in enumerate(scenes):
        own = {name: scene[name].clone().requires_grad_() for name in ("means", "scales", "opacities", "colors")}
        screen = torch.zeros_like(scene["means"], requires_grad=True)
        image = rasterize(**(scene | own), means2d=screen, antialiasing=True).image
        (image.permute(1, 2, 0) * weight[i]).sum().backward()
        for name, leaf in own.items():
            total[name] = total.get(name, 0) + leaf.grad
        pixels = screen.grad[:, :2] / torch.tensor([25.0, 18.5])  # from NDC to pixels
        if packed:
            rows = meta["camera_ids"] == i
            torch.testing.assert_close(meta["means2d"].grad[rows], pixels[meta["gaussian_ids"][rows]])
        else:
            torch.testing.assert_close(meta["means2d"].grad[i], pixels)
    for name, grad in total.items():
        expected = grad.reshape(leaves[name].shape)
        torch.testing.assert_close(leaves[name].grad, expected, msg=lambda m, n=name: f"{n}: {m}")
    assert leaves["viewmats"].grad.any() and leaves["backgrounds"].grad.any()


@pytest.mark.parametrize("packed", [False, True])
def test_absgrad_is_that_of_four_columns(packed: bool) -> None:
    scenes, call = two_views()
    leaf = call["means"].clone().requires_grad_()
    renders, _, meta = rasterization(**(call | {"means": leaf}), packed=packed, absgrad=True)
    renders.square().sum().backward()
    for i, scene in enumerate(scenes):
        screen = torch.zeros(60, 4, dtype=torch.float64, requires_grad=True)
        rasterize(**scene, means2d=screen).image.square().sum().backward()
        expected = screen.grad[:, 2:] / torch.tensor([25.0, 18.5])  # from NDC to pixels
        rows = (meta["camera_ids"] == i) if packed else i
        if packed:
            expected = expected[meta["gaussian_ids"][rows]]
        torch.testing.assert_close(meta["means2d"].absgrad[rows], expected)


def test_harmonics_covariances_and_colors_of_each_camera() -> None:
    scenes, call = two_views()
    generator = torch.Generator().manual_seed(0)
    sh = torch.randn(60, 9, 3, generator=generator, dtype=torch.float64) * 0.3
    by_sh = rasterization(**(call | {"colors": sh}), sh_degree=2)[0]
    colors = []
    for scene in scenes:
        center = -scene["world_view"][:3, :3].T @ scene["world_view"][:3, 3]
        colors.append((spherical_harmonics(2, scene["means"] - center, sh) + 0.5).clamp_min(0))
    torch.testing.assert_close(rasterization(**(call | {"colors": torch.stack(colors)}))[0], by_sh)
    torch.testing.assert_close(rasterization(**(call | {"colors": torch.stack([sh, sh])}), sh_degree=2)[0], by_sh)
    from diff_gaussian_rasterization.reference import covariance_of

    covars = covariance_of(call["scales"], scenes[0]["quats"])
    by_covars = rasterization(**(call | {"quats": None, "scales": None}), covars=covars)[0]
    torch.testing.assert_close(by_covars, rasterization(**call)[0])


def test_culling_by_depth_and_radius() -> None:
    _, call = two_views()
    plain = rasterization(**call, packed=False)[2]
    far = rasterization(**call, packed=False, far_plane=2.5)[2]
    assert torch.equal(far["radii"] > 0, (plain["radii"] > 0) & (plain["depths"] <= 2.5)[..., None])
    clipped = rasterization(**call, packed=False, radius_clip=9.0)[2]
    assert torch.equal(clipped["radii"] > 0, plain["radii"] > 9)
    near = rasterization(**call, packed=False, near_plane=2.0)[2]
    assert torch.equal(near["radii"] > 0, (plain["radii"] > 0) & (plain["depths"] > 2.0)[..., None])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparse_grad": True}, "sparse_grad=True is not supported"),
        ({"distributed": True}, "distributed=True is not supported"),
        ({"camera_model": "fisheye"}, "camera_model='fisheye' is not supported, expected 'pinhole'"),
        ({"eps2d": 0.1}, "eps2d=0.1 is not supported, expected 0.3"),
        ({"tile_size": 8}, "tile_size=8 is not supported"),
        ({"with_ut": True}, "with_ut=True is not supported"),
        ({"radial_coeffs": torch.zeros(2, 6)}, "radial_coeffs=a tensor is not supported, expected None"),
        ({"antialias": True}, "the option antialias is not known"),
        ({"render_mode": "N"}, "render_mode is 'N', expected one of RGB, D, ED"),
        ({"rasterize_mode": "aa"}, "rasterize_mode is 'aa'"),
        ({"opacities": torch.ones(60, 1)}, r"opacities has shape \[60, 1\], expected \[60\]"),
        ({"Ks": torch.eye(3)}, r"Ks has shape \[3, 3\], expected \[2, 3, 3\]"),
        ({"backgrounds": torch.ones(3)}, r"backgrounds has shape \[3\], expected \[N, D\] with N=2"),
        ({"colors": torch.ones(59, 3)}, r"colors has shape \[59, 3\], expected \[G, D\]"),
        ({"scales": torch.ones(59, 3).double()}, r"scales has shape \[59, 3\], expected \[G, 3\]"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change: Call, message: str) -> None:
    _, call = two_views()
    with pytest.raises(ValueError, match=message):
        rasterization(**(call | change))
