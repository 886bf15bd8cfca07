"""``momentum-gs bench raster|ssim|knn``: times each kernel and its alternatives in the same run.

Times of different runs or machines are not comparable, ratios within a run are. Alternatives may not be installed, so
they are imported by name.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.image import ssim
from momentum_gs.core.log import info
from momentum_gs.core.types import Camera, Gaussians
from momentum_gs.model.init import distCUDA2
from momentum_gs.render.rasterize import rasterize

Draw = Callable[[Gaussians, Camera], Tensor]
"""Renders an image [C,H,W] on a black background."""

REFERENCE_SIZE = (300, 160, 90)
"""Number of Gaussians, width and height for the readable rasterizer, which evaluates every Gaussian at every pixel."""
BRUTE_POINTS = 20_000
"""Number of points for the comparison with all pairs of distances."""
NEAR = 0.2
"""Camera z of the near plane, as in 3DGS codebases."""


class Cost(NamedTuple):
    """What a function costs."""

    forward: float
    """Median time of the forward pass, ms."""
    both: float
    """Median time of forward and backward pass, ms."""
    memory: float | None
    """Peak memory beyond what was allocated before, MiB; None on CPUs, where it is not measured."""


@contextmanager
def load_of(args: argparse.Namespace) -> Iterator[None]:
    """Checks the sizes; inside the context, torch uses ``args.threads`` threads.

    Raises:
        UserError: for a number that is too small.
    """
    for flag, least in (("gaussians", 1), ("points", 5), ("anchors", 1), ("threads", 1), ("repeats", 1)):
        value = getattr(args, flag)
        value = min(value) if isinstance(value, list) else value
        if value is not None and value < least:
            raise UserError(f"bench: --{flag} is {value}, expected at least {least}")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(args.threads or before)
        yield
    finally:
        torch.set_num_threads(before)


def run(args: argparse.Namespace, device: torch.device) -> None:
    """Times the kernel ``args.what`` and prints the table."""
    {"raster": bench_raster, "ssim": bench_ssim, "knn": bench_knn}[args.what](args, device)


def bench_raster(args: argparse.Namespace, device: torch.device) -> None:
    """Compares the rasterizer with gsplat and the original if available, and on a small load with the readable one."""
    count = args.gaussians or (100_000 if device.type == "cpu" else 1_000_000)
    width, height = args.size or ((960, 540) if device.type == "cpu" else (1600, 900))
    gaussians, camera = raster_load(count, width, height, device)
    _head(f"raster: {count} Gaussians, {width}x{height}", args, device)
    others: dict[str, Draw] = {}
    if device.type == "cpu":
        info("  gsplat: not compared (its compositing needs a GPU)")
    elif (module := _load("gsplat")) is not None:
        # Which of gsplat's two layouts is faster depends on the load.
        others |= {f"gsplat, packed={packed}": gsplat_draw(module, packed) for packed in (False, True)}
    if args.original is None:
        info("  original CUDA rasterizer: not compared (ours has the same module name; install it under another and "
            "give that with --original)")  # fmt: skip
    elif (module := _load(args.original)) is not None:
        others[f"original ({args.original})"] = official_draw(module)
    _compare_draws(others, gaussians, camera, args.repeats)

    reference = _load("diff_gaussian_rasterization.reference")
    if reference is not None:
        gaussians, camera = raster_load(*REFERENCE_SIZE, device)
        info("  {} Gaussians, {}x{}:".format(*REFERENCE_SIZE))
        _compare_draws({"readable reference": reference_draw(reference)}, gaussians, camera, args.repeats)


def bench_ssim(args: argparse.Namespace, device: torch.device) -> None:
    """Compares SSIM and its gradient with an implementation by convolutions in torch."""
    width, height = args.size or ((960, 540) if device.type == "cpu" else (1600, 900))
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, height, width, generator=generator).to(device)
    render = (target + 0.1 * torch.randn(3, height, width, generator=generator).to(device)).clamp(0, 1)
    _head(f"ssim: 3x{height}x{width}", args, device)
    reference = _load("fused_ssim.reference")
    ours, value = _time_gradient(lambda a: ssim(a, target), render, args.repeats)
    _row("momentum-gs", ours)
    if reference is not None:
        theirs, other = _time_gradient(
            lambda a: reference.mean_ssim(a[None], target[None]), render, args.repeats
        )
        _row("convolutions in torch", theirs, ours, f"differs by {float((value - other).abs()):.1e}")


def bench_knn(args: argparse.Namespace, device: torch.device) -> None:
    """Compares the mean squared distance to the three nearest neighbours with a k-d tree and with all pairs."""
    points = surface_points(args.points, device)
    few = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:BRUTE_POINTS].to(device)]
    _head(f"knn: {len(points)} points on a rough surface", args, device)
    scipy = _load("scipy.spatial")

    def tree(at: Tensor) -> Tensor:
        where = at.cpu().numpy()
        distances, _ = scipy.cKDTree(where).query(where, k=4, workers=torch.get_num_threads())  # type: ignore[union-attr]
        return torch.from_numpy(distances[:, 1:]).square().mean(1).to(at)

    # The nearest of the four is the point itself.
    def all_pairs(at: Tensor) -> Tensor:
        rows = [torch.cdist(part, at).topk(4, largest=False).values[:, 1:] for part in at.split(2048)]
        return torch.cat(rows).square().mean(1)

    cases = [(points, "k-d tree of scipy", tree)] if scipy is not None else []
    for at, name, other in [*cases, (few, "all pairs in torch", all_pairs)]:
        ours, theirs = (median_ms(partial(f, at), args.repeats, device) for f in (distCUDA2, other))
        off = ((distCUDA2(at) - other(at)).abs() / other(at).clamp_min(1e-12)).median()
        info(f"  {len(at)} points: momentum-gs {ours:.2f} ms, {name} {theirs:.2f} ms, {theirs / ours:.2f}x; "
            f"differs by {float(off):.1e} (median, relative)")  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- loads


def raster_load(count: int, width: int, height: int, device: torch.device) -> tuple[Gaussians, Camera]:
    """Gaussians spread evenly over an image: log-normal sizes with median 2.5 px and sigma 0.5, opacities 0.02 to
    0.92."""
    generator = torch.Generator().manual_seed(0)

    def uniform(columns: int) -> Tensor:
        return torch.rand(count, columns, generator=generator)

    def normal(columns: int) -> Tensor:
        return torch.randn(count, columns, generator=generator)

    focal = float(width)
    depth = 1 + 10 * uniform(1)
    xy = (uniform(2) - 0.5) * torch.tensor([width, height]) * depth / focal
    gaussians = Gaussians(
        means=torch.cat([xy, depth], 1).to(device),
        scales=(torch.exp(0.5 * normal(3)) * 2.5 * depth / focal).to(device),
        quats=torch.nn.functional.normalize(normal(4), dim=1).to(device),
        opacities=(0.02 + 0.9 * uniform(1)).to(device),
        colors=uniform(3).to(device),
    )
    pose = {"rotation": torch.eye(3, dtype=torch.float64), "translation": torch.zeros(3, dtype=torch.float64)}
    return gaussians, Camera("bench", width, height, focal, focal, width / 2, height / 2, **pose)


def surface_points(count: int, device: torch.device) -> Tensor:
    """Points [N,3] near a surface with hills and steps, as the sparse points of a city lie on surfaces."""
    generator = torch.Generator().manual_seed(0)
    xy = 10 * torch.rand(count, 2, generator=generator)
    height = torch.sin(xy[:, :1]) * torch.cos(xy[:, 1:]) + 0.5 * (xy[:, :1].floor() % 2)
    return torch.cat([xy, height + 0.01 * torch.randn(count, 1, generator=generator)], 1).to(device)


# ---------------------------------------------------------------------------------------------------- other rasterizers


def reference_draw(module: ModuleType) -> Draw:
    """The readable rasterizer of our own extension."""

    def draw(gaussians: Gaussians, camera: Camera) -> Tensor:
        view = {k: getattr(camera, k) for k in ("fx", "fy", "cx", "cy", "width", "height")}
        world_view, black = camera.world_view.to(gaussians.means), gaussians.means.new_zeros(gaussians.colors.shape[1])
        return module.rasterize_reference(**vars(gaussians), world_view=world_view, background=black, **view).image

    return draw


def gsplat_draw(module: ModuleType, packed: bool) -> Draw:
    """gsplat's ``rasterization``, which has the same pixel centres as ours."""

    def draw(gaussians: Gaussians, camera: Camera) -> Tensor:
        pinhole = [[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]]
        images, _, _ = module.rasterization(
            gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities[:, 0], gaussians.colors,
            viewmats=camera.world_view.to(gaussians.means)[None], Ks=gaussians.means.new_tensor([pinhole]),
            width=camera.width, height=camera.height, near_plane=NEAR, packed=packed,
        )  # fmt: skip
        return images[0].permute(2, 0, 1)

    return draw


