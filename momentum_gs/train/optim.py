"""Adam for anchors, splats and decoder, and their learning rates.

``lr_scale`` is ``optim.lr_scale``, or the radius of the block's cameras in training units (spatial_lr_scale of 3DGS).
Learning rates depend on block steps; for the decoder, its updates are converted to block steps. Source: training_setup
and update_learning_rate of Scaffold-GS and 3DGS, scene/gaussian_model.py.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.optim import Adam

from momentum_gs.config.schema import GaussiansConfig, OptimConfig
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.row_model import RowModel
from momentum_gs.model.splats import Splats
from momentum_gs.render.rasterize import adam_rows
from momentum_gs.train.lr import exponential

BACKGROUND_LR = 0.01
"""Learning rate of a learned background's coefficients: 100 steps cross the range of colours."""
SH_LR, SH_REST_SHARE = 0.0025, 20
"""Learning rate of the spherical harmonics of degree 0, and the divisor that gives the rate of the higher degrees
[3DGS]."""
ROTATION_LR = 0.001
"""Learning rate of the splats' rotations [3DGS]."""
LAST_RATE = 0.02
"""Learning rates at the last step, relative to those of the first, where trained Gaussians are trained further."""
FEATURE_BANK_LR = 0.01, 1e-5
"""First and last learning rate of the decoder's feature bank [SGS]."""


