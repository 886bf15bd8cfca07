"""Anchors of Scaffold-GS become Gaussians, with gradients, in one operator."""

from anchor_decode.ops import Capacity, Decoded, Layout, Targets, count_view, cpu_kernels, decode, has_cuda

__all__ = ["Decoded", "Layout", "Capacity", "Targets", "count_view", "cpu_kernels", "decode", "has_cuda"]
