"""A box in the viewer: what lies outside is hidden."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from momentum_gs.viewer.run import ViewerRun
from momentum_gs.viewer.shown import Shown

Corner = tuple[float, float, float]


@dataclass(frozen=True)
class CropBox:
    """Parallel to the axes of the viewer, in its coordinates."""

    low: Corner
    high: Corner

    def crop(self, shown: Shown, run: ViewerRun) -> Shown:
        """The anchors, or Gaussians, whose position is inside."""
        place = torch.from_numpy(run.upright.points(shown.model.position))
        inside = (place >= torch.tensor(self.low)) & (place <= torch.tensor(self.high))
        return shown.subset(inside.all(dim=1).to(shown.block.device))

    @property
    def edges(self) -> Float[np.ndarray, "12 2 3"]:
        """Its lines."""
        corners = np.array(np.meshgrid(*zip(self.low, self.high, strict=True), indexing="ij")).reshape(3, 8).T
        pairs = [(i, i | bit) for bit in (1, 2, 4) for i in range(8) if not i & bit]
        return corners[np.array(pairs)]


def box_of(run: ViewerRun) -> CropBox:
    """A box around most of a run's points; of an export, around most of the viewer's scene."""
    if run.points is None or not len(run.points):
        return CropBox((-5.0, -5.0, -5.0), (5.0, 5.0, 5.0))
    points = run.upright.points(run.points.xyz[:: -(-len(run.points) // 50_000)])
    (x0, y0, z0), (x1, y1, z1) = np.quantile(points, (0.02, 0.98), axis=0).round(2).tolist()
    return CropBox((x0, y0, z0 - 0.5), (x1, y1, z1 + 0.5))
