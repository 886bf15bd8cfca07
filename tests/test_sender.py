"""Images that are copied to a GPU ahead of the step that needs them: in which order, on which stream."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from scene_files import write_scene
from torch import Tensor

from momentum_gs.config.schema import SceneConfig
from momentum_gs.core import device as device_module
from momentum_gs.core.device import Sender, pick_device
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.data.views import Views

NAMES = [f"{i}.png" for i in range(6)]
CPU = torch.device("cpu")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return load_scene(SceneConfig(path=str(write_scene(tmp_path, NAMES)), resolution=1.0, test_every=0))


class Stream:
    """A stream of a GPU that is not there: says what is done with it."""

    def __init__(self, said: list[str], name: str) -> None:
        self.said, self.name = said, name

    def record_event(self) -> "Event":
        self.said.append(f"event on {self.name}")
        return Event(self)


class Event:
    def __init__(self, of: Stream) -> None:
        self.of = of

    def wait(self, stream: Stream) -> None:
        self.of.said.append(f"{stream.name} waits for {self.of.name}")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What streams, events and pinned memory are asked, on a device that is taken for a GPU."""
    said: list[str] = []
    real_to = Tensor.to

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        said.append(f"on {stream.name}")
        yield
        said.append(f"off {stream.name}")

    def pin(tensor: Tensor) -> Tensor:
        said.append("pin")
        return tensor.clone()

    def to(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
        if kwargs.get("non_blocking"):
            said.append("copy")
        return real_to(tensor, *args, **kwargs)

    monkeypatch.setattr(device_module, "pins_memory", lambda device: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(said, "side"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(said, "main"))
    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: said.append(f"kept for {stream.name}"))
    return said


SEND = ["on side", "pin", "copy", "event on side", "off side"]
TAKE = ["main waits for side", "kept for main"]


def test_a_copy_is_on_its_own_stream_and_its_user_waits_for_it(said: list[str]) -> None:
    tensor = torch.arange(5)
    sent = Sender(CPU).send(tensor)
    assert said == SEND
    tensor.zero_()
    assert sent.take().tolist() == [0, 1, 2, 3, 4] and said == SEND + TAKE


def test_on_a_cpu_nothing_is_sent_ahead(scene: Scene) -> None:
    assert not Sender(CPU).ahead
    tensor = torch.arange(5)
    assert Sender(CPU).send(tensor).take() is tensor
    with Views(scene, 10**6, CPU) as views:
        views.prefetch(NAMES)
        views.target("0.png")
        assert views._sent is None


def decode_all(views: Views) -> None:
    for name in NAMES:
        views.prefetch([name])
        views.image(name)
    views._coming.clear()
    views._sent = None


def test_the_next_image_is_sent_while_one_is_used(scene: Scene, said: list[str]) -> None:
    with Views(scene, 10**6, CPU) as plain:
        expected = {name: plain.image(name) for name in NAMES}
    with Views(scene, 10**6, CPU) as views:
        decode_all(views)
        said.clear()
        for step in range(5):
            views.prefetch(NAMES[step:])
            assert torch.equal(views.image(NAMES[step]), expected[NAMES[step]])
            first = ["pin", "copy"] if step == 0 else []  # nothing was sent before it: on the stream that uses it
            assert said == first + TAKE * (step > 0) + SEND
            said.clear()
        # The last one of what is known is taken, and nothing follows.
        assert torch.equal(views.image(NAMES[5]), expected[NAMES[5]]) and said == TAKE


def test_an_image_that_is_not_the_next_one_after_all_is_read_as_ever(scene: Scene, said: list[str]) -> None:
    with Views(scene, 10**6, CPU) as views:
        decode_all(views)
        expected = views.image("4.png")
        views.prefetch(["0.png", "1.png", "2.png"])
        views.image("0.png")
        said.clear()
        assert torch.equal(views.image("4.png"), expected) and said == ["pin", "copy"]  # the sent one is let go
        assert torch.equal(views.image("1.png"), views.image("1.png"))


@pytest.mark.gpu
def test_images_arrive_whole_while_the_gpu_is_busy(scene: Scene) -> None:
    gpu = pick_device("cuda")
    with Views(scene, 10**6, CPU) as plain, Views(scene, 10**6, gpu) as views:
        expected = {name: plain.image(name) for name in NAMES}
        work = torch.rand(2048, 2048, device=gpu)
        decode_all(views)
        for turn in range(50):
            views.prefetch([NAMES[(turn + i) % 6] for i in range(4)])
            image = views.image(NAMES[turn % 6])
            for _ in range(5):
                work = work @ work / 2048
            assert torch.equal(image.cpu(), expected[NAMES[turn % 6]])
