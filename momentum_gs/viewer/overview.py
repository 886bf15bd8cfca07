"""Where the viewer's camera stands at first."""

import numpy as np
from jaxtyping import Float

from momentum_gs.data.frame import VIEW_DISTANCE
from momentum_gs.viewer.run import ViewerRun
from momentum_gs.viewer.upright import Pose

_AERIAL = 0.8
"""A survey from above: at least this share of the points lies below the cameras' median height."""


def overview(run: ViewerRun) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """(Position, point to look at) from which most of a run is seen, viewer coordinates.

    A survey from above is seen from its edge; any other scene from its first camera.
    """
    if not run.cameras or run.points is None or not len(run.points):
        return np.array([-6.0, -6.0, 6.0]), np.zeros(3)
    points = run.upright.points(run.points.xyz[:: -(-len(run.points) // 20_000)])
    poses: list[Pose] = [run.upright.pose(camera) for camera in run.cameras]
    places = np.array([pose.position for pose in poses])
    if (points[:, 2] < np.median(places[:, 2])).mean() < _AERIAL:
        forward = run.upright.frame.camera(run.cameras[0]).rotation[2].numpy()
        return places[0], places[0] + VIEW_DISTANCE * forward
    middle = np.array([*np.median(places[:, :2], axis=0), np.median(points[:, 2])])
    reach = max(float(np.ptp(places[:, :2], axis=0).max()), VIEW_DISTANCE)
    return middle + reach * np.array([-0.45, -0.75, 0.65]), middle
