"""Adam for anchors, splats and decoder, and their learning rates.

``lr_scale`` is ``optim.lr_scale``, or the radius of the block's cameras (spatial_lr_scale), training units. Steps are
block steps; those of the decoder are its updates on the blocks' clock. Source: training_setup and update_learning_rate
of Scaffold-GS and 3DGS, scene/gaussian_model.py.
"""

import torch
from torch.optim import Adam

from momentum_gs.config.schema import GaussiansConfig, OptimConfig
from momentum_gs.model.anchors import LEARNABLE, Anchors
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.splats import Splats
from momentum_gs.train.lr import exponential

BACKGROUND_LR = 0.01
"""Rate of a learned background's coefficients: 100 steps cross the range of colours."""
SH_REST_SHARE = 20
"""Rate of degree 0 over that of the higher ones [3DGS]."""


def anchor_optimizer(anchors: Anchors, config: OptimConfig, lr_scale: float) -> Adam:
    """One group for each learnable row, named like it, at the rates of step 0."""
    groups = [{"params": [anchors.rows()[name]], "name": name} for name in LEARNABLE]
    optimizer = Adam(groups, eps=config.eps, fused=True)
    set_anchor_lr(optimizer, config, 0, lr_scale)
    return optimizer


def decoder_optimizer(decoder: GaussianDecoder, config: OptimConfig) -> Adam:
    """One group for each head, named like it, at the rates of step 0."""
    groups = [{"params": list(head.parameters()), "name": name} for name, head in decoder.named_children()]
    optimizer = Adam(groups, eps=config.eps, fused=True)
    set_decoder_lr(optimizer, config, 0)
    return optimizer


@torch.no_grad()
def clip_gradients(optimizer: Adam, limit: float) -> None:
    """Scales the gradient of each group down to ``limit`` times its usual length: the root of Adam's second moments.

    A single view can have a gradient a hundred times as long as all others. Adam takes a step of many times the usual
    length along it, and keeps it in its second moments, which shortens the steps of the next thousand.
    """
    for group in optimizer.param_groups:
        learnt = [(p.grad, optimizer.state[p]) for p in group["params"] if p.grad is not None and p in optimizer.state]
        if not learnt:
            continue
        length = torch.stack([grad.norm() for grad, _ in learnt]).norm()
        # All parameters of a group have moved as often; the division undoes Adam's start from zero.
        seen = 1 - group["betas"][1] ** learnt[0][1]["step"].to(length)
        usual = (torch.stack([state["exp_avg_sq"].sum() for _, state in learnt]).sum() / seen).sqrt()
        # A group that has had no gradient but zeros has nothing to compare with.
        share = torch.where((usual > 0) & (length > limit * usual), limit * usual / length, 1.0)
        for grad, _ in learnt:
            grad.mul_(share)


def set_anchor_lr(optimizer: Adam, config: OptimConfig, block_step: float | int, lr_scale: float) -> None:
    """The rates of the anchors at a block's own step."""
    offset = exponential(*config.offset_lr, config.lr_steps)(block_step) * lr_scale
    _set(optimizer, {"offset": offset, "feature": config.feature_lr, "log_scale": config.scaling_lr})


def splat_optimizer(splats: Splats, optim: OptimConfig, config: GaussiansConfig, lr_scale: float) -> Adam:
    """One group for each row, named like it, at the rates of step 0."""
    groups = [{"params": [row], "name": name} for name, row in splats.rows().items()]
    optimizer = Adam(groups, eps=optim.eps, fused=True)
    set_splat_lr(optimizer, optim, config, 0, lr_scale)
    return optimizer


def set_splat_lr(
    optimizer: Adam, optim: OptimConfig, config: GaussiansConfig, block_step: float | int, lr_scale: float
) -> None:
    """The rates of the splats at a block's own step."""
    rates = {
        "position": exponential(*config.position_lr, optim.lr_steps)(block_step) * lr_scale,
        "sh_dc": config.sh_lr,
        "sh_rest": config.sh_lr / SH_REST_SHARE,
        "opacity": config.opacity_lr,
        "log_scale": config.scaling_lr,
        "rotation": config.rotation_lr,
    }
    _set(optimizer, rates)


def set_decoder_lr(optimizer: Adam, config: OptimConfig, decoder_step: float | int) -> None:
    """The rates of the heads after ``decoder_step`` steps of the blocks' clock."""
    pairs = {
        "opacity": config.opacity_mlp_lr,
        "cov": config.cov_mlp_lr,
        "color": config.color_mlp_lr,
        "feature_bank": config.feature_bank_lr,
    }
    rates = {name: exponential(*pair, config.lr_steps)(decoder_step) for name, pair in pairs.items()}
    _set(optimizer, rates | {"background": BACKGROUND_LR})


def set_learning_rates(
    anchor_opt: Adam,
    decoder_opt: Adam | None,
    config: OptimConfig,
    block_step: float | int,
    decoder_step: float | int,
    lr_scale: float,
) -> None:
    """Both at once; ``decoder_opt`` is None where the decoder is frozen."""
    set_anchor_lr(anchor_opt, config, block_step, lr_scale)
    if decoder_opt is not None:
        set_decoder_lr(decoder_opt, config, decoder_step)


def _set(optimizer: Adam, rates: dict[str, float]) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]
