"""Sends one browser the images of its camera: coarse ones while it moves, the full one once it rests."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import viser

from momentum_gs.core.types import Camera
from momentum_gs.viewer.image_renderer import NOTHING, Image
from momentum_gs.viewer.upright import Upright

MOVING_SECONDS = 0.08
"""Time that an image may take while the camera moves: a dozen per second still look like motion."""
REST_SECONDS = 0.2
"""Without a motion for this long, the camera rests."""
FULL_WIDTH = 1600
"""Most pixels in a row of a full image, as in training with resolution -1."""
_LEAST_WIDTH = 96
_USEFUL_WIDTH = 160
"""A coarse image of fewer pixels in a row shows too little to steer by."""
_JPEG_MOVING, _JPEG_FULL = 70, 92
_FAR = 160.0
"""Largest depth that a browser takes with an image, viewer units (viser: 24 bits of 1e-5)."""


@dataclass(frozen=True)
class View:
    """What a browser looks at."""

    wxyz: np.ndarray
    position: np.ndarray
    fov: float
    width: int
    height: int


class ImageStream:
    """A thread that renders for one browser. ``draw`` is called from it alone."""

    def __init__(
        self, client: viser.ClientHandle, upright: Callable[[], Upright], draw: Callable[[Camera], Image | None]
    ) -> None:
        """
        Args:
            client: The browser.
            upright: Gives its coordinates and those of training.
            draw: Camera in training coordinates -> image; None: nothing is to be shown.
        """
        self._client, self._upright, self._draw = client, upright, draw
        self._changed = threading.Condition()
        self._view: View | None = None
        self._moved_at = 0.0
        self._dirty = False
        self._due = False
        self._closed = False
        self._seconds_per_pixel = 1e-6
        self.sent = 0
        """Images sent so far."""
        self._thread = threading.Thread(target=self._work, name=f"images-{client.client_id}", daemon=True)
        self._thread.start()

    def look(self, camera: viser.CameraHandle) -> None:
        """The camera of the browser has moved."""
        view = View(
            np.array(camera.wxyz), np.array(camera.position), float(camera.fov), int(camera.image_width),
            int(camera.image_height),
        )  # fmt: skip
        with self._changed:
            self._view, self._moved_at, self._dirty = view, time.monotonic(), True
            self._changed.notify()

    @property
    def is_too_slow(self) -> bool:
        """Whether this machine cannot render useful images while the camera moves."""
        if self._view is None or self.sent < 2:  # The first image also loads and allocates.
            return False
        height = _USEFUL_WIDTH * self._view.height / max(1, self._view.width)
        return self._seconds_per_pixel * _USEFUL_WIDTH * height > MOVING_SECONDS

    def refresh(self) -> None:
        """What is shown has changed; the camera has not."""
        with self._changed:
            self._dirty = True
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread, after the image that it renders now."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            view, full = job
            camera = self._camera(view, full)
            begun = time.perf_counter()
            try:
                image = self._draw(camera)
            except Exception as error:  # Whatever it is (out of memory, say), the next view may do.
                self._client.add_notification("This view cannot be rendered", f"{type(error).__name__}: {error}")
                continue
            if self._closed:
                return
            if image is None:
                self._client.scene.set_background_image(None)
            else:
                self._send(image, full)
            pixels = camera.width * camera.height
            self._seconds_per_pixel = 0.5 * self._seconds_per_pixel + 0.5 * (time.perf_counter() - begun) / pixels

    def _next(self) -> tuple[View, bool] | None:
        """Waits for something to render: (view, whether the camera rests); None once the stream is closed."""
        with self._changed:
            while not self._closed:
                if self._view is None or self._view.width < 2 or self._view.height < 2:
                    self._changed.wait()
                    continue
                rests_in = self._moved_at + REST_SECONDS - time.monotonic()
                if self._dirty:
                    full = rests_in <= 0 or self._is_fast(self._view)
                    # A coarse image is followed by the full one.
                    self._dirty = False
                    self._due = not full
                    return self._view, full
                if self._due and rests_in <= 0:
                    self._due = False
                    return self._view, True
                self._changed.wait(rests_in if self._due else None)
        return None

    def _is_fast(self, view: View) -> bool:
        width, height = _full_size(view)
        return self._seconds_per_pixel * width * height <= MOVING_SECONDS

    def _camera(self, view: View, full: bool) -> Camera:
        width, height = _full_size(view)
        if not full:
            share = min(1.0, (MOVING_SECONDS / self._seconds_per_pixel / (width * height)) ** 0.5)
            scaled = max(_LEAST_WIDTH, width * share)
            width, height = round(scaled), max(1, round(scaled * height / width))
        return self._upright().camera(view.wxyz, view.position, view.fov, width, height)

    def _send(self, image: Image, full: bool) -> None:
        depth = np.where(image.depth >= NOTHING, _FAR, image.depth / self._upright().frame.unit)
        self._client.scene.set_background_image(
            image.rgb, "jpeg", jpeg_quality=_JPEG_FULL if full else _JPEG_MOVING,
            depth=np.minimum(depth, _FAR).astype(np.float32),
        )  # fmt: skip
        self.sent += 1


def _full_size(view: View) -> tuple[int, int]:
    share = min(1.0, FULL_WIDTH / view.width)
    return max(1, round(view.width * share)), max(1, round(view.height * share))
