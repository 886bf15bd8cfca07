"""Mean SSIM and its gradient in one pass, as 3DGS codebases define it."""

from fused_ssim.ops import cpu_kernels, fused_ssim, has_cuda, image_loss

__all__ = ["cpu_kernels", "fused_ssim", "has_cuda", "image_loss"]
