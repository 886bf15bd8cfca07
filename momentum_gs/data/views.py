"""Photographs on demand: decoded ahead in the background, kept as 8 bits under a bound of bytes."""

import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.data.images import read_image
from momentum_gs.data.scene import Scene

# Decoding one photograph takes several steps' time on a GPU, so a few at once keep up; more would only hold memory.
MAX_THREADS = 8


class Views:
    """The photographs of a scene at training resolution. A context manager; safe to use from several threads.

    The least recently used leave first. Invariant: what is cached plus what is promised to decodes under way never
    exceeds ``cache_bytes``. Beyond it each decode holds one photograph at full size for a moment. No file stays open.
    """

    def __init__(self, scene: Scene, cache_bytes: int, device: torch.device) -> None:
        """``cache_bytes`` bounds host memory (0: nothing is kept); ``device`` is where ``image`` delivers."""
        self._scene, self._bound, self._device = scene, cache_bytes, device
        self._sizes = {camera.name: (camera.width, camera.height) for camera in (*scene.train, *scene.test)}
        self._cache: OrderedDict[str, Tensor] = OrderedDict()
        self._pending: dict[str, Future[Tensor]] = {}
        self._held = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="views")

    def __enter__(self) -> "Views":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def held_bytes(self) -> int:
        """Bytes that are cached or promised to decodes under way."""
        return self._held

    def image(self, name: str) -> Float[Tensor, "3 h w"]:
        """One photograph, RGB in [0, 1], a tensor of its own.

        Raises:
            UserError: naming the file where it is missing or cannot be decoded, also if it was when prefetched.
            KeyError: for a name that is not in the scene.
        """
        with self._lock:
            pixels, pending = self._cache.get(name), self._pending.get(name)
            if pixels is not None:
                self._cache.move_to_end(name)
        if pixels is None:
            pixels = self._decode_and_keep(name) if pending is None else pending.result()
        return pixels.to(self._device).float().div_(255)

    def prefetch(self, names: Sequence[str]) -> None:
        """Begins to decode what is not cached, in the given order, as far as the bound goes. Returns at once.

        Cached photographs leave for it, but none of ``names``. Errors wait for ``image`` to meet them.
        """
        with self._lock:
            for name in names:
                if name in self._cache:
                    self._cache.move_to_end(name)
                elif name not in self._pending:
                    if not self._make_room(self._bytes(name), spare=names):
                        break
                    # Its thread cannot finish before this lock is free.
                    self._pending[name] = self._pool.submit(self._fetch, name)
                    self._held += self._bytes(name)

    def close(self) -> None:
        """Waits for decodes under way, drops those not begun, empties the cache. ``prefetch`` is over after this."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._cache.clear()
            self._pending.clear()
            self._held = 0

    def _fetch(self, name: str) -> Tensor:
        """A prefetch in its thread; its bytes are already counted."""
        try:
            pixels = self._decode(name)
        except BaseException:
            with self._lock:
                del self._pending[name]
                self._held -= self._bytes(name)
            raise
        with self._lock:
            del self._pending[name]
            self._cache[name] = pixels
        return pixels

    def _decode_and_keep(self, name: str) -> Tensor:
        """A decode in the caller's thread; kept if there is room beside what is promised."""
        pixels = self._decode(name)
        with self._lock:
            # Another thread may have brought the same photograph meanwhile.
            if name not in self._cache and name not in self._pending and self._make_room(self._bytes(name)):
                self._held += self._bytes(name)
                self._cache[name] = pixels
        return pixels

    def _decode(self, name: str) -> Tensor:
        width, height = self._sizes[name]
        return read_image(self._scene.image_paths[name], width, height, self._scene.white_background)

    def _bytes(self, name: str) -> int:
        width, height = self._sizes[name]
        return 3 * width * height

    def _make_room(self, size: int, spare: Collection[str] = ()) -> bool:
        """Lets the oldest go until ``size`` bytes fit; nothing goes if they cannot fit. Needs the lock."""
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
