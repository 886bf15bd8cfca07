"""The interface of 3DGS codebases: GaussianRasterizationSettings and GaussianRasterizer."""

import math

import pytest
import torch
from diff_gaussian_rasterization import (
    GaussianRasterizationSettings,
    GaussianRasterizer,
    rasterize,
    spherical_harmonics,
)
from rasterizer_scenes import Scene, make_scene


def settings_of(scene: Scene, shift: float = 0.0) -> GaussianRasterizationSettings:
    """The view of a scene as 3DGS describes it; ``shift`` moves the principal point by so many half image widths."""
    width, height = scene["width"], scene["height"]
    tan_x, tan_y = width / (2 * scene["fx"]), height / (2 * scene["fy"])
    view = scene["world_view"].T
    near, far = 0.01, 100.0
    projection = torch.zeros(4, 4, dtype=view.dtype)  # column vectors
    projection[0, 0], projection[1, 1], projection[0, 2] = 1 / tan_x, 1 / tan_y, shift
    projection[2, 2], projection[2, 3], projection[3, 2] = far / (far - near), -far * near / (far - near), 1.0
    return GaussianRasterizationSettings(
        image_height=height,
        image_width=width,
        tanfovx=tan_x,
        tanfovy=tan_y,
        bg=scene["background"],
        scale_modifier=1.0,
        viewmatrix=view,
        projmatrix=view @ projection.T,
        sh_degree=3,
        campos=torch.linalg.inv(view)[3, :3],
        prefiltered=False,
        debug=False,
    )


def centred(dtype: torch.dtype = torch.float32) -> Scene:
    scene = make_scene(dtype=dtype)
    return scene | {"cx": scene["width"] / 2, "cy": scene["height"] / 2}


def test_forward_is_rasterize_with_a_centred_principal_point() -> None:
    scene = centred(torch.float64)
    means2d = torch.zeros_like(scene["means"], requires_grad=True)
    image, radii = GaussianRasterizer(raster_settings=settings_of(scene))(
        means3D=scene["means"],
        means2D=means2d,
        opacities=scene["opacities"],
        shs=None,
        colors_precomp=scene["colors"],
        scales=scene["scales"],
        rotations=scene["quats"],
        cov3D_precomp=None,
    )
    other = torch.zeros_like(means2d, requires_grad=True)
    expected = rasterize(**scene, means2d=other)
    torch.testing.assert_close(image, expected.image, atol=1e-9, rtol=0)
    assert torch.equal(radii, expected.radii)
    image.square().sum().backward()
    expected.image.square().sum().backward()
    assert means2d.grad is not None and other.grad is not None
    torch.testing.assert_close(means2d.grad, other.grad, atol=1e-9, rtol=1e-7)


def test_principal_point_of_the_projection_matrix_is_honoured() -> None:
    scene = centred(torch.float64)
    shifted = scene | {"cx": scene["cx"] * 1.1}
    args = (scene["means"], None, scene["opacities"])
    kinds = {"colors_precomp": scene["colors"], "scales": scene["scales"], "rotations": scene["quats"]}
    image, _ = GaussianRasterizer(settings_of(scene, shift=0.1))(*args, **kinds)
    torch.testing.assert_close(image, rasterize(**shifted).image, atol=1e-9, rtol=0)


def test_spherical_harmonics_of_degree_zero_are_flat_colors() -> None:
    scene = centred()
    color = scene["colors"]
    # The constant term in 3DGS: color = 0.5 + 0.28209479 * sh.
    sh = torch.zeros(len(color), 16, 3)
    sh[:, 0] = (color - 0.5) / 0.28209479177387814
    rasterizer = GaussianRasterizer(settings_of(scene))
    args = {"scales": scene["scales"], "rotations": scene["quats"]}
    by_sh, _ = rasterizer(scene["means"], None, scene["opacities"], shs=sh, **args)
    by_color, _ = rasterizer(scene["means"], None, scene["opacities"], colors_precomp=color, **args)
    torch.testing.assert_close(by_sh, by_color, atol=1e-6, rtol=0)


def test_visible_filter_and_mark_visible() -> None:
    scene = centred()
    scene["means"] = scene["means"] * 3 - 6
    rasterizer = GaussianRasterizer(settings_of(scene))
    radii = rasterizer.visible_filter(scene["means"], scales=scene["scales"], rotations=scene["quats"])
    _, expected = rasterizer(
        scene["means"],
        None,
        scene["opacities"],
        colors_precomp=scene["colors"],
        scales=scene["scales"],
        rotations=scene["quats"],
    )
    assert torch.equal(radii, expected) and radii.dtype == torch.int32
    z = scene["means"] @ scene["world_view"][2, :3] + scene["world_view"][2, 3]
    marked = rasterizer.markVisible(scene["means"])
    assert torch.equal(marked, z > 0.2) and 0 < int(marked.sum()) < len(z)


def test_ambiguous_arguments_are_refused() -> None:
    scene = centred()
    rasterizer = GaussianRasterizer(settings_of(scene))
    with pytest.raises(ValueError, match="either shs or colors_precomp"):
        rasterizer(scene["means"], None, scene["opacities"], scales=scene["scales"], rotations=scene["quats"])


# ------------------------------------------------------------------------------------------- spherical harmonics


def test_harmonics_are_orthonormal() -> None:
    # Gauss-Legendre quadrature in z and even steps in the angle integrate products up to degree 6 exactly.
    steps = 16
    t = torch.arange(1, 8, dtype=torch.float64)
    off = t / torch.sqrt(4 * t * t - 1)  # Golub-Welsch: nodes are the eigenvalues of the Jacobi matrix
    z, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    weight = 2 * vectors[0] ** 2 * (2 * math.pi / steps)
    angle = torch.arange(steps, dtype=torch.float64) * (2 * math.pi / steps)
    r = torch.sqrt(1 - z * z)[:, None]
    dirs = torch.stack([r * angle.cos(), r * angle.sin(), z[:, None].expand(-1, steps)], -1).reshape(-1, 3)
    basis = spherical_harmonics(3, dirs, torch.eye(16, dtype=torch.float64).expand(len(dirs), 16, 16))
    gram = torch.einsum("gi,gj,g->ij", basis, basis, weight.repeat_interleave(steps))
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), atol=1e-12, rtol=0)


def test_harmonics_of_degree_one_are_those_of_3dgs() -> None:
    # There sh[1:4] multiply -y, z, -x.
    dirs = torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]], dtype=torch.float64)
    sh = torch.eye(4, dtype=torch.float64)[:, [1, 2, 3]].expand(3, 4, 3)
    expected = 0.4886025119029199 * torch.tensor([[0, 0, -1.0], [-1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(spherical_harmonics(1, dirs, sh), expected, atol=1e-15, rtol=0)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_gradcheck_harmonics(degree: int) -> None:
    generator = torch.Generator().manual_seed(degree)
    dirs = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    sh = torch.randn(5, 16, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d, s: spherical_harmonics(degree, d, s), (dirs, sh))


def test_wrong_harmonics_are_named() -> None:
    with pytest.raises(ValueError, match="at least 9 for degree 2"):
        spherical_harmonics(2, torch.zeros(4, 3), torch.zeros(4, 4, 3))
    with pytest.raises(ValueError, match="degree is 4"):
        spherical_harmonics(4, torch.zeros(4, 3), torch.zeros(4, 25, 3))