def official_draw(module: ModuleType) -> Draw:
    """A rasterizer with the interface of 3DGS, for a camera whose principal point is the image centre."""

    def draw(gaussians: Gaussians, camera: Camera) -> Tensor:
        tan_x, tan_y = camera.width / (2 * camera.fx), camera.height / (2 * camera.fy)
        view = camera.world_view.to(gaussians.means).T  # for row vectors, as all matrices of 3DGS codebases
        far = 100.0
        projection = view.new_zeros(4, 4)
        projection[0, 0], projection[1, 1] = 1 / tan_x, 1 / tan_y
        projection[2, 2], projection[2, 3], projection[3, 2] = far / (far - NEAR), 1, -far * NEAR / (far - NEAR)
        fields = {
            "image_height": camera.height, "image_width": camera.width, "tanfovx": tan_x, "tanfovy": tan_y,
            "bg": view.new_zeros(3), "scale_modifier": 1.0, "viewmatrix": view, "projmatrix": view @ projection,
            "sh_degree": 0, "campos": camera.center.to(view),
        }  # fmt: skip
        # Forks differ in which further fields they have: prefiltered, debug, antialiasing.
        switches = {name: False for name in module.GaussianRasterizationSettings._fields if name not in fields}
        rasterizer = module.GaussianRasterizer(module.GaussianRasterizationSettings(**fields, **switches))
        return rasterizer(
            means3D=gaussians.means, means2D=torch.zeros_like(gaussians.means, requires_grad=True), shs=None,
            opacities=gaussians.opacities, colors_precomp=gaussians.colors, scales=gaussians.scales,
            rotations=gaussians.quats, cov3D_precomp=None,
        )[0]  # fmt: skip

    return draw


