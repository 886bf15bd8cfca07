"""The least that each part of a training step must do, and what a machine could do it in.

A part moves bytes to and from memory and computes; the larger of the two times, at the rates that a short calibration
measures, is its bound. Bytes count every tensor that a part reads or writes once. Operations count products, sums and
comparisons of numbers as the kernels' formulas have them, an exponential as ten; they are estimates to within a third.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.types import Camera, Gaussians
from momentum_gs.model.decoder import HEADS, GaussianDecoder

COPY = 2**25
"""Numbers of the tensor that is copied: 128 MiB, beyond most caches."""
SIDE = 1024
"""Rows and columns of the matrices that are multiplied: 2 * 1024^3 operations."""
REPEATS = 7
NUMBER = 4
"""Bytes of a float32."""
ATTRIBUTES = 14
"""Numbers of a Gaussian: mean, scale, quaternion, opacity, colour."""
PROJECTION, PROJECTION_BACK = 150, 400
"""Operations to project a Gaussian, and for the gradient."""
PIXEL, PIXEL_BACK = 26, 52
"""Operations where a Gaussian covers a pixel: exponent, exponential, blending of three channels; the gradient."""
SSIM = 330
"""Operations of SSIM with its gradient for a number of the image: four blurs of two passes of 11, three for the
gradient, and the formula."""
ADAM, ADAM_NUMBERS = 12, 7
"""Operations of Adam for a parameter; numbers that it reads (four) and writes (three)."""
BLUR = 0.3
"""Added to the variances on the screen by the rasterizer, pixel^2."""
ACTIVATIONS = 100
"""Operations from the decoder's outputs to the attributes of a Gaussian."""


@dataclass(frozen=True)
class Machine:
    """What a machine reaches."""

    bytes_per_second: float
    """Read and written by a large copy."""
    operations_per_second: float
    """Of a large product of float32 matrices."""


@dataclass(frozen=True)
class Counts:
    """How much a step has to do; medians over its views."""

    anchors: float
    visible: float
    active: float
    """Visible anchors that keep a Gaussian."""
    gaussians: float
    covered: float
    """Pairs of a Gaussian and a pixel where its opacity reaches 1/255."""
    pixels: float
    decoders: float
    """2 with a teacher."""


@dataclass(frozen=True)
class Bound:
    """A part's work, and the time that it needs at least."""

    bytes: float
    operations: float
    milliseconds: float
    by: str
    """``memory`` or ``compute``."""


def calibrate(device: torch.device) -> Machine:
    """Measures a copy and a product of matrices, with torch's threads: half a second."""
    source = torch.ones(COPY, device=device)
    target = torch.empty_like(source)
    a, b = torch.rand(2, SIDE, SIDE, device=device)
    copied = _seconds(lambda: target.copy_(source), device)
    multiplied = _seconds(lambda: a @ b, device)
    return Machine(2 * source.nbytes / copied, 2 * SIDE**3 / multiplied)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """The best of several calls: what the machine can do, whatever else it did meanwhile."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def bounds(counts: Counts, decoder: GaussianDecoder, machine: Machine) -> dict[str, Bound]:
    """The bound of each part of a step."""
    work = _work(counts, decoder)
    found = {}
    for part, (moved, operations) in work.items():
        memory, compute = moved / machine.bytes_per_second, operations / machine.operations_per_second
        found[part] = Bound(moved, operations, 1000 * max(memory, compute), "memory" if memory > compute else "compute")
    return found


def _work(counts: Counts, decoder: GaussianDecoder) -> dict[str, tuple[float, float]]:
    """Part -> bytes, operations."""
    offsets, features = decoder.n_offsets, int(decoder.architecture["feature_dim"])
    learned = 3 * offsets + features + 6  # numbers of an anchor
    rows = {"opacity": counts.visible, "cov": counts.active, "color": counts.active}
    products = sum(rows[name] * _weights(decoder, name) for name in HEADS)
    weights = sum(parameter.numel() for parameter in decoder.parameters())
    read = counts.visible * (3 + features + 6) + counts.gaussians * 3
    written = counts.gaussians * ATTRIBUTES + counts.visible * offsets
    image, gaussians = 3 * counts.pixels, counts.gaussians * ATTRIBUTES
    consistency = (counts.decoders - 1) * (10 * counts.gaussians + offsets * counts.visible)
    adam = counts.anchors * learned + weights
    drawn = gaussians + image
    return {
        "view": (NUMBER * counts.anchors * (3 + 6 + 4 + 1), counts.anchors * PROJECTION),
        "decode": (
            NUMBER * (read + counts.decoders * written),
            counts.decoders * (2 * products + ACTIVATIONS * counts.gaussians),
        ),
        "raster": (NUMBER * drawn, PROJECTION * counts.gaussians + PIXEL * counts.covered),
        "loss": (NUMBER * (3 * image + 2 * consistency), SSIM * image + 3 * consistency),
        "backward: loss": (NUMBER * (4 * image + 3 * consistency), 4 * image + 3 * consistency),
        "backward: raster": (NUMBER * 2 * drawn, PROJECTION_BACK * counts.gaussians + PIXEL_BACK * counts.covered),
        "backward: decode": (
            NUMBER * (read + 2 * written + counts.anchors * learned),
            4 * products + ACTIVATIONS * counts.gaussians,
        ),
        "optimizer": (NUMBER * ADAM_NUMBERS * adam, ADAM * adam),
    }  # fmt: skip


def _weights(decoder: GaussianDecoder, head: str) -> int:
    return sum(parameter.numel() for parameter in getattr(decoder, head).parameters())


@torch.no_grad()
def covered(gaussians: Gaussians, camera: Camera, radii: Int[Tensor, "g"]) -> float:
    """Pairs of a Gaussian and a pixel where its opacity reaches 1/255, from the areas of the ellipses; a Gaussian
    covers no more than the image.

    Args:
        radii: 0 for Gaussians that are not drawn.
    """
    world_view = camera.world_view.to(gaussians.means)
    x, y, z = (gaussians.means @ world_view[:3, :3].T + world_view[:3, 3]).unbind(1)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [camera.fx / z, zero, -camera.fx * x / z**2, zero, camera.fy / z, -camera.fy * y / z**2], dim=1
    ).view(-1, 2, 3)
    axes = jacobian @ world_view[:3, :3] @ quat_to_matrix(gaussians.quats) * gaussians.scales[:, None]
    covariance = axes @ axes.mT + BLUR * torch.eye(2).to(axes)
    area = 2 * math.pi * (255 * gaussians.opacities.squeeze(1)).log().clamp_min(0) * covariance.det().sqrt()
    return float(torch.where(radii > 0, area.clamp_max(camera.width * camera.height), 0).nan_to_num(0, 0, 0).sum())


def record(
    seconds: dict[str, list[float]], counts: Counts, machine: Machine, found: dict[str, Bound]
) -> dict[str, object]:
    """Everything as one JSON object: times are medians in milliseconds, ``reached`` the bound's share of a time."""
    parts: dict[str, dict[str, object]] = {}
    for part, values in seconds.items():
        took = 1000 * statistics.median(values)
        parts[part] = {"milliseconds": took}
        if part in found:
            bound = asdict(found[part])
            parts[part] |= {f"bound_{k}" if k in ("milliseconds", "by") else k: v for k, v in bound.items()}
            parts[part]["reached"] = found[part].milliseconds / took
    return {"machine": asdict(machine), "counts": asdict(counts), "parts": parts}
