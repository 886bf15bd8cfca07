"""Mean SSIM and its gradient in one pass, as 3DGS codebases defines it."""

from fused_ssim.ops import fused_ssim, has_cuda

__all__ = ["fused_ssim", "has_cuda"]
