"""Several decoders in one model: that of blocks with per-block decoders after the merge."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from momentum_gs.model.decoder import DecoderOutput, GaussianDecoder


class DecoderBank(nn.Module):
    """Decoders of one architecture, and the index of the decoder of each anchor."""

    def __init__(self, decoders: Sequence[GaussianDecoder], block: Int[Tensor, "n"]) -> None:
        """``block``: for every anchor of the model, an index into ``decoders``."""
        super().__init__()
        self.decoders = nn.ModuleList(decoders)
        self.block: Tensor
        self.register_buffer("block", block)

    def at(self, rows: Int[Tensor, "m"]) -> "_AtRows":
        """The decoder of the anchors in these rows."""
        return _AtRows(self.decoders, self.block.index_select(0, rows))


class _AtRows:
    def __init__(self, decoders: nn.ModuleList, block: Int[Tensor, "m"]) -> None:
        self._decoders, self._block = decoders, block

    def __call__(
        self, feature: Float[Tensor, "m f"], direction: Float[Tensor, "m 3"], distance: Float[Tensor, "m 1"]
    ) -> DecoderOutput:
        """As ``GaussianDecoder.forward``; each decoder is called once, with its anchors."""
        order = self._block.argsort(stable=True)
        counts = self._block.bincount(minlength=len(self._decoders)).tolist()
        parts = zip(*(x.index_select(0, order).split(counts) for x in (feature, direction, distance)), strict=True)
        outputs = [decoder(*part) for decoder, part in zip(self._decoders, parts, strict=True)]
        back = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        return DecoderOutput(*(torch.cat(heads).index_select(0, back) for heads in zip(*outputs, strict=True)))


Decoder = GaussianDecoder | DecoderBank
"""The decoder of a whole model."""
