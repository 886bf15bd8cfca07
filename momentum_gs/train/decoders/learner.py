"""A decoder in training: the module, its Adam, and both as tensors for a checkpoint or an inactive block."""

from collections.abc import Mapping

import torch
from torch import Tensor

from momentum_gs.config.schema import Config, ModelConfig, OptimConfig
from momentum_gs.model.background import DEGREE
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.init import start_flat_
from momentum_gs.train.optim import clip_gradients, decoder_optimizer, moments_on, set_decoder_lr

_GROUP = "group."
"""Prefix of the moments of one group of blocks."""


def fresh_decoder(model: ModelConfig) -> GaussianDecoder:
    """A decoder of the settings' architecture; its weights are drawn from torch's global generator."""
    return GaussianDecoder(
        model.feature_dim,
        model.n_offsets,
        use_feature_bank=model.use_feature_bank,
        add_opacity_dist=model.add_opacity_dist,
        add_cov_dist=model.add_cov_dist,
        add_color_dist=model.add_color_dist,
        background_degree=DEGREE.get(model.background),
    )


class DecoderLearner:
    """A decoder, initialized from ``config.seed``, and its optimizer."""

    def __init__(self, config: Config, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.module = fresh_decoder(config.model).to(device)
        if config.starts_flat:
            start_flat_(self.module)
        self._optimizer = decoder_optimizer(self.module, config.optim)
        self._config = config.optim
        self._inactive: dict[str, dict[str, dict[str, Tensor]]] = {}
        """Group of blocks -> parameter -> moments, of groups that are not active."""
        self._group = ""

    def switch(self, group: str) -> None:
        """Continues with the moments of a group of blocks (``blocks.decoder_moments=per_round``)."""
        if group != self._group:
            self._inactive[self._group] = self._moments()
            self._group = group
            self._set_moments(self._inactive.pop(group, {}))

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        """Parameter -> moments."""
        named = self.module.named_parameters()
        return {name: self._optimizer.state[p] for name, p in named if p in self._optimizer.state}

    def _set_moments(self, moments: Mapping[str, dict[str, Tensor]]) -> None:
        for name, parameter in self.module.named_parameters():
            self._optimizer.state.pop(parameter, None)
            if name in moments:
                self._optimizer.state[parameter] = moments[name]

    def step(self, block_step: float | int) -> None:
        """One optimizer step at the learning rates of ``block_step``; resets the gradients."""
        set_decoder_lr(self._optimizer, self._config, block_step)
        if self._config.decoder_clip is not None:
            clip_gradients(self._optimizer, self._config.decoder_clip)
        self._optimizer.move()
        self._optimizer.zero_grad()

    def retime(self, config: OptimConfig) -> None:
        """Takes the learning rates of ``config`` from the next step on; for a run with revised steps (``Pace``)."""
        self._config = config

    def to_tensors(self) -> dict[str, Tensor]:
        """Weights (``student.*``) and moments (``adam.*``); not copies."""
        tensors = {f"student.{k}": v for k, v in self.module.state_dict().items()}
        for group, moments in (self._inactive | {self._group: self._moments()}).items():
            start = f"{_GROUP}{group}." if group else ""
            for name, state in moments.items():
                tensors |= {f"{start}adam.{name}.{key}": value for key, value in state.items()}
        return tensors

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``to_tensors``, bit for bit; ignores tensors with other names."""
        self.module.load_state_dict(
            {k.removeprefix("student."): v for k, v in tensors.items() if k.startswith("student.")}
        )
        device = next(self.module.parameters()).device
        groups: dict[str, dict[str, dict[str, Tensor]]] = {"": {}}
        for name, value in tensors.items():
            group, is_moment, place = name.rpartition("adam.")
            if is_moment:
                parameter, _, key = place.rpartition(".")
                moments = groups.setdefault(group.removeprefix(_GROUP).removesuffix("."), {})
                moments.setdefault(parameter, {})[key] = value.clone()
        self._inactive = {
            group: {name: moments_on(device, state) for name, state in moments.items()}
            for group, moments in groups.items()
        }
        self._group = ""
        self._set_moments(self._inactive.pop(""))
