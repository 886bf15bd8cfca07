"""Facts about images that are read on demand: pixels, the bound on memory, threads, errors, files that block."""

import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from scene_files import camera, points, random_image, write_image, write_scene

from momentum_gs.config.schema import SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.data import views as views_module
from momentum_gs.data.colmap.model import write_model
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.data.views import Views

NAMES = [f"{i}.png" for i in range(8)]
SIZE = 3 * 40 * 30
"""Bytes of one image."""
CPU = torch.device("cpu")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return load_scene(SceneConfig(path=str(write_scene(tmp_path, NAMES)), resolution=1.0, test_every=4))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded, in order."""
    names: list[str] = []
    real = views_module.read_image

    def read(path: Path, *rest: object) -> torch.Tensor:
        names.append(path.name)
        return real(path, *rest)

    monkeypatch.setattr(views_module, "read_image", read)
    return names


# Bound on the waits between threads, so that a failing test ends; it is not a measurement.
HANGS_SECONDS = 600.0


def until(condition: Callable[[], bool]) -> None:
    """Waits for background threads."""
    while not condition():
        time.sleep(0.001)


def wait_for_prefetch(views: Views) -> None:
    until(lambda: not views._pending)


def test_pixels_are_those_of_the_file_over_255(scene: Scene) -> None:
    with Views(scene, 10 * SIZE, CPU) as views:
        for name in NAMES:
            wanted = torch.from_numpy(random_image(name, 40, 30)[..., ::-1].transpose(2, 0, 1).copy()).float() / 255
            assert torch.equal(views.image(name), wanted)
            assert torch.equal(views.image(name), wanted)  # now from the cache


def test_the_caller_may_change_the_image_it_got(scene: Scene) -> None:
    with Views(scene, 10 * SIZE, CPU) as views:
        first = views.image("1.png").clone()
        views.image("1.png").zero_()
        assert torch.equal(views.image("1.png"), first)


def test_held_out_views_are_served_too(scene: Scene) -> None:
    with Views(scene, 0, CPU) as views:
        assert views.image(scene.test[0].name).shape == (3, 30, 40)


def test_an_unknown_name_is_a_key_error(scene: Scene) -> None:
    with Views(scene, 10 * SIZE, CPU) as views:
        for ask in (views.image, lambda name: views.prefetch([name])):
            with pytest.raises(KeyError, match="unknown"):
                ask("unknown.png")


def test_cached_images_are_not_decoded_again(scene: Scene, decoded: list[str]) -> None:
    with Views(scene, 2 * SIZE, CPU) as views:
        for name in ("0.png", "1.png", "0.png", "2.png", "0.png", "1.png"):
            views.image(name)
    # 2 replaces 1, which was used longest ago; so 1 is decoded twice.
    assert decoded == ["0.png", "1.png", "2.png", "1.png"]


def test_the_white_background_reaches_the_decoder(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def read(path: Path, width: int, height: int, white: bool) -> torch.Tensor:
        seen.append(white)
        return torch.zeros(3, height, width, dtype=torch.uint8)

    monkeypatch.setattr(views_module, "read_image", read)
    for white in (False, True):
        with Views(Scene(**{**vars(scene), "white_background": white}), 0, CPU) as views:
            views.image("1.png")
    assert seen == [False, True]


# The bound.


@pytest.mark.parametrize("bound", [0, 1, SIZE - 1, SIZE, 3 * SIZE + 1, 100 * SIZE])
def test_the_bound_holds_at_all_times(scene: Scene, bound: int) -> None:
    largest = 0
    with Views(scene, bound, CPU) as views:
        for step in range(60):
            views.prefetch([NAMES[(3 * step + i) % 8] for i in range(5)])
            largest = max(largest, views.held_bytes)
            assert views.image(NAMES[3 * step % 8]).shape == (3, 30, 40)
            largest = max(largest, views.held_bytes)
        wait_for_prefetch(views)
        # The count is that of the cached pixels.
        assert views.held_bytes == sum(pixels.numel() for pixels in views._cache.values())
    assert largest <= bound
    assert largest == min(8, bound // SIZE) * SIZE  # and memory below the bound is used


def test_a_prefetch_stops_at_the_bound_and_keeps_the_images_it_asks_for(scene: Scene, decoded: list[str]) -> None:
    with Views(scene, 3 * SIZE, CPU) as views:
        views.image("7.png")
        views.image("2.png")
        views.prefetch(["0.png", "1.png", "2.png", "3.png", "4.png"])
        wait_for_prefetch(views)
        # 7 is replaced by one of them; 2 is among them and stays; the third place is for the next in order.
        assert set(views._cache) == {"0.png", "1.png", "2.png"}
        assert sorted(decoded) == ["0.png", "1.png", "2.png", "7.png"]


def test_prefetched_views_are_not_decoded_by_the_caller(scene: Scene, decoded: list[str]) -> None:
    with Views(scene, 8 * SIZE, CPU) as views:
        views.prefetch(NAMES + NAMES)
        for name in NAMES:
            views.image(name)
    assert sorted(decoded) == NAMES


def test_asking_during_a_decode_waits_for_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    count = []
    real = views_module.read_image

    def read(*arguments: object) -> torch.Tensor:
        count.append(1)
        begun.set()
        assert go.wait(HANGS_SECONDS)
        return real(*arguments)

    monkeypatch.setattr(views_module, "read_image", read)
    with Views(scene, 8 * SIZE, CPU) as views, ThreadPoolExecutor(1) as caller:
        views.prefetch(["1.png"])
        assert begun.wait(HANGS_SECONDS)
        answer = caller.submit(views.image, "1.png")
        until(answer.running)
        assert not answer.done()
        go.set()
        assert answer.result(HANGS_SECONDS).shape == (3, 30, 40)
    assert len(count) == 1


@pytest.mark.slow
def test_many_threads_get_the_right_pixels(scene: Scene) -> None:
    """A cache for three of eight images, which eight threads ask for at once."""
    with Views(scene, 10 * SIZE, CPU) as views:
        wanted = {name: views.image(name) for name in NAMES}

    def ask(offset: int) -> bool:
        for step in range(50):
            views.prefetch([NAMES[(offset + step + 1) % 8]])
            name = NAMES[(offset + step) % 8]
            if not torch.equal(views.image(name), wanted[name]) or views.held_bytes > 3 * SIZE:
                return False
        return True

    with Views(scene, 3 * SIZE, CPU) as views, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(8)))


# Errors.


@pytest.mark.parametrize("prefetched", [False, True])
@pytest.mark.parametrize("damage", ["deleted", "empty", "cut"])
def test_an_unreadable_image_is_named_in_the_caller(scene: Scene, damage: str, prefetched: bool) -> None:
    path = scene.image_paths["3.png"]
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:500])
    with Views(scene, 8 * SIZE, CPU) as views:
        if prefetched:
            views.prefetch(["2.png", "3.png", "5.png"])
            wait_for_prefetch(views)
        with pytest.raises(UserError, match=r"3\.png"):
            views.image("3.png")
        # The other images can still be read, and the bytes reserved for the bad one are free again.
        assert views.image("2.png").shape == views.image("5.png").shape == (3, 30, 40)
        assert views.held_bytes == 2 * SIZE


def test_a_file_that_comes_back_is_read(scene: Scene) -> None:
    path = scene.image_paths["3.png"]
    data = path.read_bytes()
    path.unlink()
    with Views(scene, 8 * SIZE, CPU) as views:
        views.prefetch(["3.png"])
        wait_for_prefetch(views)
        path.write_bytes(data)
        assert views.image("3.png").shape == (3, 30, 40)


def test_closing_drops_pending_images_and_frees_all(scene: Scene) -> None:
    views = Views(scene, 8 * SIZE, CPU)
    views.prefetch(NAMES)
    views.close()
    assert views.held_bytes == 0
    views.close()  # a second time is allowed: an error may have closed it before the with-block does
    with pytest.raises(RuntimeError):
        views.prefetch(["1.png"])
    assert views.held_bytes == 0


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted through /proc")
def test_no_file_stays_open(scene: Scene) -> None:
    with Views(scene, 4 * SIZE, CPU) as views:
        for name in NAMES:
            views.prefetch(NAMES)
            views.image(name)
        wait_for_prefetch(views)
        opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not [path for path in opened if path.startswith(str(scene.path))]


def test_a_bad_image_is_skipped_named_once_and_read_once_it_is_good(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    path = scene.image_paths["3.png"]
    data = path.read_bytes()
    path.unlink()
    with Views(scene, 0, CPU, skip_bad=True) as views:
        assert views.target_or_skip("3.png") is None
        path.write_bytes(data[:500])
        assert views.target_or_skip("3.png") is None
        assert list(views.bad) == ["3.png"] and "500 bytes" in views.bad["3.png"]
        path.write_bytes(data)
        good = views.target_or_skip("3.png")
        assert good is not None and torch.equal(good.image, views.image("3.png"))
        assert not views.bad
    assert capsys.readouterr().err.count("3.png") == 1


def test_by_default_a_bad_image_is_not_skipped(scene: Scene) -> None:
    scene.image_paths["3.png"].unlink()
    with Views(scene, 8 * SIZE, CPU) as views, pytest.raises(UserError, match=r"3\.png"):
        views.target_or_skip("3.png")


@pytest.mark.parametrize("error", [MemoryError, SystemExit, KeyboardInterrupt])
def test_what_ends_a_decode_reaches_the_caller(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Whatever the exception is. The thread goes on: there are more failures here than threads."""
    begun, go = threading.Event(), threading.Event()
    real = views_module.read_image

    def read(path: Path, *rest: object) -> torch.Tensor:
        if path.name == "7.png":
            return real(path, *rest)
        begun.set()
        assert go.wait(HANGS_SECONDS)
        raise error

    monkeypatch.setattr(views_module, "read_image", read)
    with Views(scene, 8 * SIZE, CPU) as views, ThreadPoolExecutor(1) as caller:
        views.prefetch(NAMES)
        assert begun.wait(HANGS_SECONDS)
        answer = caller.submit(views.image, NAMES[0])
        until(answer.running)
        go.set()
        with pytest.raises(error):
            answer.result(HANGS_SECONDS)
        wait_for_prefetch(views)
        assert set(views._cache) == {"7.png"}
        assert views.held_bytes == SIZE


