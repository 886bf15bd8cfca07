"""What lies over the model in a browser: cells with their scores, cameras, sparse points, up axis and grid."""

from collections.abc import Callable
from functools import partial

import numpy as np
import viser

from momentum_gs.core.types import Camera
from momentum_gs.viewer.cells import outlines
from momentum_gs.viewer.colors import GREY, Rgb, block_color, score_colors
from momentum_gs.viewer.crop import CropBox
from momentum_gs.viewer.run import ViewerRun
from momentum_gs.viewer.upright import vertical_fov

CELLS, CAMERAS, POINTS, GRID = "cells", "cameras", "points", "grid"
LAYERS = (CELLS, CAMERAS, POINTS, GRID)
MOST_FRUSTA = 600
"""A browser draws about this many smoothly; of more cameras, evenly chosen ones are drawn."""
_MOST_POINTS = 100_000
_HELD_OUT: Rgb = (255, 255, 255)
_BOX: Rgb = (255, 255, 255)
_FRUSTUM_SHARE = 0.25
"""Height of a frustum as a share of the median distance between neighbouring cameras."""


class SceneLayers:
    """The overlays of one run in one browser."""

    def __init__(
        self, scene: viser.SceneApi, run: ViewerRun, shown: dict[str, bool], on_camera: Callable[[Camera], None]
    ) -> None:
        """Adds all of them.

        Args:
            scene: Of the browser.
            run: Gives cameras, points and cells.
            shown: Layer -> whether it is visible.
            on_camera: Called with the camera whose frustum is clicked.
        """
        self._scene, self._run = scene, run
        self._box: viser.LineSegmentsHandle | None = None
        self._roots = {
            name: scene.add_frame(f"/{name}", show_axes=False, visible=shown.get(name, True)) for name in LAYERS
        }
        self._cells()
        self._cameras(on_camera)
        self._points()
        self._grid()

    def show(self, layer: str, visible: bool) -> None:
        """Switches a layer on or off."""
        self._roots[layer].visible = visible

    def show_box(self, box: CropBox | None) -> None:
        """Draws the crop box; None: removes it."""
        if self._box is not None:
            self._box.remove()
        self._box = None
        if box is not None:
            self._box = self._scene.add_line_segments(
                "/crop", box.edges.astype(np.float32), np.array(_BOX, np.uint8), thickness=2.0, thickness_units="screen"
            )

    def remove(self) -> None:
        """Removes all of them, for those of another run."""
        self.show_box(None)
        for root in self._roots.values():
            root.remove()

    def _cells(self) -> None:
        colors = score_colors(self._run.block_psnr)
        for number, outline in enumerate(outlines(self._run)):
            color, name = colors.get(outline.block, GREY), f"/{CELLS}/{number}"
            # Lines alone: a browser without a GPU takes seconds to draw translucent walls.
            self._scene.add_line_segments(
                f"{name}/outline", outline.segments.astype(np.float32), np.array(color, np.uint8), thickness=2.0,
                thickness_units="screen",
            )  # fmt: skip
            score = self._run.block_psnr.get(outline.block)
            text = f"block {outline.block}" + ("" if score is None else f": {score:.2f} dB")
            self._scene.add_label(f"{name}/label", text, position=outline.middle, anchor="center-center")

    def _cameras(self, on_camera: Callable[[Camera], None]) -> None:
        cameras = self._run.cameras
        if not cameras:
            return
        scale = frustum_scale(self._run)
        for number in shown_cameras(len(cameras)):
            camera = cameras[number]
            pose = self._run.upright.pose(camera)
            owner = None if self._run.table is None else self._run.table.owner(camera)
            color = _HELD_OUT if camera.name in self._run.held_out else block_color(0 if owner is None else owner)
            handle = self._scene.add_camera_frustum(
                f"/{CAMERAS}/{number}", vertical_fov(camera), camera.width / camera.height, scale=scale, color=color,
                thickness=1.5, thickness_units="screen", wxyz=pose.wxyz, position=pose.position, cast_shadow=False,
                receive_shadow=False,
            )  # fmt: skip
            handle.on_click(partial(_clicked, on_camera, camera))

    def _points(self) -> None:
        points = self._run.points
        if points is None or not len(points):
            return
        every = -(-len(points) // _MOST_POINTS)
        self._scene.add_point_cloud(
            f"/{POINTS}/cloud", self._run.upright.points(points.xyz[::every]).astype(np.float32),
            points.rgb[::every].numpy(), point_size=0.015, precision="float32", point_shading="flat",
        )  # fmt: skip

    def _grid(self) -> None:
        """A grid of metres (tens of them in a large scene), or of units, on the ground, and the up axis."""
        points = self._run.points
        ground = (0.0, 0.0, 0.0)
        reach = 10.0
        if points is not None and len(points):
            shown = self._run.upright.points(points.xyz[:: -(-len(points) // _MOST_POINTS)])
            ground = (0.0, 0.0, float(np.quantile(shown[:, 2], 0.05)))
            reach = 2.2 * float(np.quantile(np.abs(shown[:, :2]), 0.95))
        cell = grid_cell(reach, self._run.metres)
        side = 2 * cell * np.ceil(reach / 2 / cell)
        self._scene.add_grid(
            f"/{GRID}/ground", side, side, cell_size=cell, section_size=10 * cell, position=ground,
            cell_color=(120, 120, 120), section_color=(90, 90, 90), fade_distance=10 * side, shadow_opacity=0.0,
        )  # fmt: skip
        self._scene.add_frame(
            f"/{GRID}/axes", axes_length=0.2 * reach, axes_radius=0.003 * reach, position=ground
        )  # fmt: skip
        unit = "units" if self._run.metres is None else "m"
        length = cell * (self._run.metres or 1.0)
        self._scene.add_label(
            f"/{GRID}/up", f"up; grid of {length:g} x {length:g} {unit}", position=(0.0, 0.0, ground[2] + 0.22 * reach)
        )


def _clicked(on_camera: Callable[[Camera], None], camera: Camera, _: object) -> None:
    on_camera(camera)


def grid_cell(reach: float, metres: float | None) -> float:
    """Side of a square in viewer units: the power of ten, in metres where they are known, of which 10 to 100 fit."""
    unit = metres or 1.0
    return float(10.0 ** np.floor(np.log10(max(reach, 1e-9) * unit / 10)) / unit)


def shown_cameras(count: int) -> list[int]:
    """Which of the cameras get a frustum."""
    return sorted(set(np.linspace(0, count - 1, min(count, MOST_FRUSTA)).round().astype(int).tolist()))


def frustum_scale(run: ViewerRun) -> float:
    """Size of the frusta, so that neighbours do not hide each other."""
    places = np.array([run.upright.pose(camera).position for camera in run.cameras])
    if len(places) < 2:
        return 0.3
    sample = places[:: -(-len(places) // 300)]
    apart = np.linalg.norm(sample[:, None] - places[None], axis=2)
    apart[apart < 1e-9] = np.inf
    nearest = apart.min(axis=1)
    known = nearest[np.isfinite(nearest)]
    return float(np.clip(_FRUSTUM_SHARE * np.median(known), 0.02, 0.5)) if len(known) else 0.3
