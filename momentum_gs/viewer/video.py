"""Renders a camera path into a video file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2

from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info, progress
from momentum_gs.viewer.camera_path import KeyFrame, along
from momentum_gs.viewer.image_renderer import COLOR, ERRORS, range_of, render
from momentum_gs.viewer.models import Models

_CODECS = {".mp4": "mp4v", ".webm": "VP80", ".avi": "MJPG"}
"""Suffix -> codec that every build of OpenCV can write; browsers play .webm."""


def write_video(
    models: Models, label: str, frames: Sequence[KeyFrame], file: Path, *, size: tuple[int, int] = (1280, 720),
    fps: float = 30.0, seconds: float = 10.0, mode: str = COLOR,
) -> int:  # fmt: skip
    """Renders the first run of ``models`` along a path; returns the number of images.

    Args:
        models: Gives the model.
        label: Its state.
        frames: Key frames, at least two.
        file: Video to write; its suffix decides the format.
        size: Width and height in pixels.
        fps: Images per second.
        seconds: Duration.
        mode: One of ``image_renderer.MODES``.

    Raises:
        UserError: for an unknown suffix, or where OpenCV cannot write the format.
    """
    codec = _CODECS.get(file.suffix.lower())
    if codec is None:
        raise UserError(f"{file}: suffix {file.suffix!r}, expected {', '.join(_CODECS)}; rename it with -o")
    run, shown = models.runs[0], models.get(0, label)
    background = models.background(0)
    limits = None
    if mode in ERRORS:
        *_, errors = progress(models.measure_errors(0, label, mode), desc="errors")
        shown, limits = replace(shown, error=errors.mean), range_of(errors.mean)
        info(f"video: mean error in {errors.views} views, of a range of 1: blue {limits[0]:.3f}, red {limits[1]:.3f}")
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*codec), fps, size)
    if not writer.isOpened():
        raise UserError(f"{file}: OpenCV cannot write {codec} video here; try another suffix ({', '.join(_CODECS)})")
    poses = along(frames, max(2, round(fps * seconds)))
    try:
        with progress(len(poses), "video") as bar:
            for pose in poses:
                camera = run.upright.camera(pose.wxyz, pose.position, pose.fov, *size)
                image = render(shown, camera, background, mode, run.block_psnr, limits)
                writer.write(cv2.cvtColor(image.rgb, cv2.COLOR_RGB2BGR))
                bar.update()
    finally:
        writer.release()
    return len(poses)