def test_closing_ends_the_wait_for_a_decode_not_begun(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    go, reading = threading.Event(), threading.Event()
    real = views_module.read_image

    def read(*arguments: object) -> torch.Tensor:
        reading.set()
        assert go.wait(HANGS_SECONDS)
        return real(*arguments)

    monkeypatch.setattr(views_module, "read_image", read)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # so that the second waits for the first
    with Views(scene, 8 * SIZE, CPU) as views, ThreadPoolExecutor(2) as callers:
        views.prefetch(["1.png", "2.png"])
        begun, waiting = (callers.submit(views.image, name) for name in ("1.png", "2.png"))
        until(lambda: reading.is_set() and begun.running() and waiting.running())
        closing = threading.Thread(target=views.close)
        closing.start()
        with pytest.raises(RuntimeError, match=r"closed while waiting for 2\.png"):
            waiting.result(HANGS_SECONDS)
        go.set()
        assert begun.result(HANGS_SECONDS).shape == (3, 30, 40)
        closing.join(HANGS_SECONDS)
        assert views.held_bytes == 0


# Files whose reads block: a FIFO without a writer, like a file on a network folder whose server is gone.

NO_FIFO = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")


class HandTimer:
    """Replaces ``threading.Timer``: the test decides when the time is up."""

    made: list["HandTimer"]

    def __init__(self, interval: float, function: Callable[..., None], args: list[str]) -> None:
        self.interval, self._function, self._args = interval, function, args
        self.daemon = self.started = self.cancelled = False
        self.made.append(self)

    def start(self) -> None:
        self.started = True

    def cancel(self) -> None:
        self.cancelled = True

    def time_is_up(self) -> None:
        assert self.started and not self.cancelled
        self._function(*self._args)


@NO_FIFO
@pytest.mark.parametrize("prefetched", [False, True])
def test_a_slow_image_is_named_while_it_is_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prefetched: bool
) -> None:
    timers = HandTimer.made = []
    monkeypatch.setattr(views_module.threading, "Timer", HandTimer)
    path = scene.image_paths["3.png"]
    data = path.read_bytes()
    path.unlink()
    os.mkfifo(path)
    with Views(scene, SIZE if prefetched else 0, CPU) as views, ThreadPoolExecutor(1) as caller:
        if prefetched:
            views.prefetch(["3.png"])
        for asked in range(1, 2 if prefetched else 3):
            answer = caller.submit(views.image, "3.png")
            until(lambda asked=asked: len(timers) == asked and timers[-1].started)
            assert not answer.done()
            timers[-1].time_is_up()
            path.write_bytes(data)
            assert answer.result(HANGS_SECONDS).shape == (3, 30, 40)
            assert timers[-1].cancelled
    assert {timer.interval for timer in timers} == {views_module.SLOW_SECONDS}
    printed = capsys.readouterr().err
    assert re.search(r"waiting for image .*3\.png \(40x30 in training\) for more than 10 s", printed)
    assert printed.count("3.png") == 1, "one warning for each image"