class DirectAdam(Adam):
    """Adam that moves all its parameters in one kernel, up to rounding as torch's does, without torch's compiler.

    Those methods of ``torch.optim`` that are overridden here import the compiler, which takes 1.4 s of every process,
    and ask for it at each step. Counts of steps lie in host memory, so that no GPU is waited for.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters that have no moments yet."""
        inspect.unwrap(Adam.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops all gradients."""
        assert set_to_none, "gradients are dropped, not zeroed"
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = None

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves every parameter that has a gradient."""
        self.move()

    @torch.no_grad()
    def move(self, visible: Int[Tensor, "m"] | None = None) -> None:
        """``step``, which torch wraps for its profiler, or one for the rows at ``visible``: values and moments of the
        others keep their bits."""
        moved = [(p, group["lr"]) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not moved:
            return
        params, states = [param for param, _ in moved], [self._state_of(param) for param, _ in moved]
        torch._foreach_add_([state["step"] for state in states], 1)
        counts = torch.stack([state["step"] for state in states]).long().tolist()
        rows = None
        if visible is not None:
            rows = torch.zeros(len(params[0]), dtype=torch.bool, device=params[0].device).index_fill_(0, visible, True)
        adam_rows(
            params, [rate for _, rate in moved], counts, [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states], rows, self.param_groups[0]["eps"],
        )  # fmt: skip

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        """Its moments, zeros before its first step."""
        state: dict[str, Tensor] = self.state[param]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        return state


class SparseAdam(DirectAdam):
    """Adam whose step, ``move_rows``, moves only the rows in view.

    Steps are counted for a tensor, not for each row: Adam's bias corrections are those of dense Adam. With all rows in
    view the step is dense Adam's.
    """


def moments_on(device: torch.device, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An optimizer's state of one parameter, on its device; the count of steps stays in host memory."""
    return {name: value if name == "step" else value.to(device) for name, value in state.items()}


def row_optimizer(model: RowModel, config: OptimConfig) -> Adam:
    """Adam with a parameter group for each learnable row tensor, named like it; learning rates are not yet set."""
    groups = [{"params": [model.rows()[name]], "name": name} for name in model.LEARNABLE]
    return (SparseAdam if config.sparse_adam else DirectAdam)(groups, eps=config.eps)


def move_rows(optimizer: Adam, visible: Int[Tensor, "m"]) -> None:
    """One step of a ``row_optimizer``, after a view that shows the rows at ``visible``."""
    assert isinstance(optimizer, DirectAdam)
    optimizer.move(visible if isinstance(optimizer, SparseAdam) else None)


def anchor_optimizer(anchors: Anchors, config: OptimConfig, lr_scale: float) -> Adam:
    """``row_optimizer`` at the learning rates of step 0."""
    optimizer = row_optimizer(anchors, config)
    set_anchor_lr(optimizer, config, 0, lr_scale)
    return optimizer


def decoder_optimizer(decoder: GaussianDecoder, config: OptimConfig) -> DirectAdam:
    """Adam with a parameter group for each head, named like it, at the learning rates of step 0."""
    groups = [{"params": list(head.parameters()), "name": name} for name, head in decoder.named_children()]
    optimizer = DirectAdam(groups, eps=config.eps)
    set_decoder_lr(optimizer, config, 0)
    return optimizer


@torch.no_grad()
def clip_gradients(optimizer: Adam, limit: float) -> None:
    """Clips each group's gradient, in place, to ``limit`` times its usual norm: the root of Adam's second moments.

    The gradient of a single view can be a hundred times as long as all others. Without clipping, Adam takes a step
    many times the usual length along it, and keeps it in its second moments, which shortens about a thousand steps
    after it.
    """
    for group in optimizer.param_groups:
        learnt = [(p.grad, optimizer.state[p]) for p in group["params"] if p.grad is not None and p in optimizer.state]
        if not learnt:
            continue
        length = torch.stack([grad.norm() for grad, _ in learnt]).norm()
        # All parameters of a group have had the same number of steps; the division is Adam's bias correction.
        seen = 1 - group["betas"][1] ** learnt[0][1]["step"]
        usual = (torch.stack([state["exp_avg_sq"].sum() for _, state in learnt]).sum() / seen).sqrt()
        # A group whose gradients were all zero so far has no usual norm, so it is not clipped.
        share = torch.where((usual > 0) & (length > limit * usual), limit * usual / length, 1.0)
        for grad, _ in learnt:
            grad.mul_(share)


def set_anchor_lr(
    optimizer: Adam, config: OptimConfig, block_step: float | int, lr_scale: float, factor: float = 1.0
) -> None:
    """Sets the anchors' learning rates for the block step ``block_step``; ``factor`` multiplies all of them."""
    offset = exponential(*config.offset_lr, config.lr_steps)(block_step) * lr_scale
    rates = {"offset": offset, "feature": config.feature_lr, "log_scale": config.scaling_lr}
    _set(optimizer, {name: factor * rate for name, rate in rates.items()})


def splat_optimizer(splats: Splats, optim: OptimConfig, config: GaussiansConfig, lr_scale: float) -> Adam:
    """``row_optimizer`` at the learning rates of step 0."""
    optimizer = row_optimizer(splats, optim)
    set_splat_lr(optimizer, optim, config, 0, lr_scale)
    return optimizer


def set_splat_lr(
    optimizer: Adam, optim: OptimConfig, config: GaussiansConfig, block_step: float | int, lr_scale: float,
    last: float = 1.0, factor: float = 1.0,
) -> None:  # fmt: skip
    """Sets the splats' learning rates for the block step ``block_step``; ``last`` is what they are multiplied by at
    ``optim.lr_steps``, and less so before; ``factor`` multiplies all of them."""
    factor = factor * exponential(1.0, last, optim.lr_steps)(block_step)
    rates = {
        "position": exponential(*config.position_lr, optim.lr_steps)(block_step) * lr_scale,
        "sh_dc": SH_LR,
        "sh_rest": SH_LR / SH_REST_SHARE,
        "opacity": config.opacity_lr,
        "log_scale": config.scaling_lr,
        "rotation": ROTATION_LR,
    }
    _set(optimizer, {name: factor * rate for name, rate in rates.items()})


def set_decoder_lr(optimizer: Adam, config: OptimConfig, decoder_step: float | int) -> None:
    """Sets the heads' learning rates; ``decoder_step``: the decoder's updates so far, converted to block steps."""
    pairs = {
        "opacity": config.opacity_mlp_lr,
        "cov": config.cov_mlp_lr,
        "color": config.color_mlp_lr,
        "feature_bank": FEATURE_BANK_LR,
    }
    rates = {name: exponential(*pair, config.lr_steps)(decoder_step) for name, pair in pairs.items()}
    _set(optimizer, rates | {"background": BACKGROUND_LR})


def _set(optimizer: Adam, rates: dict[str, float]) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]
