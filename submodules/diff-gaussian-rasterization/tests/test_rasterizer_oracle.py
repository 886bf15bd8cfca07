"""Projection and spherical harmonics against an independent implementation: gsplat's, in PyTorch.

Compositing in gsplat needs CUDA; ``momentum-gs bench raster`` compares the images on a GPU. Conventions:

=============================  =========================================  ============================================
                               here, and in 3DGS codebases               gsplat 1.5.3
=============================  =========================================  ============================================
centre of the first pixel      (0.5, 0.5); 3DGS codebases call it (0, 0)  (0.5, 0.5)
quaternions                    used as given                              normalised
radius                         one, 3 sigma of the longer axis            two, 3.33 sigma along x and along y
culled                         the square of the radius, rounded out to   the box of the two radii misses the image
                               16 pixels, misses the image
near plane                     0.2                                        0.01, an argument
cap of alpha                   0.99                                       0.999
low-pass, alpha floor, stop,   0.3 px^2, 1/255, T < 1e-4, 1.3             the same
margin of the Jacobian
=============================  =========================================  ============================================
"""

import pytest
import torch
from diff_gaussian_rasterization import rasterize, spherical_harmonics
from rasterizer_scenes import Scene, make_scene
from torch import Tensor

gsplat = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat, the independent oracle, is not installed")

NEAR = 0.2


def wide_scene() -> Scene:
    """Gaussians in and far around the image, so that some are clamped and some culled; quaternions of any length."""
    scene = make_scene(800, width=70, height=50)
    scene["means"] = scene["means"] * torch.tensor([5.0, 5.0, 1.5], dtype=torch.float64) + torch.tensor([0, 0, -1.0])
    scene["scales"] = scene["scales"] * 3
    scene["quats"] = scene["quats"] * (0.5 + scene["opacities"])
    return scene


def camera_of(scene: Scene) -> list:
    return [scene[k] for k in ("fx", "fy", "cx", "cy", "width", "height")]


def project_ours(scene: Scene) -> tuple[Tensor, ...]:
    """Means [G,2], conics [G,3], depths [G], radii [G], with normalised quaternions as in gsplat."""
    quats = torch.nn.functional.normalize(scene["quats"], dim=1)
    shape = (scene["means"], scene["scales"], quats, None, scene["world_view"], None)
    return torch.ops.diff_gaussian_rasterization.project(*shape, *camera_of(scene), 1.0, NEAR)


def project_theirs(scene: Scene) -> tuple[Tensor, ...]:
    """The same with radii [G,2]."""
    fx, fy, cx, cy, width, height = camera_of(scene)
    cov, _ = gsplat._quat_scale_to_covar_preci(scene["quats"], scene["scales"], compute_preci=False)
    pinhole = torch.tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]], dtype=torch.float64)
    radii, means2d, depths, conics, _ = gsplat._fully_fused_projection(
        scene["means"], cov, scene["world_view"][None], pinhole, width, height, near_plane=NEAR
    )
    return means2d[0], conics[0], depths[0], radii[0]


def test_projection_is_gsplats() -> None:
    scene = wide_scene()
    *ours, radii = project_ours(scene)
    *theirs, _ = project_theirs(scene)
    drawn = radii > 0
    assert 200 < int(drawn.sum()) < 700
    for a, b in zip(ours, theirs, strict=True):
        # Round-off, which the inverse of a long thin covariance multiplies by its condition number, up to 1e4 here.
        torch.testing.assert_close(a[drawn], b[drawn], rtol=1e-10, atol=1e-10)


def test_gradient_of_the_projection_is_gsplats() -> None:
    scene = wide_scene()
    names = ("means", "scales", "quats", "world_view")
    drawn = (project_ours(scene)[3] > 0).nonzero()[:, 0]

    def gradients(project: object) -> tuple[Tensor, ...]:
        leaves = {name: scene[name].clone().requires_grad_() for name in names}
        generator = torch.Generator().manual_seed(2)
        loss = torch.zeros((), dtype=torch.float64)
        for output in project(scene | leaves)[:3]:
            weight = torch.randn(output.shape, generator=generator, dtype=torch.float64)
            loss = loss + (output[drawn] * weight[drawn]).sum()
        return torch.autograd.grad(loss, list(leaves.values()))

    for name, a, b in zip(names, gradients(project_ours), gradients(project_theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9 * b.abs().max().item(), msg=lambda m, n=name: f"{n}: {m}")


def test_radii_and_culling_differ_as_in_the_table() -> None:
    scene = wide_scene()
    means2d, _, depths, theirs = project_theirs(scene)
    ours = rasterize(**(scene | {"quats": torch.nn.functional.normalize(scene["quats"], dim=1)})).radii
    both = (ours > 0) & (theirs > 0).all(1)
    # gsplat's radii are 3.33 sigma along x and y, ours 3 sigma of the longer axis: 3.33 / 3, and a pixel of rounding
    # up.
    assert (theirs[both].amax(1) <= 1.11 * ours[both] + 1).all()
    size = torch.tensor([scene["width"], scene["height"]])
    inside = ((means2d > 0) & (means2d < size)).all(1) & (depths > NEAR)
    assert both[inside].all()  # a centre in the image is culled by neither
    disagree = (ours > 0) != (theirs > 0).all(1)
    assert disagree.any() and not (ours[depths <= NEAR] > 0).any() and not (theirs[depths <= NEAR] > 0).any()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_are_gsplats(degree: int) -> None:
    generator = torch.Generator().manual_seed(degree)
    dirs = torch.randn(50, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    sh = torch.randn(50, 16, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    ours, theirs = spherical_harmonics(degree, dirs, sh), gsplat._spherical_harmonics(degree, dirs, sh)
    # The constants in gsplat have 16 digits.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)

    def gradients(colors: Tensor) -> tuple[Tensor, ...]:
        # Degree 0 does not depend on the directions.
        return torch.autograd.grad((colors * weight).sum(), (dirs, sh), materialize_grads=True)

    for a, b in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
