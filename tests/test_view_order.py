"""Which view a block trains on at which step, and which one replaces a view whose image is bad."""

from pathlib import Path

import pytest
import torch
from anchor_scene import random_anchors, random_decoder
from scene_files import write_scene

from momentum_gs.config.schema import SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.data.views import Views
from momentum_gs.render.score import score_views
from momentum_gs.train.view_order import ViewOrder

CPU = torch.device("cpu")
NAMES = [f"{i}.png" for i in range(7)]
BAD = ["2.png", "5.png", "6.png"]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return load_scene(SceneConfig(path=str(write_scene(tmp_path, NAMES)), resolution=1.0, test_every=0))


def order_of(scene: Scene, seed: int = 3) -> ViewOrder:
    return ViewOrder([scene.train, scene.train[:1], scene.train[1:5]], seed)


def shown(scene: Scene, steps: range, *, cache: int = 1 << 20) -> list[str]:
    """Names of the views of block 0 with a new ``ViewOrder`` and new ``Views``, as in a resumed run or another rank."""
    with Views(scene, cache, CPU, skip_bad=True) as views:
        order = order_of(scene)
        found = []
        for step in steps:
            camera, _, target = order.show(0, step, views)
            assert torch.equal(target.image, views.image(camera.name)), "it comes with its own image"
            found.append(camera.name)
        return found


def test_an_epoch_shows_every_view_once(scene: Scene) -> None:
    order = order_of(scene)
    for block, names in enumerate((NAMES, NAMES[:1], NAMES[1:5])):
        epochs = [
            [order.camera(block, epoch * len(names) + i).name for i in range(len(names))] for epoch in range(20)
        ]
        assert all(sorted(epoch) == names for epoch in epochs)
        assert len(names) == 1 or len({tuple(epoch) for epoch in epochs}) > 10, "each in an order of its own"


def test_without_bad_files_the_order_is_shown_as_it_is(scene: Scene) -> None:
    order = order_of(scene)
    assert shown(scene, range(30)) == [order.camera(0, step).name for step in range(30)]


def test_the_next_good_view_replaces_a_bad_one_and_no_other_step_changes(scene: Scene) -> None:
    order = order_of(scene)
    wanted = []
    for step in range(70):
        number, index = divmod(step, len(NAMES))
        epoch = [order.camera(0, number * len(NAMES) + i).name for i in range(len(NAMES))]
        wanted.append(next(name for name in epoch[index:] + epoch[:index] if name not in BAD))
    for name in BAD:
        scene.image_paths[name].unlink()
    assert shown(scene, range(70)) == wanted
    # The view depends on the step and the files alone: not on earlier steps, nor on what is cached.
    assert shown(scene, range(41, 70)) == shown(scene, range(41, 70), cache=0) == wanted[41:]


def test_expected_views_are_those_shown_once_the_bad_ones_are_known(scene: Scene) -> None:
    for name in BAD:
        scene.image_paths[name].write_bytes(b"")
    order = order_of(scene)
    wanted = shown(scene, range(40))
    assert [order.expected(0, step, BAD).name for step in range(40)] == wanted
    assert order.expected(0, 0, NAMES) == order.camera(0, 0), "'show' refuses a block without any good image"


def test_a_block_without_any_good_image_is_named(scene: Scene) -> None:
    scene.image_paths["0.png"].unlink()
    with Views(scene, 0, CPU, skip_bad=True) as views:
        order = order_of(scene)
        with pytest.raises(UserError, match=r"^block 1: none of its 1 images can be read; first: data: image .*0\.png"):
            order.show(1, 4, views)
        assert order.show(2, 4, views)[0].name in NAMES[1:5]


def test_a_bad_image_ends_the_run_where_it_is_not_to_be_skipped(scene: Scene) -> None:
    order = order_of(scene)
    first = order.camera(0, 9).name
    scene.image_paths[first].unlink()
    with Views(scene, 0, CPU) as views, pytest.raises(UserError, match=first):
        order.show(0, 9, views)


def test_scores_are_means_over_the_good(scene: Scene) -> None:
    anchors, decoder = random_anchors(50), random_decoder()
    background = torch.full((3,), 0.5)
    with Views(scene, 0, CPU, skip_bad=True) as views:
        good = [camera for camera in scene.train if camera.name not in BAD]
        wanted = score_views(anchors, decoder, good, views, background)
        for name in BAD:
            scene.image_paths[name].unlink()
        assert score_views(anchors, decoder, scene.train, views, background) == wanted
        assert list(views.bad) == BAD
        bad = [camera for camera in scene.train if camera.name in BAD]
        assert score_views(anchors, decoder, bad, views, background) is None
    with Views(scene, 0, CPU) as views, pytest.raises(UserError, match=r"2\.png"):
        score_views(anchors, decoder, scene.train, views, background)
