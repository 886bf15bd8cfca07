"""What torch must know of the operators beside their schemas: gradients, and the shapes of what they return."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diff_gaussian_rasterization.library import OPERATORS


def _project_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    means, scales, quats, cov3d, world_view, _screen, *rest = inputs
    _means2d, conics, _depths, radii = output
    ctx.save_for_backward(means, scales, quats, cov3d, world_view, conics, radii)
    ctx.camera = rest[:8]
    ctx.mark_non_differentiable(radii)
    ctx.set_materialize_grads(False)


def _project_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 16
    grad_means2d, grad_conics, grad_depths, _ = grads
    if grad_means2d is None and grad_conics is None and grad_depths is None:
        return nothing
    means, scales, quats, cov3d, world_view, conics, radii = ctx.saved_tensors
    need = ctx.needs_input_grad
    screen = None
    if need[5] and grad_means2d is not None:
        width, height = ctx.camera[4], ctx.camera[5]
        # Each column is multiplied by a Python number, since copying a tensor to the device would synchronize.
        screen = torch.zeros_like(means)
        torch.mul(grad_means2d[:, 0], 0.5 * width, out=screen[:, 0])
        torch.mul(grad_means2d[:, 1], 0.5 * height, out=screen[:, 1])
    if not any(need[:5]):
        return (*nothing[:5], screen, *nothing[6:])
    wanted = OPERATORS.project_backward(
        grad_means2d,
        grad_conics,
        grad_depths,
        means,
        scales,
        quats,
        cov3d,
        world_view,
        conics,
        radii,
        *ctx.camera,
        need[4],
    )
    return (*(g if n else None for g, n in zip(wanted, need[:5], strict=True)), screen, *nothing[6:])


def _composite_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    *_, window, tiles, _absolute, ctx.fixed, _capacity = inputs
    ctx.save_for_backward(*output, tiles)
    ctx.gaussians = inputs[0].shape[0]
    ctx.corner = (0, 0) if window is None else (window[0], window[1])
    ctx.mark_non_differentiable(*output[3:])
    ctx.set_materialize_grads(False)


def _composite_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if all(grad is None for grad in grads[:3]):
        return (None,) * 14
    *drawn, tiles = ctx.saved_tensors
    means2d, conics, depths, opacities, colors, background = OPERATORS.composite_backward(
        *grads[:3], *drawn, ctx.gaussians, *ctx.corner, tiles, ctx.fixed
    )
    ready = (means2d, conics, depths if grads[2] is not None else None, None, opacities, colors, background)
    absolute = None
    if any(ctx.needs_input_grad[11:12]):  # arguments at their defaults are left out at the end
        absolute = OPERATORS.absolute_gradient(*grads[:3], *drawn, ctx.gaussians, *ctx.corner, tiles)
    wanted = (g if n else None for g, n in zip(ready, ctx.needs_input_grad[:7], strict=True))
    return (*wanted, *(None,) * 4, absolute, None, None)


def _antialias_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _antialias_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = OPERATORS.antialias_backward(grad, *ctx.saved_tensors)
    return tuple(g if n else None for g, n in zip(wanted, ctx.needs_input_grad, strict=True))


def _sh_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.degree, dirs, sh = inputs
    ctx.save_for_backward(dirs, sh)


def _sh_backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
    return (None, *OPERATORS.spherical_harmonics_backward(grad, ctx.degree, *ctx.saved_tensors))


def _direct(name: str, setup: Callable[..., None], backward: Callable[..., Any]) -> Callable[..., Any]:
    """An operator with its gradient for eager code, past the wrappers of ``torch.library``.

    These serve what traces or transforms calls. Written in Python, they take a tenth of a millisecond for each call.
    """
    operator = getattr(OPERATORS, name)

    class Direct(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = operator(*inputs)
            setup(ctx, inputs, output)
            return output

    Direct.backward = staticmethod(backward)  # type: ignore[assignment]

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return operator(*inputs)
        return Direct.apply(*inputs)

    return call


project = _direct("project", _project_setup, _project_backward)
composite = _direct("composite", _composite_setup, _composite_backward)


def _shapes_of(name: str) -> Callable[[Callable[..., Any]], None]:
    """Registers what an operator returns where only shapes are computed.

    Torch also asks it where one of several tensors has no data; what it allocates for the others is not initialized.
    """

    def register(shapes: Callable[..., Any]) -> None:
        def checked(*args: Any, **kwargs: Any) -> Any:
            devices = {str(value.device) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
            if len(devices) > 1:
                raise ValueError(f"{name}: tensors are on {' and '.join(sorted(devices))}, expected one device")
            return shapes(*args, **kwargs)

        torch.library.register_fake(f"diff_gaussian_rasterization::{name}")(checked)

    return register


def register() -> None:
    """Once, before the operators are called."""
    space = "diff_gaussian_rasterization::"
    torch.library.register_autograd(space + "project", _project_backward, setup_context=_project_setup)
    torch.library.register_autograd(space + "composite", _composite_backward, setup_context=_composite_setup)
    torch.library.register_autograd(space + "antialias", _antialias_backward, setup_context=_antialias_setup)
    torch.library.register_autograd(space + "spherical_harmonics", _sh_backward, setup_context=_sh_setup)

    @_shapes_of("project")
    def _(means: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        n = means.shape[0]
        return means.new_empty(n, 2), means.new_empty(n, 3), means.new_empty(n), means.new_empty(n, dtype=torch.int32)

    @_shapes_of("project_backward")
    def _(
        g1: Any, g2: Any, g3: Any, means: Tensor, scales: Any, quats: Any, cov3d: Any, *rest: Any
    ) -> tuple[Tensor, ...]:
        n = means.shape[0]
        shapes = [means.new_empty(0 if t is None else n, c) for t, c in ((scales, 3), (quats, 4), (cov3d, 6))]
        return means.new_empty(n, 3), *shapes, means.new_empty(4 if rest[-1] else 0, 4)

    @_shapes_of("visible_radii")
    def _(means: Tensor, *rest: Any) -> Tensor:
        return means.new_empty(means.shape[0], dtype=torch.int32)

    @_shapes_of("composite")
    def _(
        means2d: Tensor,
        conics: Any,
        depths: Any,
        radii: Any,
        opacities: Any,
        colors: Tensor,
        bg: Any,
        width: int,
        height: int,
        window: list[int] | None = None,
        tiles: Tensor | None = None,
        absolute: Tensor | None = None,
        fixed: int = 0,
        capacity: int = 0,
    ) -> tuple[Tensor, ...]:
        if window is not None:
            width, height = window[2:]
        # The numbers of drawn Gaussians and pairs depend on the data; stride and tiles depend on the backend.
        drawn, stride, starts, ends, pairs = (torch.library.get_ctx().new_dynamic_size() for _ in range(5))

        def ints(*shape: Any) -> Tensor:
            return means2d.new_empty(shape, dtype=torch.int32)

        return (
            means2d.new_empty(colors.shape[1], height, width),
            means2d.new_empty(height, width),
            means2d.new_empty(height, width),
            means2d.new_empty(drawn, stride),
            ints(drawn),
            ints(starts),
            ints(ends),
            ints(2, pairs),
        )

    @_shapes_of("composite_backward")
    def _(gi: Any, ga: Any, gd: Any, image: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        n, c = rest[7], image.shape[0]
        return (
            image.new_empty(n, 2),
            image.new_empty(n, 3),
            image.new_empty(0 if gd is None else n),
            image.new_empty(n, 1),
            image.new_empty(n, c),
            image.new_empty(c),
        )

    @_shapes_of("absolute_gradient")
    def _(gi: Any, ga: Any, gd: Any, image: Tensor, *rest: Any) -> Tensor:
        return image.new_empty(rest[7], 2)

    @_shapes_of("median")
    def _(alpha: Tensor, *rest: Any) -> Tensor:
        return torch.empty_like(alpha, dtype=torch.int32)

    @_shapes_of("antialias")
    def _(conics: Tensor, opacities: Tensor) -> Tensor:
        return torch.empty_like(opacities)

    @_shapes_of("antialias_backward")
    def _(grad: Tensor, conics: Tensor, opacities: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty_like(conics), torch.empty_like(opacities)

    @_shapes_of("adam_update")
    def _(*tensors: Any) -> None:
        return None

    @_shapes_of("spherical_harmonics")
    def _(degree: int, dirs: Tensor, sh: Tensor) -> Tensor:
        return dirs.new_empty(dirs.shape[0], sh.shape[2])

    @_shapes_of("spherical_harmonics_backward")
    def _(grad: Tensor, degree: int, dirs: Tensor, sh: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty_like(dirs), torch.empty_like(sh)
