"""Moves the camera of a browser."""

import numpy as np
import viser

from momentum_gs.core.types import Camera
from momentum_gs.data.frame import VIEW_DISTANCE
from momentum_gs.viewer.overview import overview
from momentum_gs.viewer.run import ViewerRun
from momentum_gs.viewer.upright import vertical_fov


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
