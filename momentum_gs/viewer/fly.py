"""Moves the camera of a browser."""

import numpy as np
import viser

from momentum_gs.core.types import Camera
from momentum_gs.data.frame import VIEW_DISTANCE
from momentum_gs.viewer.run import ViewerRun
from momentum_gs.viewer.scene_layers import vertical_fov
from momentum_gs.viewer.upright import Pose

_AERIAL = 0.8
"""A survey from above: at least this share of the points lies below the cameras' median height."""


def fly_to(client: viser.ClientHandle, run: ViewerRun, camera: Camera) -> None:
    """Puts the browser's camera where a camera of the run stands, with its opening angle."""
    pose = run.upright.pose(camera)
    forward = run.upright.frame.camera(camera).rotation[2].numpy()
    with client.atomic():
        client.camera.fov = vertical_fov(camera)
        client.camera.position = pose.position
        client.camera.look_at = np.array(pose.position) + VIEW_DISTANCE * forward
        client.camera.wxyz = pose.wxyz  # Also turns the up direction, where the camera was not held upright.


def stand_upright(client: viser.ClientHandle) -> None:
    """Makes z the axis about which the browser's camera turns, as before a flight to a tilted camera."""
    client.camera.up_direction = (0.0, 0.0, 1.0)


def fly_home(client: viser.ClientHandle, run: ViewerRun) -> None:
    """Back to the overview, upright."""
    position, look_at = overview(run)
    with client.atomic():
        client.camera.position = position
        client.camera.look_at = look_at
        stand_upright(client)


def overview(run: ViewerRun) -> tuple[np.ndarray, np.ndarray]:
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
