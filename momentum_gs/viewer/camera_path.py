"""Paths of a camera: from key frames, around a scene, or along its training cameras."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.viewer.overview import overview
from momentum_gs.viewer.run import ViewerRun
from momentum_gs.viewer.upright import quaternion, vertical_fov

PATH_FILE = "camera_path.json"
_ORBIT_FRAMES = 8
"""Key frames of an orbit; between them, the spline is round to a thousandth of the radius."""
_FLIGHT_FRAMES = 12
"""Most key frames of a flight along the training cameras."""
_FOV = 0.9


@dataclass(frozen=True)
class KeyFrame:
    """One pose of a path, viewer coordinates."""

    position: tuple[float, float, float]
    wxyz: tuple[float, float, float, float]
    """Camera to world."""
    fov: float
    """Vertical opening angle, radians."""


def save_path(file: Path, frames: Sequence[KeyFrame]) -> None:
    """Writes key frames as JSON, atomically."""
    with replacing(file) as part:
        part.write_text(json.dumps({"key_frames": [asdict(frame) for frame in frames]}, indent=1))


def load_path(file: Path) -> list[KeyFrame]:
    """Reads what ``save_path`` wrote. Raises UserError for a file that is missing or holds no two key frames."""
    try:
        frames = [_key_frame(record) for record in json.loads(file.read_text())["key_frames"]]
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); save a path in 'momentum-gs view'") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: holds no key frames ({error}); save the path again") from error
    if len(frames) < 2:
        raise UserError(f"{file}: {len(frames)} key frames, expected at least 2; add some in 'momentum-gs view'")
    return frames


def _key_frame(record: dict[str, object]) -> KeyFrame:
    x, y, z = (float(v) for v in record["position"])  # type: ignore[attr-defined]
    w, i, j, k = (float(v) for v in record["wxyz"])  # type: ignore[attr-defined]
    fov = float(record["fov"])  # type: ignore[arg-type]
    if not all(math.isfinite(v) for v in (x, y, z, w, i, j, k, fov)) or not 0 < fov < math.pi:
        raise ValueError("a pose is not finite")
    return KeyFrame((x, y, z), (w, i, j, k), fov)


def orbit(run: ViewerRun) -> list[KeyFrame]:
    """Around the middle of a run's scene, at the distance of the viewer's overview; the last key frame is the first."""
    position, middle = overview(run)
    arm = position - middle
    frames = []
    for step in range(_ORBIT_FRAMES + 1):
        angle = 2 * math.pi * step / _ORBIT_FRAMES
        c, s = math.cos(angle), math.sin(angle)
        place = middle + np.array([c * arm[0] - s * arm[1], s * arm[0] + c * arm[1], arm[2]])
        frames.append(_looking(place, middle))
    return frames


def fly_through(run: ViewerRun) -> list[KeyFrame]:
    """Along the training cameras in the order of their names, which is usually that of the capture.

    Raises:
        UserError: the run has fewer than two of them.
    """
    cameras = sorted((c for c in run.cameras if c.name not in run.held_out), key=lambda camera: camera.name)
    if len(cameras) < 2:
        raise UserError(f"{run.path}: {len(cameras)} training views, expected 2 or more; use --orbit or --path")
    chosen = np.linspace(0, len(cameras) - 1, min(len(cameras), _FLIGHT_FRAMES)).round().astype(int)
    poses = [(run.upright.pose(cameras[i]), vertical_fov(cameras[i])) for i in chosen]
    return [KeyFrame(pose.position, pose.wxyz, fov) for pose, fov in poses]


def _looking(place: Float[np.ndarray, "3"], at: Float[np.ndarray, "3"]) -> KeyFrame:
    """Upright, towards a point."""
    forward = (at - place) / max(float(np.linalg.norm(at - place)), 1e-9)
    right = np.cross(forward, np.array([0.0, 0.0, 1.0]))
    right = right / np.linalg.norm(right) if np.linalg.norm(right) > 1e-6 else np.array([1.0, 0.0, 0.0])
    axes = np.stack([right, np.cross(forward, right), forward], axis=1)
    x, y, z = place.tolist()
    return KeyFrame((x, y, z), quaternion(torch.from_numpy(axes)), _FOV)


def along(frames: Sequence[KeyFrame], count: int) -> list[KeyFrame]:
    """``count`` poses at equal steps along a path: positions on a Catmull-Rom spline, turns interpolated between
    neighbours (slerp). A path whose last key frame stands where the first does is closed smoothly."""
    places = np.array([frame.position for frame in frames])
    closed = len(frames) > 2 and np.allclose(places[0], places[-1])
    ends = (places[-2], places[1]) if closed else (2 * places[0] - places[1], 2 * places[-1] - places[-2])
    padded = np.concatenate([ends[0][None], places, ends[1][None]])
    found = []
    for t in np.linspace(0, len(frames) - 1, count):
        i = min(int(t), len(frames) - 2)
        share = float(t - i)
        x, y, z = _catmull_rom(padded[i : i + 4], share).tolist()
        one, other = frames[i], frames[i + 1]
        fov = one.fov + share * (other.fov - one.fov)
        found.append(KeyFrame((x, y, z), slerp(one.wxyz, other.wxyz, share), fov))
    return found


def _catmull_rom(p: Float[np.ndarray, "4 3"], t: float) -> Float[np.ndarray, "3"]:
    place: np.ndarray = 0.5 * (
        2 * p[1] + (p[2] - p[0]) * t + (2 * p[0] - 5 * p[1] + 4 * p[2] - p[3]) * t**2
        + (3 * p[1] - p[0] - 3 * p[2] + p[3]) * t**3
    )  # fmt: skip
    return place


Quaternion = tuple[float, float, float, float]


def slerp(one: Quaternion, other: Quaternion, share: float) -> Quaternion:
    """The turn between two, at constant speed along the shorter way; unit length."""
    a, b = np.array(one), np.array(other)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    b = -b if a @ b < 0 else b
    angle = math.acos(min(1.0, float(a @ b)))
    if angle < 1e-6:
        mixed = a + share * (b - a)
    else:
        mixed = (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)
    w, x, y, z = (mixed / np.linalg.norm(mixed)).tolist()
    return w, x, y, z
