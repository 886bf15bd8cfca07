"""Anchors of Scaffold-GS become Gaussians, with gradients, in one operator."""

from anchor_decode.ops import Decoded, Layout, Room, Targets, cpu_kernels, decode, has_cuda

__all__ = ["Decoded", "Layout", "Room", "Targets", "cpu_kernels", "decode", "has_cuda"]
