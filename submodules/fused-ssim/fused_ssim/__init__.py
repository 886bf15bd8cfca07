"""Mean SSIM and its gradient in one pass, as the 3DGS family defines it."""

from fused_ssim.ops import cpu_kernels, fused_ssim, has_cuda

__all__ = ["cpu_kernels", "fused_ssim", "has_cuda"]
