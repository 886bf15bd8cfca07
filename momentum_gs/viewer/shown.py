"""A model as the viewer shows it: with the block of every row, so that blocks can be hidden and coloured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from momentum_gs.model.decoder_bank import Decoder, DecoderBank
from momentum_gs.model.splats import Harmonics, Model


@dataclass(frozen=True)
class Shown:
    """One state of one run."""

    model: Model
    decoder: Decoder | Harmonics
    block: Int[Tensor, "n"]
    """Block of every row; 0 where the run has no blocks."""
    error: Float[Tensor, "n"] | None = None
    """Mean error of the images where each row is seen (``bake.contributions.RowErrors``); NaN where it is not."""

    def to(self, device: torch.device) -> "Shown":
        """The same on another device."""
        return Shown(self.model.to(device), self.decoder.to(device).eval(), self.block.to(device))

    def subset(self, keep: Bool[Tensor, "n"]) -> "Shown":
        """Only some of the rows."""
        decoder = self.decoder
        if isinstance(decoder, DecoderBank):
            decoder = DecoderBank([*decoder.decoders], decoder.block[keep])
        error = None if self.error is None else self.error[keep]
        return replace(self, model=self.model.subset(keep), decoder=decoder, block=self.block[keep], error=error)

    def without(self, hidden: frozenset[int]) -> "Shown":
        """All rows but those of the hidden blocks."""
        if not hidden:
            return self
        return self.subset(~torch.isin(self.block, torch.tensor(sorted(hidden), device=self.block.device)))

    @property
    def blocks(self) -> list[int]:
        """The blocks that have a row, ascending."""
        return self.block.unique().tolist()


def join(parts: Sequence[Shown]) -> Shown:
    """Several blocks as one model; those with decoders of their own keep them."""
    first = parts[0]
    model = type(first.model).cat([part.model for part in parts])  # type: ignore[misc]
    block = torch.cat([part.block for part in parts])
    decoders = [part.decoder for part in parts]
    if all(decoder is first.decoder for decoder in decoders) or isinstance(first.decoder, Harmonics):
        return Shown(model, first.decoder, block)
    index = torch.cat([torch.full_like(part.block, i) for i, part in enumerate(parts)])
    return Shown(model, DecoderBank(decoders, index), block)  # type: ignore[arg-type]