def test_an_image_that_is_read_in_time_is_not_called_slow(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    with Views(scene, 0, CPU) as views:
        views.image("3.png")
        assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)
                    and not thread.finished.is_set()]  # fmt: skip
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@NO_FIFO
def test_a_read_that_blocks_stops_neither_close_nor_exit(tmp_path: Path) -> None:
    """In a process of its own, which must end although one of its threads never does."""
    root = write_scene(tmp_path, NAMES)
    program = f"""
import os, torch
from momentum_gs.config.schema import SceneConfig
from momentum_gs.data import views
from momentum_gs.data.scene import load_scene
scene = load_scene(SceneConfig(path={str(root)!r}, resolution=1.0))
scene.image_paths["3.png"].unlink()
os.mkfifo(scene.image_paths["3.png"])
views.SLOW_SECONDS = 0.1
with views.Views(scene, 1 << 20, torch.device("cpu")) as opened:
    opened.prefetch(["3.png"])
    raise SystemExit(7)
"""
    ended = subprocess.run([sys.executable, "-c", program])
    assert ended.returncode == 7


# Many images.


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="memory is measured through /proc")
def test_four_thousand_images_leave_no_memory_or_files_in_use(tmp_path: Path) -> None:
    """Mixed sizes in random order, with a bound that holds few of them."""
    kinds = [(f"kind{i}{suffix}", 64 + 16 * i, 48 + 20 * (i * 5 % 7)) for i in range(7) for suffix in (".jpg", ".png")]
    for name, width, height in kinds:
        write_image(tmp_path / "kinds" / name, random_image(name, width, height))
    cameras = []
    (tmp_path / "images").mkdir()
    for i in range(4000):
        kind, width, height = kinds[i % len(kinds)]
        cameras.append(camera(f"{i:05d}{Path(kind).suffix}", width, height))
        os.link(tmp_path / "kinds" / kind, tmp_path / "images" / cameras[-1].name)
    write_model(tmp_path / "sparse" / "0", cameras, points())
    scene = load_scene(SceneConfig(path=str(tmp_path), resolution=1.0, test_every=0))
    names = [view.name for view in scene.train]
    random.Random(0).shuffle(names)

    def footprint() -> tuple[int, int]:
        wait_for_prefetch(views)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE"), len(os.listdir("/proc/self/fd"))

    with Views(scene, 20 * 3 * 160 * 168, CPU) as views:
        for i, name in enumerate(names):
            if i == 1000:
                before, files = footprint()
            views.prefetch(names[i + 1 : i + 5])
            views.image(name)
        after, files_after = footprint()
    assert files_after == files
    # The smallest image has 9 KB of pixels: keeping those of 3000 would take 28 MB. The allocator takes less than 1 MB.
    assert after - before < 8 * 2**20
