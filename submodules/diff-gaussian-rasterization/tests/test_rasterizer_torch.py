"""The operators within torch: tracing, compiling, copying, layouts, determinism, errors."""

import copy
import pickle
from typing import Any

import diff_gaussian_rasterization.ops as functional
import pytest
import torch
from diff_gaussian_rasterization import (
    GaussianRasterizationSettings,
    GaussianRasterizer,
    rasterize,
    spherical_harmonics,
    visible_radii,
)
from rasterizer_scenes import Scene, make_scene, screen_scene
from torch import Tensor

ops = torch.ops.diff_gaussian_rasterization
ROWS = ("means", "opacities", "colors", "scales", "quats")


def camera_of(scene: Scene) -> list[Any]:
    return [scene[k] for k in ("fx", "fy", "cx", "cy", "width", "height")]


def settings_of(scene: Scene) -> GaussianRasterizationSettings:
    """The scene's view with the principal point in the middle."""
    width, height = scene["width"], scene["height"]
    view = scene["world_view"].T.contiguous()
    projection = torch.zeros_like(view)
    projection[0, 0], projection[1, 1] = 2 * scene["fx"] / width, 2 * scene["fy"] / height
    projection[2, 2] = projection[3, 2] = 1.0
    return GaussianRasterizationSettings(
        height, width, width / (2 * scene["fx"]), height / (2 * scene["fy"]), scene["background"], 1.0, view,
        view @ projection.T, 3, torch.linalg.inv(view)[3, :3],
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ tracing, compiling


def operators() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Every operator with arguments as the package passes them; tensors that can have a gradient require one."""
    scene = make_scene(20)
    leaf = {k: v.clone().requires_grad_() for k, v in scene.items() if isinstance(v, Tensor)}
    camera = camera_of(scene)
    shape = (scene["means"], scene["scales"], scene["quats"], None, scene["world_view"])
    means2d, conics, depths, radii = ops.project(*shape, None, *camera, 1.0, 0.2)
    blend = (scene["opacities"], scene["colors"], scene["background"], *camera[4:])
    drawn = ops.composite(means2d, conics, depths, radii, *blend)
    generator = torch.Generator().manual_seed(0)
    dirs, sh = (torch.randn(20, *s, generator=generator, dtype=torch.float64) for s in ((3,), (16, 3)))
    leaf_shape = (leaf["means"], leaf["scales"], leaf["quats"], None, leaf["world_view"])
    leaf_drawn = tuple(t.clone().requires_grad_() for t in (means2d, conics, depths))
    leaf_blend = (leaf["opacities"], leaf["colors"], leaf["background"], *camera[4:])
    grads = tuple(torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in drawn[:3])
    projected_grads = tuple(torch.ones_like(t) for t in (means2d, conics, depths))
    window, tiles = [3, 2, 41, 33], torch.rand(3, 3, generator=generator) < 0.5
    part = ops.composite(means2d, conics, depths, radii, *blend, window, tiles)
    part_grads = tuple(torch.ones_like(t) for t in part[:3])
    adam = tuple([torch.rand(20, 3, generator=generator, dtype=torch.float64)] for _ in range(4))
    return {
        "project": (ops.project, (*leaf_shape, None, *camera, 1.0, 0.2)),
        "project_backward": (
            ops.project_backward, (*projected_grads, *shape, conics, radii, *camera, 1.0, 0.2, True)
        ),
        "visible_radii": (ops.visible_radii, (*shape, *camera, 1.0, 0.2)),
        "composite": (ops.composite, (*leaf_drawn, radii, *leaf_blend)),
        "composite with capacity": (ops.composite, (*leaf_drawn, radii, *leaf_blend, None, None, None, 0, 7)),
        "composite_backward": (ops.composite_backward, (*grads, *drawn, 20)),
        "project of a window": (ops.project, (*leaf_shape, None, *camera, 1.0, 0.2, window)),
        "project of tiles": (ops.project, (*leaf_shape, None, *camera, 1.0, 0.2, window, tiles)),
        "visible_radii of a window": (ops.visible_radii, (*shape, *camera, 1.0, 0.2, window)),
        "visible_radii of tiles": (ops.visible_radii, (*shape, *camera, 1.0, 0.2, window, tiles)),
        "composite of tiles": (ops.composite, (*leaf_drawn, radii, *leaf_blend, window, tiles)),
        "composite_backward of tiles": (ops.composite_backward, (*part_grads, *part, 20, *window[:2], tiles)),
        "absolute_gradient": (ops.absolute_gradient, (*grads, *drawn, 20)),
        "absolute_gradient of tiles": (ops.absolute_gradient, (*part_grads, *part, 20, *window[:2], tiles)),
        "median": (ops.median, (drawn[1], *drawn[3:5], *drawn[6:])),
        "antialias": (ops.antialias, (leaf_drawn[1], leaf["opacities"])),
        "antialias_backward": (ops.antialias_backward, (scene["opacities"], conics, scene["opacities"])),
        "adam_update": (ops.adam_update, (*adam, radii > 0, [0.1], [1.0], 0.9, 0.999, 1e-15)),
        "spherical_harmonics": (
            ops.spherical_harmonics, (3, dirs.clone().requires_grad_(), sh.clone().requires_grad_())
        ),
        "spherical_harmonics_backward": (ops.spherical_harmonics_backward, (torch.ones(20, 3).double(), 3, dirs, sh)),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", operators())
def test_opcheck(name: str) -> None:
    operator, arguments = operators()[name]
    torch.library.opcheck(operator.default, arguments)


def test_every_operator_is_checked() -> None:
    registered = {n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith(f"{ops.name}::")}
    # These two take no tensors: opcheck has nothing to check.
    assert registered - {"cpu_kernels", "cpu_kernels_for"} == {name.split()[0] for name in operators()}


def test_eager_calls_have_the_bits_of_those_that_are_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(60, dtype=torch.float32)
    results = []
    for traced in (False, True):
        for name in ("project", "composite") if traced else ():
            monkeypatch.setattr(functional, name, getattr(ops, name))
        leaves = {name: scene[name].clone().requires_grad_() for name in (*ROWS, "world_view", "background")}
        leaves["means2d"] = torch.zeros(60, 4, requires_grad=True)
        out = rasterize(**(scene | leaves))
        loss = out.image.square().sum() + out.depth.sum()
        results.append([*out, *torch.autograd.grad(loss, list(leaves.values()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_as_one_graph(backend: str) -> None:
    """The code around the operators is compiled into one graph with them."""
    scene = make_scene(60, dtype=torch.float32)
    sh = torch.randn(60, 16, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    names = ("means", "opacities", "scales", "quats", "background", "world_view")

    def loss(*values: Tensor) -> Tensor:
        inputs = dict(zip(names, values, strict=True))
        out = rasterize(**(scene | inputs | {"colors": spherical_harmonics(3, inputs["means"], sh)}))
        return out.image.square().sum() + out.alpha.sum() + 0.1 * out.depth.sum()

    def run(function: Any) -> tuple[Tensor, ...]:
        leaves = [scene[name].clone().requires_grad_() for name in names]
        value = function(*leaves)
        return value.detach(), *torch.autograd.grad(value, leaves)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    for a, b in zip(run(compiled), run(loss), strict=True):
        # The compiler may sum in another order.
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5 * float(b.abs().max()))


# ------------------------------------------------------------------------------------------------ copies, layouts, bits


def test_rasterizer_can_be_copied_and_pickled() -> None:
    scene = make_scene(dtype=torch.float32)
    rasterizer = GaussianRasterizer(settings_of(scene))
    shape = {"scales": scene["scales"], "rotations": scene["quats"], "colors_precomp": scene["colors"]}
    image, radii = rasterizer(scene["means"], None, scene["opacities"], **shape)
    for twin in (copy.deepcopy(rasterizer), pickle.loads(pickle.dumps(rasterizer))):
        again, again_radii = twin(scene["means"], None, scene["opacities"], **shape)
        assert torch.equal(again, image) and torch.equal(again_radii, radii)
    settings = copy.deepcopy(rasterizer.raster_settings)
    settings.bg.fill_(0.5)  # a copy shares nothing with its source
    assert not torch.equal(settings.bg, scene["background"])


def test_layout_of_the_inputs_does_not_matter() -> None:
    """Columns of a wider tensor, a transposed matrix, and an expanded gradient."""
    scene = make_scene(dtype=torch.float32)
    strided = dict(scene)
    for name in ROWS:
        wide = torch.full((60, scene[name].shape[1] + 5), torch.nan)
        wide[:, 2:-3] = scene[name]
        strided[name] = wide[:, 2:-3]
    strided["world_view"] = scene["world_view"].T.contiguous().T
    results = []
    for case in (scene, strided):
        leaves = {name: case[name].detach().requires_grad_() for name in (*ROWS, "world_view")}
        out = rasterize(**(case | leaves))
        results.append([out.image, *torch.autograd.grad(out.image.sum(), list(leaves.values()))])
    assert not strided["means"].is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("channels", [3, 9])
def test_same_bits_for_any_threads_and_again(channels: int) -> None:
    """Enough Gaussians for several tasks in each pass; 9 channels take the path without compile-time channels."""
    scene = screen_scene(20000, 300, 200)
    scene["colors"] = torch.rand(20000, channels, generator=torch.Generator().manual_seed(3))
    scene["background"] = torch.rand(channels, generator=torch.Generator().manual_seed(4))
    sh = torch.randn(20000, 16, 3, generator=torch.Generator().manual_seed(5))
    names = (*ROWS, "world_view", "background")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 8, 8):
            torch.set_num_threads(threads)
            leaves = {name: scene[name].clone().requires_grad_() for name in names}
            harmonics = spherical_harmonics(3, leaves["means"], sh)
            out = rasterize(**(scene | leaves))
            loss = (out.image.square().sum(), out.depth.sum(), out.alpha.sum(), harmonics.square().sum())
            grads = torch.autograd.grad(loss, list(leaves.values()))
            results.append([*out, harmonics, *grads])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ------------------------------------------------------------------------------------------------------------ refusals


def test_refusals_of_rasterize_name_the_argument() -> None:
    scene = make_scene(120)
    cases = [
        ({"means": scene["means"][0]}, r"means has shape \[3\], expected \[G, 3\]"),
        ({"means": scene["means"].long()}, "means is torch.int64, expected torch.float32 or torch.float64"),
        ({"scales": scene["scales"][:, :2]}, r"scales has shape \[120, 2\], expected \[G, 3\] with G=120 from means"),
        ({"colors": scene["colors"][:, :0]}, r"colors has shape \[120, 0\], expected \[G, C\]"),
        ({"colors": scene["colors"].float()}, "colors is torch.float32 on cpu, expected torch.float64 on cpu as means"),
        ({"colors": scene["colors"].to("meta")}, "colors is torch.float64 on meta, expected torch.float64 on cpu"),
        ({"opacities": scene["opacities"].to("meta")}, "opacities is torch.float64 on meta"),
        ({"background": scene["background"].to("meta")}, "background is torch.float64 on meta"),
        ({"means2d": scene["means"][:, :1]}, r"means2d has shape \[120, 1\], expected \[G, 3\]"),
        ({"world_view": scene["world_view"][:3]}, r"world_view has shape \[3, 4\], expected \[4, 4\]"),
        ({"scales": None, "quats": None}, "scales and quats, or cov3d"),
        ({"scales": None}, "scales is missing; give scales and quats, or cov3d"),
        ({"height": -3}, "image of 50x-3 pixels"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match="rasterize: .*" + message):
            rasterize(**(scene | change))
    with pytest.raises(ValueError, match=r"rasterize: .*quats has shape \[7, 4\]"):
        visible_radii(
            scene["means"], scene["scales"], scene["quats"][:7], **{k: scene[k] for k in ("world_view", "fx", "fy",
            "cx", "cy", "width", "height")},
        )  # fmt: skip


def test_refusals_of_harmonics_name_the_argument() -> None:
    dirs, sh = torch.zeros(4, 3), torch.zeros(4, 16, 3)
    for arguments, message in (
        ((-1, dirs, sh), "degree is -1, expected 0, 1, 2 or 3"),
        ((3, dirs[:, :2], sh), r"dirs has shape \[4, 2\], expected \[G, 3\]"),
        ((3, dirs, sh[:2]), r"sh has shape \[2, 16, 3\], expected \[G, K, C\] with G=4"),
        ((3, dirs, sh.double()), "sh is torch.float64 on cpu, dirs torch.float32 on cpu"),
        ((3, dirs, sh.to("meta")), "sh is torch.float32 on meta, dirs torch.float32 on cpu"),
    ):
        with pytest.raises(ValueError, match="spherical_harmonics: " + message):
            spherical_harmonics(*arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_refusal_of_harmonics_in_another_dtype_names_dirs(dtype: torch.dtype) -> None:
    dirs, sh = torch.zeros(4, 3, dtype=dtype), torch.zeros(4, 16, 3, dtype=dtype)
    with pytest.raises(ValueError, match="spherical_harmonics: dirs is .*, expected torch.float32 or torch.float64"):
        spherical_harmonics(3, dirs, sh)


def test_raw_operators_guard_their_memory() -> None:
    """Called without ops.py, wrong sizes must raise, not read past the end."""
    scene = make_scene(20)
    camera = camera_of(scene)
    shape = [scene["means"], scene["scales"], scene["quats"], None, scene["world_view"]]
    drawn = list(ops.project(*shape, None, *camera, 1.0, 0.2))
    blend = [scene["opacities"], scene["colors"], scene["background"]]
    for at, short in ((1, scene["scales"][:19]), (2, scene["quats"][:, :3]), (4, scene["world_view"][:3])):
        wrong = [*shape[:at], short, *shape[at + 1 :]]
        for call in (
            lambda w=wrong: ops.project(*w, None, *camera, 1.0, 0.2),
            lambda w=wrong: ops.visible_radii(*w, *camera, 1.0, 0.2),
            lambda w=wrong: ops.project_backward(None, None, None, *w, drawn[1], drawn[3], *camera, 1.0, 0.2, True),
        ):
            with pytest.raises(RuntimeError, match="rasterize: "):
                call()
    inputs = [*drawn, *blend]
    for at, tensor in enumerate(inputs):
        wrong = [*inputs[:at], tensor[:-1], *inputs[at + 1 :]]
        with pytest.raises(RuntimeError, match="rasterize: "):
            ops.composite(*wrong, *camera[4:])
    with pytest.raises(RuntimeError, match="image of 0x37 pixels"):
        ops.composite(*inputs, 0, 37)

    grads = [torch.zeros_like(tensor) for tensor in drawn[:3]]
    projected = [*grads, *shape, drawn[1], drawn[3]]
    for at in (0, 1, 2, 8, 9):
        wrong = [*projected[:at], projected[at][:-1], *projected[at + 1 :]]
        with pytest.raises(RuntimeError, match="rasterize: "):
            ops.project_backward(*wrong, *camera, 1.0, 0.2, True)
    out = ops.composite(*inputs, *camera[4:])
    composed = [*(torch.zeros_like(tensor) for tensor in out[:3]), *out]
    for at in (0, 1, 2, 4, 5, 6, 7, 8, 10):
        wrong = [*composed[:at], composed[at][:-1], *composed[at + 1 :]]
        with pytest.raises(RuntimeError, match="rasterize: "):
            ops.composite_backward(*wrong, 20)
