"""Decoding by the operator of anchor_decode: the same as ``expand.py``'s, in one pass forward and one backward.

``covers`` alone decides whether it is used. Sums have another order than torch's, so results differ in their last bits.
"""

from typing import cast

import anchor_decode
import torch
from anchor_decode import Capacity, count_view
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.decoder_bank import Decoder, DecoderBank

__all__ = ["Capacity", "count_view", "covers", "decode"]


def covers(anchors: Anchors, center: Tensor, *decoders: Decoder) -> bool:
    """Whether the operator decodes these anchors with these decoders: a student and perhaps a fixed teacher.

    It has every option of a ``GaussianDecoder``, and a ``DecoderBank`` is as many calls. Not covered are subclasses,
    tensors other than float32 and float64 or of several dtypes or devices, devices that the operator was not built for,
    and gradients of anchors' positions or of the camera's.
    """
    like = anchors.position
    if not (like.is_cpu or like.is_cuda and anchor_decode.has_cuda()):
        return False
    if like.dtype not in (torch.float32, torch.float64):
        return False
    if torch.is_grad_enabled() and (like.requires_grad or center.requires_grad):
        return False
    like_first = _members(decoders[0])[0].architecture
    tensors = [center, anchors.offset, anchors.feature, anchors.log_scale]
    for decoder in [one for several in decoders for one in _members(several)]:
        # A subclass may decode otherwise.
        if type(decoder) is not GaussianDecoder or decoder.architecture != like_first:
            return False
        tensors.append(next(decoder.opacity.parameters()))  # a module's tensors have one dtype and device
    return all(tensor.dtype == like.dtype and tensor.device == like.device for tensor in tensors)


def decode(
    anchors: Anchors,
    student: Decoder,
    center: Float[Tensor, "3"],
    visible: Int[Tensor, "m"] | Bool[Tensor, "n"],
    teacher: GaussianDecoder | None = None,
    capacity: Capacity | None = None,
) -> anchor_decode.Decoded:
    """Decodes the rows ``visible``, or where it is true; with a teacher, its targets too, which have no gradient.

    ``capacity``: what earlier views took, so that the host need not wait for a GPU before it has queued the decoding;
    changed. Results do not depend on it. A ``DecoderBank`` makes no use of it.
    """
    if isinstance(student, DecoderBank):
        return _decode_bank(anchors, student, center, visible.nonzero()[:, 0] if _is_mask(visible) else visible)
    options = student.architecture
    layout = anchor_decode.Layout(
        features=options["feature_dim"],
        offsets=options["n_offsets"],
        hidden=options["hidden_dim"],
        distance=(options["add_opacity_dist"], options["add_cov_dist"], options["add_color_dist"]),
        bank=options["use_feature_bank"],
    )
    fixed = None if teacher is None else [weight.detach() for weight in _weights(teacher)]
    rows = (anchors.position, anchors.offset, anchors.feature, anchors.log_scale)
    return anchor_decode.decode(*rows, visible, center, _weights(student), layout, fixed, capacity)


def _is_mask(visible: Tensor) -> bool:
    return visible.dtype == torch.bool


def _decode_bank(anchors: Anchors, bank: DecoderBank, center: Tensor, visible: Tensor) -> anchor_decode.Decoded:
    """Each decoder decodes its anchors; then anchors and Gaussians are put back into the order of ``visible``."""
    block = bank.block.index_select(0, visible)
    places = [(block == index).nonzero().squeeze(1) for index in range(len(bank.decoders))]
    parts = [decode(anchors, one, center, visible[at]) for one, at in zip(_members(bank), places, strict=True)]
    place = torch.cat(places)
    owner = torch.cat([at[part.kept.nonzero()[:, 0]] for at, part in zip(places, parts, strict=True)])
    orders = [owner.argsort(stable=True)] * 5 + [place.argsort()] * 2
    columns = [torch.cat(column) for column in zip(*(part[:7] for part in parts), strict=True)]
    ordered = (column.index_select(0, order) for column, order in zip(columns, orders, strict=True))
    return anchor_decode.Decoded._make((*ordered, None, visible))


def _members(decoder: Decoder) -> list[GaussianDecoder]:
    return [decoder] if isinstance(decoder, GaussianDecoder) else list(decoder.decoders)  # type: ignore[arg-type]


def _weights(decoder: GaussianDecoder) -> list[Tensor]:
    """The weights of all networks, as ``anchor_decode.Layout`` orders them."""
    networks = [decoder.opacity, decoder.cov, decoder.color]
    if decoder.feature_bank is not None:
        networks.append(decoder.feature_bank)
    layers = [cast(nn.Linear, layer) for network in networks for layer in (network[0], network[2])]
    return [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
