"""Images on demand: decoded ahead of time in background threads, cached as 8 bits up to a memory limit, and sent to a
GPU one image ahead."""

import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from queue import SimpleQueue
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.device import Sender, Sent, to_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import warn
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.core.window import Window
from momentum_gs.data.images import read_image
from momentum_gs.data.masks import read_mask
from momentum_gs.data.priors import Priors
from momentum_gs.data.scene import Scene

# Decoding one image takes as long as several training steps on a GPU, so a few threads keep up; more only use memory.
MAX_THREADS = 8
# A core decodes images of 100 megapixels in 2 to 4 s; what takes longer than this is probably not readable at all.
SLOW_SECONDS = 10.0


class Views:
    """The images of a scene at training resolution. A context manager; safe to use from several threads.

    The least recently used images are evicted first. Invariant: the bytes that are cached or reserved for running
    decodes never exceed ``cache_bytes``. In addition, each decode briefly holds one image at full size. No file stays
    open.
    """

    def __init__(
        self,
        scene: Scene,
        cache_bytes: int,
        device: torch.device,
        *,
        skip_bad: bool = False,
        priors: Priors | None = None,
    ) -> None:
        """Starts the decoding threads.

        Args:
            cache_bytes: Upper bound on cached bytes of host memory; 0: nothing is cached.
            device: Device of the returned images.
            skip_bad: Whether ``target_or_skip`` skips images that cannot be read (``scene.bad_images``).
            priors: Maps that images come with (``TargetImage``), read and cached with their pixels.
        """
        self._priors = priors or Priors({}, {}, inverse=True)
        self._scene, self._bound, self._device, self._skip_bad = scene, cache_bytes, device, skip_bad
        self.bad: dict[str, str] = {}
        """Name -> reason for the images that were skipped; an image that can be read later is removed."""
        self._sizes = {camera.name: (camera.width, camera.height) for camera in (*scene.train, *scene.test)}
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._pending: dict[str, Future[Tensor]] = {}
        self._slow: set[str] = set()
        self._held = 0
        self._lock = threading.Lock()
        self._sender = Sender(device)
        self._coming: deque[str] = deque()
        self._sent: tuple[str, Sent] | None = None
        # Not an executor: at exit, the interpreter would wait for its threads, which a dead network folder may block.
        self._todo: SimpleQueue[tuple[str, Future[Tensor]] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"views-{i}", daemon=True)
            for i in range(min(MAX_THREADS, os.cpu_count() or 1))
        ]
        self._closed = False
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Views":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def held_bytes(self) -> int:
        """Bytes that are cached or reserved for running decodes."""
        return self._held

    def image(self, name: str) -> Float[Tensor, "3 h w"]:
        """``target`` without the mask; errors likewise."""
        return self.target(name).image

    def target(self, name: str, window: Window | None = None) -> TargetImage:
        """One image, RGB in [0, 1], and its mask and priors, if it has them; new tensors on the device.

        With a window, its part of them (``Window.target``); the rest is not converted.

        Warns once about an image that takes longer than ``SLOW_SECONDS``.

        Raises:
            UserError: the file is missing or cannot be decoded, now or when it was prefetched.
            KeyError: for a name that is not in the scene.
            RuntimeError: the views were closed during the wait.
        """
        with self._lock:
            pixels, pending = self._cache.get(name), self._pending.get(name)
            if pixels is not None:
                self._cache.move_to_end(name)
            sent, self._sent = self._sent, None
        if sent is not None and sent[0] == name:
            pixels = sent[1].take()
        else:
            if pixels is None:
                with self._watched(name):
                    pixels = self._decode_and_keep(name) if pending is None else _result(pending, name)
            pixels = to_device(pixels, self._device)
        self._send_what_follows(name)
        colors, mask = pixels[:3], pixels[3:4] if name in self._scene.mask_paths else None
        depth, normal = self._priors.take(name, pixels[3 if mask is None else 4 :])

        def part(whole: Tensor) -> Tensor:
            return whole if window is None else window.crop(whole)

        target = TargetImage(
            part(colors).float().div_(255),
            None if mask is None else part(mask).float(),
            depth_prior=None if depth is None else part(depth),
            normal_prior=None if normal is None else part(normal),
        )
        return target if window is None else window.weigh(target, None if mask is None else mask.sum().float())

    def target_or_skip(self, name: str, window: Window | None = None) -> TargetImage | None:
        """``target``; with ``skip_bad``, None for an image that cannot be read, which gets one warning and an entry in
        ``bad``.

        The file is tried again each time, so that the result depends on the file, not on when a process was started.
        """
        if not self._skip_bad:
            return self.target(name, window)
        try:
            found = self.target(name, window)
        except UserError as error:
            if name not in self.bad:
                warn(f"{error} (skipped: scene.bad_images=skip)")
            self.bad[name] = str(error)
            return None
        self.bad.pop(name, None)
        return found

    def counts(self, camera: Camera) -> Float[Tensor, "1 h w"] | None:
        """The mask of a camera's image, 1 where a pixel counts; None, all count, without a mask or a readable image."""
        if camera.name not in self._scene.mask_paths:
            return None
        target = self.target_or_skip(camera.name)
        return None if target is None else target.mask

    def prefetch(self, names: Sequence[str]) -> None:
        """Starts to decode images that are not cached, in the given order, as far as memory allows; returns at once.

        Cached images other than ``names`` are evicted to make room. Errors are raised by ``target``.

        Raises:
            KeyError: for a name that is not in the scene.
            RuntimeError: after ``close``.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("views: prefetch after close")
            self._coming = deque(names)
            for name in names:
                if name in self._cache:
                    self._cache.move_to_end(name)
                elif name not in self._pending:
                    if not self._make_room(self._bytes(name), spare=names):
                        break
                    # Its thread cannot finish before this lock is free.
                    self._pending[name] = Future()
                    self._held += self._bytes(name)
                    self._todo.put((name, self._pending[name]))

    def close(self) -> None:
        """Cancels waiting decodes, waits for running ones, and empties the cache. ``prefetch`` is an error after this.

        Does not wait for decodes that take longer than ``SLOW_SECONDS``.
        """
        with self._lock:
            self._closed = True
            for pending in self._pending.values():
                pending.cancel()
        end = time.monotonic() + SLOW_SECONDS
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._lock:
            self._cache.clear()
            self._pending.clear()
            self._sent, self._held = None, 0

    def _send_what_follows(self, name: str) -> None:
        """Starts to copy the image that was prefetched to follow on this one, if it is decoded; on a GPU."""
        with self._lock:
            if not self._sender.ahead or name not in self._coming:
                return
            while self._coming.popleft() != name:
                pass
            following = self._coming[0] if self._coming else None
            pixels = None if following is None else self._cache.get(following)
        if following is not None and pixels is not None:
            self._sent = following, self._sender.send(pixels)

    def _work(self) -> None:
        """Decodes prefetched images in a thread until ``close``; exceptions are passed to the waiting caller."""
        while (task := self._todo.get()) is not None:
            name, future = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._fetch(name))
                except BaseException as error:
                    future.set_exception(error)

    def _fetch(self, name: str) -> Tensor:
        """Decodes a prefetched image, whose bytes are reserved already, into the cache."""
        try:
            pixels = self._decode(name)
        except BaseException:
            with self._lock:
                if self._pending.pop(name, None) is not None:
                    self._held -= self._bytes(name)
            raise
        with self._lock:
            # It is no longer pending if the views were closed meanwhile.
            if self._pending.pop(name, None) is not None:
                self._cache[name] = pixels
        return pixels

    def _decode_and_keep(self, name: str) -> Tensor:
        """Decodes in the caller's thread; caches the image if there is room besides the reserved bytes."""
        pixels = self._decode(name)
        with self._lock:
            # Another thread may have decoded the same image meanwhile.
            if name not in self._cache and name not in self._pending and self._make_room(self._bytes(name)):
                self._held += self._bytes(name)
                self._cache[name] = pixels
        return pixels

    def _decode(self, name: str) -> Tensor:
        """[C,H,W]: three channels, then the mask, then the bytes of priors, if there are any."""
        width, height = self._sizes[name]
        pixels = read_image(self._scene.image_paths[name], width, height, self._scene.white_background)
        mask = self._scene.mask_paths.get(name)
        if mask is not None:
            pixels = torch.cat([pixels, read_mask(mask, width, height)])
        if self._priors.bytes_per_pixel(name):
            pixels = torch.cat([pixels, self._priors.read(name, width, height)])
        return pixels

    @contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        """Warns about a slow image while waiting for it, since the wait may never end."""
        timer = threading.Timer(SLOW_SECONDS, self._tell_slow, [name])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _tell_slow(self, name: str) -> None:
        if name not in self._slow:
            self._slow.add(name)
            width, height = self._sizes[name]
            # The file itself is not touched, since its folder may be what does not respond.
            warn(
                f"data: waiting for image {self._scene.image_paths[name]} ({width}x{height} in training) for more than "
                f"{SLOW_SECONDS:g} s, expected a fraction of a second; check whether its folder responds, copy the "
                "images to a local disk, or make them smaller"
            )

    def _bytes(self, name: str) -> int:
        width, height = self._sizes[name]
        channels = (4 if name in self._scene.mask_paths else 3) + self._priors.bytes_per_pixel(name)
        return channels * width * height

    def _make_room(self, size: int, spare: Collection[str] = ()) -> bool:
        """Evicts the oldest images until ``size`` bytes fit, or none if they cannot fit. The caller holds the lock."""
        leaving, room = [], self._bound - self._held
        for name in self._cache:
            if room >= size:
                break
            if name not in spare:
                leaving.append(name)
                room += self._bytes(name)
        if room < size:
            return False
        for name in leaving:
            del self._cache[name]
            self._held -= self._bytes(name)
        return True


def _result(pending: Future[Tensor], name: str) -> Tensor:
    try:
        return pending.result()
    except CancelledError as error:
        raise RuntimeError(f"views: closed while waiting for {name}") from error
