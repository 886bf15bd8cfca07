"""Types that all floors share: camera, target image, point cloud, Gaussians, render output.

Conventions (docs/conventions.md has the whole page): right-handed world; camera axes as COLMAP has them (x right,
y down, z forward); ``w2c`` maps world to camera as ``x_cam = rotation @ x_world + translation``; the principal point is
in COLMAP pixels, where the centre of the first pixel is (0.5, 0.5); quaternions are (w, x, y, z); images are [3,H,W]
in [0, 1].
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Camera:
    """One posed pinhole view. Tensors are float64 on the CPU; renderers convert."""

    name: str
    """Image name as the scene has it: a POSIX path below the image folder, so 'a/1.jpg' and 'b/1.jpg' differ."""
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    rotation: Float[Tensor, "3 3"]
    """World to camera."""
    translation: Float[Tensor, "3"]
    """World to camera, training units."""

    @cached_property
    def center(self) -> Float[Tensor, "3"]:
        """Position of the camera in the world."""
        return -self.rotation.T @ self.translation

    @cached_property
    def world_view(self) -> Float[Tensor, "4 4"]:
        """The 4x4 world-to-camera matrix, column-vector convention."""
        matrix = torch.eye(4, dtype=self.rotation.dtype)
        matrix[:3, :3] = self.rotation
        matrix[:3, 3] = self.translation
        return matrix

    def resized(self, width: int, height: int) -> "Camera":
        """The same view on another pixel grid; the principal point keeps its place in the image."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self, width=width, height=height, fx=self.fx * sx, fy=self.fy * sy, cx=self.cx * sx, cy=self.cy * sy
        )


@dataclass(frozen=True)
class TargetImage:
    """The image that a render is compared with."""

    image: Float[Tensor, "3 h w"]
    mask: Float[Tensor, "1 h w"] | None = None
    """1 where a pixel counts, 0 where it is ignored; None: all count."""
    weights: Float[Tensor, "h w"] | None = None
    """How much a pixel counts in the loss of a block that owns only some of them; None: all count alike. Unlike
    ignored ones, pixels of weight 0 are shown to their neighbours' SSIM."""
    share: Float[Tensor, ""] | float = 1.0
    """Of the whole view's loss: pixels that count here, as a share of all that count."""
    depth_prior: Float[Tensor, "h w"] | None = None
    """An estimator's depth or inverse depth in any unit, NaN where unknown; None: there is none."""
    normal_prior: Float[Tensor, "3 h w"] | None = None
    """An estimator's unit normals in camera axes, 0 where unknown; None: there are none."""

    @property
    def counts(self) -> Float[Tensor, "1 h w"] | None:
        """How much each pixel counts, by mask and weights; None: all alike."""
        if self.weights is None:
            return self.mask
        return self.weights[None] if self.mask is None else self.mask * self.weights


@dataclass(frozen=True)
class PointCloud:
    """Coloured points in world coordinates."""

    xyz: Float[Tensor, "n 3"]
    """float64, because scenes may lie far from the origin."""
    rgb: UInt8[Tensor, "n 3"]

    def __len__(self) -> int:
        return self.xyz.shape[0]


@dataclass(frozen=True)
class Gaussians:
    """The rasterizer's input, with activations applied."""

    means: Float[Tensor, "g 3"]
    scales: Float[Tensor, "g 3"]
    """Standard deviations, training units, positive."""
    quats: Float[Tensor, "g 4"]
    """Unit quaternions (w, x, y, z)."""
    opacities: Float[Tensor, "g 1"]
    """In (0, 1]."""
    colors: Float[Tensor, "g c"]

    def __len__(self) -> int:
        return self.means.shape[0]


@dataclass(frozen=True)
class RenderOutput:
    """One rasterized view."""

    image: Float[Tensor, "c h w"]
    alpha: Float[Tensor, "h w"]
    """Accumulated opacity, 1 - transmittance."""
    depth: Float[Tensor, "h w"]
    """Sum of weight * camera z, not divided by alpha."""
    radii: Int[Tensor, "g"]
    """Screen radius in pixels, 0 where a Gaussian was culled."""
    screen_means: Tensor
    """[G,3] leaf; after the backward pass, ``.grad[:, :2]`` is the gradient by the projected means, NDC units."""