# ------------------------------------------------------------------------------------------------------------- timing


def median_ms(work: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median wall time in ms; a first run warms up caches and allocators and is not counted."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def _time_gradient(function: Callable[[Tensor], Tensor], at: Tensor, repeats: int) -> tuple[Cost, Tensor]:
    """Cost of a function of one tensor, and its value."""
    leaf = at.clone().requires_grad_()
    with torch.no_grad():
        forward = median_ms(lambda: function(at), repeats, at.device)

    def both() -> None:
        torch.autograd.grad(function(leaf), leaf)

    return Cost(forward, median_ms(both, repeats, at.device), _extra_memory(both, at.device)), function(at)


def _compare_draws(others: dict[str, Draw], gaussians: Gaussians, camera: Camera, repeats: int) -> None:
    """Prints a row for ours and for each other rasterizer: time to render, and to render with all gradients."""
    names = list(vars(gaussians))

    def measure(draw: Draw) -> tuple[Cost, Tensor]:
        leaves = Gaussians(**{n: t.clone().requires_grad_() for n, t in vars(gaussians).items()})
        with torch.no_grad():
            rendered = draw(gaussians, camera)
            forward = median_ms(lambda: draw(gaussians, camera), repeats, rendered.device)
        weight = torch.rand(rendered.shape, generator=torch.Generator().manual_seed(1)).to(rendered)

        def both() -> None:
            torch.autograd.grad((draw(leaves, camera) * weight).sum(), [getattr(leaves, n) for n in names])

        return Cost(forward, median_ms(both, repeats, rendered.device), _extra_memory(both, rendered.device)), rendered

    ours, expected = measure(lambda g, c: rasterize(g, c, g.means.new_zeros(3)).image)
    _row("momentum-gs", ours)
    for name, draw in others.items():
        theirs, rendered = measure(draw)
        _row(name, theirs, ours, f"image differs by {float((rendered - expected).abs().mean()):.1e} (mean)")


def _extra_memory(work: Callable[[], Any], device: torch.device) -> float | None:
    if device.type == "cpu":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.cuda.synchronize(device)


def _load(name: str) -> ModuleType | None:
    """The module; if it cannot be imported, None, and a line with the reason is printed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        info(f"  {name}: not compared ({error})")
        return None


def _head(what: str, args: argparse.Namespace, device: torch.device) -> None:
    place = f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    info(f"{what}, torch {torch.__version__}, {place}, medians of {args.repeats}")


def _row(name: str, cost: Cost, ours: Cost | None = None, note: str = "") -> None:
    text = f"  {name:<24} forward {cost.forward:9.2f} ms   forward+backward {cost.both:9.2f} ms"
    if cost.memory is not None:
        text += f"   peak extra memory {cost.memory:8.1f} MiB"
    if ours is not None:
        text += f"   {cost.forward / ours.forward:.2f}x and {cost.both / ours.both:.2f}x the time of ours   {note}"
    info(text)
