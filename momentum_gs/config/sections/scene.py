"""The scene: its images and its coordinates, and how images differ in colour."""

from dataclasses import dataclass
from typing import Literal

from momentum_gs.config.sections.checks import check, developers

Axis = Literal["x", "y", "z", "-x", "-y", "-z"]
"""A signed axis of the scene's coordinates."""


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Where the images are and which of them train."""

    path: str | None = None
    """Scene folder (``-s``): with ``images/`` and ``sparse/0``, with ``train/`` and ``val/`` as Mega-NeRF has them, or
    with ``transforms.json``."""
    images: str = "images"
    """Name of the image folder (``-i``)."""
    resolution: float = -1.0
    """``-r``: 1, 2, 4 and 8 divide the image size; any other positive number is the image width in pixels; -1 limits
    the width to 1600 [SGS]."""
    test_every: int = 8
    """Every n-th image, in order of name, is held out [SGS]; 0: none. Ignored where there is a ``test_list`` or a
    ``val/`` folder."""
    test_list: str | None = None
    """File with one held-out image name per line. Default: ``sparse/0/test.txt`` or ``test_list.txt`` of the scene,
    where there is one."""
    white_background: bool = False
    """``-w``: composite onto white instead of black."""
    cache_gb: float = 4.0
    """Largest size of the cache of decoded images, GiB of host memory per process [ours]."""
    bad_images: Literal["fail", "skip"] = "fail"
    """What happens when an image cannot be read: the run ends (``fail``), or the image is left out of training and the
    number of such images is reported (``skip``) [ours]."""
    masks: str = "masks"
    """Folder in the scene with a mask for each image, ``<image name>.png``; black pixels are ignored in the loss, in
    scores and in growth. Empty: no masks are used [ours]."""
    depths: str = "depths"
    """Folder beside the image folder with a depth map for each image, for ``loss.depth_prior`` [3DGS: ``-d``]."""
    depths_hold: Literal["inverse", "depth"] = "inverse"
    """What those maps hold, in any unit and with any shift: ``inverse`` depth, larger where nearer, as Depth Anything
    writes it [3DGS], or ``depth``, larger where farther, as metric estimators write it [ours]."""
    normals: str = "normals"
    """Folder beside the image folder with a normal map for each image, for ``loss.normal_prior`` [ours]."""
    undistort: bool = False
    """Undistort images of cameras with lens distortion into ``undistort_folder``; without this, such a scene is an
    error [ours]."""
    points: str | None = None
    """Initial points instead of the scene's own: a PLY, LAS or LAZ file in the scene's coordinates, or ``random``
    (100,000 random points where the cameras look) [ours]."""
    offset: tuple[float, float, float] | None = None
    """Subtracted from all coordinates of the scene, scene units. Default: zero, unless the cameras are so far from the
    origin (100 times their extent) that float32 would blur the scene; then their rounded centre. With ``unit: auto``
    the default is always their centre. A run writes the offset that it used to its ``config.yaml`` [ours]."""
    unit: float | Literal["auto"] = 1.0
    """Scene units in one training unit: all coordinates are divided by this number. 1: training uses the scene's own
    coordinates [SGS, MGS]. ``auto``: the unit in which the median distance from the cameras to the points is 5, so that
    the same settings suit a scene in metres, in feet or in COLMAP's arbitrary unit. All lengths in settings, including
    ``partition.aabb``, and all results are in training units. A run writes the unit that it used to its
    ``config.yaml`` [ours]."""
    axes: tuple[Axis, Axis, Axis] | None = None
    """Axes of the scene that become x, y and z of the training coordinates, e.g. ``[x, -z, y]``. Default: the scene's
    own; with ``unit: auto`` those that point up (z) and from the cameras to the points (x). A run writes the axes that
    it used to its ``config.yaml`` [ours]."""
    undistort_folder: str = developers("undistorted")
    """Folder of the undistorted copies, relative to the scene; it may be deleted at any time [ours]."""

    def __post_init__(self) -> None:
        check(self.resolution == -1 or self.resolution > 0, "scene.resolution", self.resolution, "-1 or above 0")
        check(self.test_every >= 0 and self.test_every != 1, "scene.test_every", self.test_every, "0 or at least 2")
        check(self.cache_gb > 0, "scene.cache_gb", self.cache_gb, "a size above 0")
        check(self.unit == "auto" or self.unit > 0, "scene.unit", self.unit, "auto, or a number above 0")


@dataclass(frozen=True, kw_only=True)
class AppearanceConfig:
    """A colour correction for each training image, shared by all blocks that see it (docs/appearance.md)."""

    model: Literal["none", "affine", "bilateral"] = "none"
    """Correction that the loss applies to a render before comparing it with the training image: none [MGS]; ``affine``:
    an affine map of the colours (3x4); ``bilateral``: one that varies over the image and with brightness (a grid of
    16x16x8 such maps). Held-out views are rendered without a correction."""
    lr: tuple[float, float] = (0.01, 0.001)
    """Learning rates of the corrections; they decay like the pairs of ``optim`` [3DGS: exposure learning rates]."""
    smooth: float = 0.0
    """Weight of a loss term that keeps the corrections of images taken one after the other similar; needs images with
    capture times [ours]. 0: off."""

    def __post_init__(self) -> None:
        check(self.smooth >= 0, "appearance.smooth", self.smooth, "at least 0")
