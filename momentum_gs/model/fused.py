"""Decoding by the operator of anchor_decode: the same as ``expand.py``'s, in one pass forward and one backward.

``covers`` alone decides whether it is used. Sums have another order than torch's, so results differ in their last bits.
"""

import anchor_decode
import torch
from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.decoder_bank import Decoder


def covers(anchors: Anchors, center: Tensor, *decoders: Decoder) -> bool:
    """Whether the operator decodes these anchors with these decoders: a student and perhaps a fixed teacher.

    It has every option of a ``GaussianDecoder``. Not covered are a ``DecoderBank``, tensors other than float32 and
    float64 or of several dtypes or devices, devices that the operator was not built for, and gradients of anchors'
    positions or of the camera's.
    """
    like = anchors.position
    if not (like.is_cpu or like.is_cuda and anchor_decode.has_cuda()):
        return False
    if like.dtype not in (torch.float32, torch.float64):
        return False
    if torch.is_grad_enabled() and (like.requires_grad or center.requires_grad):
        return False
    tensors = [center, anchors.offset, anchors.feature, anchors.log_scale]
    for decoder in decoders:
        if not isinstance(decoder, GaussianDecoder) or decoder.architecture != decoders[0].architecture:
            return False
        tensors.append(next(decoder.opacity.parameters()))  # a module's tensors have one dtype and device
    return all(tensor.dtype == like.dtype and tensor.device == like.device for tensor in tensors)


def decode(
    anchors: Anchors,
    student: GaussianDecoder,
    center: Float[Tensor, "3"],
    visible: Int[Tensor, "m"],
    teacher: GaussianDecoder | None = None,
) -> anchor_decode.Decoded:
    """Decodes the rows ``visible``; with a teacher, its targets too, which have no gradient."""
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
    return anchor_decode.decode(*rows, visible, center, _weights(student), layout, fixed)


def _weights(decoder: GaussianDecoder) -> list[Tensor]:
    """The weights of all networks, as ``anchor_decode.Layout`` orders them."""
    networks = [decoder.opacity, decoder.cov, decoder.color]
    if decoder.feature_bank is not None:
        networks.append(decoder.feature_bank)
    layers = [layer for network in networks for layer in (network[0], network[2])]
    return [parameter for layer in layers for parameter in layer.parameters()]
