"""The functional interface: the layout of a decoder's weights, and ``decode``.

The operators are declared in csrc/binding.cpp and dispatched by device; this file adds shapes for tracing and
gradients. Notation: N anchors, M of them visible, K offsets, F features, H hidden units, G Gaussians.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LIBRARY = Path(__file__).parent / "_kernels.so"
_BUILD = "pip install --no-build-isolation ./submodules/anchor-decode"
try:
    torch.ops.load_library(_LIBRARY)
except OSError as error:
    state = "does not fit this torch" if _LIBRARY.exists() else "is not there"
    raise ImportError(f"anchor_decode: the compiled part {state}; build it: {_BUILD}") from error

_ops = torch.ops.anchor_decode
HEADS = ("opacity", "cov", "color")


def has_cuda() -> bool:
    """Whether the compiled part was built for GPUs too."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("anchor_decode::decode", "CUDA")


def cpu_kernels() -> str:
    """The variant of the CPU kernels that is used: ``x86-64-v4`` (AVX-512) or ``x86-64-v3`` (AVX2).

    It is the best that this CPU supports, or the one that the environment variable MOMENTUM_GS_CPU names (``v4``,
    ``v3``) when the first kernel runs. A build with NATIVE=1 has one variant, ``native``; other architectures have
    ``plain``.

    Raises:
        RuntimeError: no variant runs on this CPU, or MOMENTUM_GS_CPU names a variant that does not exist.
    """
    return _ops.cpu_kernels()


@dataclass(frozen=True)
class Layout:
    """The shape of a decoder: heads ``opacity``, ``cov`` and ``color`` with two linear layers each, ReLU between.

    Its weights are one row: for each head in this order, then for the feature bank if there is one, the first layer's
    weight [H,inputs] and bias [H], and the second layer's [outputs,H] and [outputs], as ``torch.nn.Linear`` keeps them.
    """

    features: int
    """F."""
    offsets: int
    """K."""
    hidden: int
    """H; that of the feature bank is F."""
    distance: tuple[bool, bool, bool] = (False, False, False)
    """Which heads read the distance of the anchor, after the feature and the direction."""
    bank: bool = False
    """The features are a blend of three strides, by weights that depend on direction and distance; F % 4 = 0."""

    @property
    def networks(self) -> list[tuple[int, int, int]]:
        """(inputs, hidden units, outputs) of each network."""
        outputs = (self.offsets, 7 * self.offsets, 3 * self.offsets)
        heads = [
            (self.features + 3 + reads, self.hidden, n) for reads, n in zip(self.distance, outputs, strict=True)
        ]
        return heads + [(4, self.features, 3)] * self.bank

    @property
    def size(self) -> int:
        """The number of weights."""
        return sum((inputs + 1) * hidden + (hidden + 1) * outputs for inputs, hidden, outputs in self.networks)

    @property
    def distances(self) -> int:
        """``distance`` as bits."""
        return sum(1 << i for i, reads in enumerate(self.distance) if reads)


@dataclass
class Capacity:
    """How many visible anchors and Gaussians a view is expected to have, from earlier views of the same anchors.

    Every call of ``decode`` that is given it updates it. Without one, the host waits on a GPU until all earlier work is
    done, since it allocates what it counts. With one, the view is decoded into the memory that is expected to suffice,
    and the host waits for the numbers only behind that; what did not fit is decoded again. Results have the same bits
    in either case. CPUs count first and ignore it.
    """

    anchors: int = 0
    """0: unknown."""
    gaussians: int = 0
    """0: unknown."""

    def after(self, anchors: int, gaussians: int) -> None:
        """Expects a quarter more than a view had, so that the next ones fit; forgets large views slowly, over some
        hundred others."""
        self.anchors = max(anchors + anchors // 4, self.anchors - self.anchors // 64)
        self.gaussians = max(gaussians + gaussians // 4, self.gaussians - self.gaussians // 64)


Weights = Tensor | Sequence[Tensor]
"""The weights of a decoder in one row, or tensors of any shapes that make that row one after the other."""


class Targets(NamedTuple):
    """What a second decoder makes of the Gaussians that the first one keeps; without gradients."""

    scales: Tensor
    """[G,3]."""
    quats: Tensor
    """[G,4]."""
    colors: Tensor
    """[G,3]."""
    neural_opacity: Tensor
    """[M,K]."""


class Decoded(NamedTuple):
    """The Gaussians of the visible anchors, in the order of the anchors and their offsets."""

    means: Tensor
    """[G,3] position + offset * the anchor's first three scales."""
    scales: Tensor
    """[G,3] the anchor's last three scales times a sigmoid."""
    quats: Tensor
    """[G,4] unit length, as the network orders them."""
    opacities: Tensor
    """[G,1] in (0, 1): the positive neural opacities."""
    colors: Tensor
    """[G,3] in (0, 1)."""
    neural_opacity: Tensor
    """[M,K] in (-1, 1)."""
    kept: Tensor
    """bool [M,K]: which offsets became Gaussians, those of positive neural opacity."""
    targets: Targets | None
    """Of the teacher; None without one."""
    rows: Tensor
    """int64 [M] the anchors that were decoded: ``visible``, or where it is true."""


def decode(
    position: Tensor,
    offset: Tensor,
    feature: Tensor,
    log_scale: Tensor,
    visible: Tensor,
    center: Tensor,
    weights: Weights,
    layout: Layout,
    teacher: Weights | None = None,
    capacity: Capacity | None = None,
) -> Decoded:
    """Decodes the anchors in the rows ``visible`` for a camera at ``center``.

    Args:
        position: [N,3] float32 or float64; all others but ``visible`` have the same dtype and device.
        offset: [N,K,3] in units of the anchor's first three scales.
        feature: [N,F].
        log_scale: [N,6] natural logarithms.
        visible: int64 [M], each row once, in any order; or bool [N], which anchors, in the order of their rows.
        center: [3].
        weights: Of the decoder, as ``layout`` orders them.
        layout: The decoder's shape.
        teacher: Weights of a second decoder of the same layout, which decodes the same offsets along.
        capacity: How many anchors and Gaussians to expect, which the call updates; None: unknown.

    Returns:
        Decoded: its five attributes and ``neural_opacity`` are differentiable, once, in ``offset``, ``feature``,
        ``log_scale`` and ``weights``. The same bits for any number of threads; an anchor's values do not depend on
        the others that are decoded with it.

    Raises:
        RuntimeError: a shape, dtype or device does not fit, or ``visible`` holds a row twice or one that is not there
            (on a GPU, where the values are not read, neither is checked); the message names the argument.
        ValueError: ``position``, ``center`` or ``teacher`` require a gradient while gradients are recorded.
    """
    weights = [weights] if isinstance(weights, Tensor) else weights
    teacher = [teacher] if isinstance(teacher, Tensor) else teacher
    learn = torch.is_grad_enabled()
    if learn:
        for name, tensors in (("position", [position]), ("center", [center]), ("teacher", teacher or [])):
            if any(tensor.requires_grad for tensor in tensors):
                raise ValueError(f"anchor_decode: {name} requires a gradient, expected none as it gets none; detach it")
    row = None if teacher is None else _row(teacher)
    anchors = (position, offset, feature, log_scale, visible, center)
    expects = [] if capacity is None else [capacity.anchors, capacity.gaussians]
    if learn and any(tensor.requires_grad for tensor in (offset, feature, log_scale, *weights)):
        found = _Decode.apply(layout, row, expects, *anchors, *weights)
    else:
        found = _forward(layout, row, expects, anchors, _row(weights), train=False)
    if capacity is not None:
        capacity.after(len(found[5]), len(found[0]))
    rows = found[14] if visible.dtype == torch.bool else visible
    return Decoded(*found[:7], None if row is None else Targets(*found[7:11]), rows)


def _row(weights: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        # One operator, where detaching and flattening each of them would be two dozen.
        return weights[0].detach() if len(weights) == 1 else torch._C._nn.flatten_dense_tensors(weights)


def _forward(
    layout: Layout,
    teacher: Tensor | None,
    capacity: list[int],
    anchors: tuple[Tensor, ...],
    weights: Tensor,
    train: bool,
) -> tuple[Tensor, ...]:
    options = (layout.hidden, layout.distances, layout.bank)
    return _ops.decode(*anchors, weights, teacher, *options, train, capacity)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, layout: Layout, teacher: Tensor | None, capacity: list[int], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        anchors, weights = tensors[:6], tensors[6:]
        row = _row(weights)
        found = _forward(layout, teacher, capacity, anchors, row, train=True)
        _, scales, quats, _, colors, neural, kept, *fixed, listed = found
        ctx.mark_non_differentiable(kept, *fixed, listed)
        ctx.set_materialize_grads(False)
        *of_anchors, visible, center = anchors
        rows = listed if visible.dtype == torch.bool else visible
        ctx.save_for_backward(*of_anchors, rows, center, row, scales, quats, colors, neural, kept, *fixed[4:])
        ctx.layout, ctx.shapes = layout, [weight.shape for weight in weights]
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, layout = ctx.saved_tensors, ctx.layout
        anchors, values, rest = saved[:7], saved[7:12], saved[12:]
        gaussians = len(values[0])
        given = [
            values[0].new_zeros(gaussians, width) if grad is None else grad
            for grad, width in zip(grads[:5], (3, 3, 4, 1, 3), strict=True)
        ]
        d_offset, d_feature, d_log_scale, d_weights = _ops.decode_backward(
            *anchors, layout.hidden, layout.distances, layout.bank, values, rest, given, grads[5]
        )
        parts = d_weights.split([shape.numel() for shape in ctx.shapes])
        d_parts = (part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True))
        return None, None, None, None, d_offset, d_feature, d_log_scale, None, None, *d_parts


@torch.no_grad()
def count_view(
    visible: Tensor,
    kept: Tensor,
    neural_opacity: Tensor,
    radii: Tensor,
    gradient: Tensor | None,
    *,
    opacities: Tensor,
    views: Tensor,
    gradients: Tensor,
    drawn: Tensor,
) -> None:
    """Adds what a view showed to statistics of its anchors and offsets, in place.

    Args:
        visible: int64 [M], each row once: the anchors that were decoded.
        kept: bool [M,K], which of their offsets became Gaussians.
        neural_opacity: [M,K] of the dtype of the statistics, as all but the others' integers.
        radii: int32 [G] of the Gaussians on the screen, 0 where one was not drawn.
        gradient: [G,2] or wider, of which two columns are read: the gradient by the projected means; None: zeros.
        opacities: [N] float32 or float64: the sum of an anchor's positive neural opacities.
        views: [N] how often an anchor was visible.
        gradients: [N,K] the sum of the lengths of an offset's gradients, where it was drawn.
        drawn: [N,K] how often an offset was drawn.

    Raises:
        RuntimeError: a shape, dtype or device does not fit, a statistic is not contiguous, or (on a CPU) ``visible``
            names a row that is not there, or ``kept`` has another number of Gaussians than ``radii``.
    """
    _ops.count_view(visible, kept, neural_opacity, radii, gradient, opacities, views, gradients, drawn)


@torch.library.register_fake("anchor_decode::decode")
def _(
    position: Tensor, offset: Tensor, feature: Tensor, log_scale: Tensor, visible: Tensor, center: Tensor,
    weights: Tensor, teacher: Tensor | None, hidden: int, distances: int, bank: bool, train: bool,
    capacity: Sequence[int] = (),
) -> tuple[Tensor, ...]:  # fmt: skip
    masked = visible.dtype == torch.bool
    kept = torch.library.get_ctx().new_dynamic_size()
    m = torch.library.get_ctx().new_dynamic_size() if masked else visible.shape[0]
    k, taught = offset.shape[1], teacher is not None
    width = (hidden + 15) // 16 * 16
    h = kept if taught else 0
    active = torch.library.get_ctx().new_dynamic_size() if train else 0
    shapes = [
        (kept, 3), (kept, 3), (kept, 4), (kept, 1), (kept, 3), (m, k), (m, k), (h, 3), (h, 4), (h, 3),
        (m if taught else 0, k), (kept if train else 0, 4), (m if train else 0, width), (active, 2, width),
    ]  # fmt: skip
    found = [position.new_empty(s, dtype=torch.bool if i == 6 else None) for i, s in enumerate(shapes)]
    return (*found, visible.new_empty(m if masked else 0, dtype=torch.int64))


@torch.library.register_fake("anchor_decode::decode_backward")
def _(
    position: Tensor, offset: Tensor, feature: Tensor, log_scale: Tensor, visible: Tensor, center: Tensor,
    weights: Tensor, hidden: int, distances: int, bank: bool, values: list[Tensor], saved: list[Tensor],
    grads: list[Tensor], grad_neural_opacity: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    layout = torch.contiguous_format
    d_offset, d_feature, d_log_scale = (torch.empty_like(t, memory_format=layout) for t in (offset, feature, log_scale))
    return d_offset, d_feature, d_log_scale, torch.empty_like(weights, memory_format=layout)


@torch.library.register_fake("anchor_decode::count_view")
def _(*tensors: Tensor | None) -> None:
    # Torch asks it also where only one of several tensors has no data.
    devices = {str(tensor.device) for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"anchor_decode: tensors are on {' and '.join(sorted(devices))}, expected one device")
