"""The values chosen for settings that are ``auto``: closed forms, bounds, and what they do not depend on."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_scene import write_tiny_scene

from momentum_gs.config.load import load_config
from momentum_gs.config.schema import Config, SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.types import PointCloud
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.experiments.choose import (
    CHOSEN,
    FINEST_SPACING,
    SEEN_BY,
    USEFUL,
    WINDOW_STEP,
    Facts,
    Goal,
    Machine,
    at_resolution,
    choose,
    choose_resolution,
    choose_steps,
    choose_voxel,
    ladder,
    measure,
    step_of_all,
    wanted_steps,
)
from momentum_gs.train.blocks.anchor_budget import bytes_per_anchor

ROOM = Machine(host_bytes=2**40, device_bytes=2**40)
OPEN = load_config(None, ["partition.blocks=auto"])
SURVEY = Facts(views=66, images=75, width=4000, height=3000, pixel=0.01, spacing=0.05, seen_by=12.0)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Sixteen views of a plane from a height of 4, with a focal length of 40 pixels."""
    folder = write_tiny_scene(tmp_path_factory.mktemp("scene"))
    return load_scene(SceneConfig(path=str(folder), resolution=1.0))


def chosen(scene: Scene, config: Config, machine: Machine = ROOM, auto: tuple[str, ...] = CHOSEN) -> dict[str, float]:
    choices = choose(auto, config, scene, measure(scene), machine, Goal())
    assert all(choice.reason for choice in choices)
    return {choice.key: choice.value for choice in choices}


def scaled(scene: Scene, factor: float) -> Scene:
    """The same scene in another unit."""
    cameras = [
        [replace(camera, translation=camera.translation * factor) for camera in part]
        for part in (scene.train, scene.test)
    ]
    points = PointCloud(scene.points.xyz * factor, scene.points.rgb)
    return replace(scene, train=cameras[0], test=cameras[1], points=points)


def test_a_pixel_on_the_ground_is_the_depth_over_the_focal_length(scene: Scene) -> None:
    facts = measure(scene)
    assert facts.pixel == pytest.approx(4 / 40)
    assert (facts.views, facts.images, facts.width, facts.height) == (14, 16, 48, 36)
    assert choose_voxel(replace(facts, seen_by=SEEN_BY), 1).value == pytest.approx(0.1)
    assert choose_voxel(replace(facts, seen_by=SEEN_BY), 2).value == pytest.approx(0.2)


def test_at_resolution_gives_the_cameras_that_are_loaded_with_it(scene: Scene) -> None:
    loaded = load_scene(SceneConfig(path=str(scene.path), resolution=2.0))
    for ours, theirs in zip(at_resolution(scene, 2).train, loaded.train, strict=True):
        assert (ours.width, ours.height, ours.fx, ours.cy) == (theirs.width, theirs.height, theirs.fx, theirs.cy)


def test_voxels_are_wider_where_few_images_see_a_place_and_where_points_are_sparse() -> None:
    assert choose_voxel(SURVEY, 4).value == pytest.approx(0.04)
    few = choose_voxel(replace(SURVEY, seen_by=SEEN_BY / 4), 4)
    assert few.value == pytest.approx(0.08)
    sparse = choose_voxel(replace(SURVEY, spacing=2.0), 4)
    assert sparse.value == pytest.approx(2.0 / FINEST_SPACING)
    assert "spacing" in sparse.reason


def test_without_a_point_in_view_there_is_no_voxel() -> None:
    with pytest.raises(UserError, match="no camera sees a point"):
        choose_voxel(replace(SURVEY, pixel=math.nan), 1)


def test_steps_go_with_the_root_of_all_pixels() -> None:
    assert wanted_steps(66, 500 * 375) == 1500
    assert wanted_steps(4 * 66, 4 * 500 * 375) == 6000
    # Smaller images make a step cheaper, but do not need fewer steps.
    assert wanted_steps(66, 250 * 188) == 1500
    by_quality = [int(choose_steps(SURVEY, 500, Goal(quality), 1).value) for quality in ("draft", "normal", "high")]
    assert by_quality == [750, 1500, 4500]
    # A block of eight has a quarter of the views.
    assert choose_steps(SURVEY, 500, Goal("normal"), 8).value == 750
    assert choose_steps(replace(SURVEY, views=3), 100, Goal("draft"), 1).value == 300


def test_passes_are_over_the_pixels_of_the_training_views(scene: Scene) -> None:
    assert choose_steps(SURVEY, 500, Goal(passes=10.0), 1).value == 660
    assert choose_steps(SURVEY, 500, Goal(passes=10.0), 8).value == 82
    # Windows: a step of all eight blocks counts three views.
    assert choose_steps(SURVEY, 500, Goal(passes=10.0, views_per_step=3.0), 8).value == 220
    # The coarse stage is one block, however many follow.
    goal, config = Goal(passes=10.0), replace(OPEN, partition=replace(OPEN.partition, blocks=8))
    views, facts = len(scene.train), measure(scene)
    for stage, parts in ("coarse", 1), ("blocks", 8):
        [choice] = choose(("steps",), replace(config, stage=stage), scene, facts, ROOM, goal)
        assert choice.value == round(10 * views / parts)


def test_widths_halve_from_the_cap_down_or_are_divisors() -> None:
    assert ladder(4000, 1000) == [125.0, 250.0, 8.0, 4.0]
    assert ladder(1000, 1600) == [8.0, 4.0, 2.0, 1.0]
    assert ladder(4000, 1600) == [100.0, 200.0, 400.0, 800.0, 1600.0]
    assert ladder(64, 1600) == [1.0]


def test_quality_caps_the_width() -> None:
    widths = [choose_resolution(SURVEY, ROOM, Goal(quality), None).value for quality in ("draft", "normal", "high")]
    assert widths == [600, 4, 1600]
    assert choose_resolution(replace(SURVEY, width=400, height=300), ROOM, Goal("normal"), None).value == 1


def test_images_are_as_fine_as_memory_holds() -> None:
    # Half of the memory holds 75 images of 500x375 with three bytes a pixel, but not of four times as many pixels.
    little = Machine(host_bytes=2 * 75 * 3 * 500 * 375, device_bytes=2**40)
    choice = choose_resolution(SURVEY, little, Goal("normal"), None)
    assert choice.value == 8
    assert "memory" in choice.reason
    assert choose_resolution(SURVEY, Machine(2**40, 4 * 500 * 500 * 375), Goal("normal"), None).value == 8


def test_images_are_as_fine_as_the_steps_can_use() -> None:
    enough = math.ceil(USEFUL * wanted_steps(66, 1000 * 750))
    assert choose_resolution(SURVEY, ROOM, Goal("normal"), enough).value == 4
    assert choose_resolution(SURVEY, ROOM, Goal("normal"), enough - 1).value == 8


def test_time_decides_on_resolution_and_steps() -> None:
    def within(resolution: float | int) -> int:
        width = 4000 / resolution if resolution <= 8 else resolution
        return int(600 * (400 / width) ** 2)

    # In the time there are 600 steps with images 400 wide, or 150 with 800, which would need about a thousand.
    goal = Goal(steps_within=within)
    choice = choose_resolution(SURVEY, ROOM, goal, None)
    assert choice.value == 400
    assert choose_steps(SURVEY, choice.value, goal, 1).value == 600
    # Two blocks share the time.
    assert choose_steps(SURVEY, choice.value, goal, 2).value == 300
    assert choose_steps(SURVEY, choice.value, goal, 2, 1.5).value == 400


def test_blocks_share_the_time_with_a_coarse_model() -> None:
    assert step_of_all(1, False, coarse=True) == 1
    assert step_of_all(4, False, coarse=False) == 4
    assert step_of_all(4, False, coarse=True) == 5
    # Four times the blocks own a quarter each, and take half the time each, as borders become longer.
    assert step_of_all(16, True, coarse=False) == 2 * step_of_all(4, True, coarse=False) == 4 * WINDOW_STEP


def test_one_block_where_it_fits_and_more_where_it_does_not(scene: Scene) -> None:
    config = load_config(None, ["model.voxel_size=0.3", "partition.blocks=auto"])
    auto = ("partition.blocks",)
    assert chosen(scene, config, ROOM, auto) == {"partition.blocks": 1}
    anchors = len(torch.unique(scene.points.xyz.div(0.3).round(), dim=0))
    small = Machine(2**40, int(2 * 2.5 * anchors * bytes_per_anchor(config.model)))
    assert chosen(scene, config, small, auto)["partition.blocks"] >= 2


def test_a_given_bound_replaces_that_of_the_memory(scene: Scene) -> None:
    config = load_config(None, ["model.voxel_size=0.3", "partition.blocks=auto", "anchors.max_per_block=2500"])
    assert chosen(scene, config, ROOM, ("partition.blocks",))["partition.blocks"] >= 2


@pytest.mark.parametrize("fits", [True, False])
def test_several_blocks_have_windows_if_a_coarse_model_fits(scene: Scene, fits: bool) -> None:
    anchors = len(torch.unique(scene.points.xyz.div(0.3).round(), dim=0))
    bound = anchors if fits else anchors - 1
    config = load_config(None, ["model.voxel_size=0.3", "partition.blocks=2", f"anchors.max_per_block={bound}"])
    assert chosen(scene, config, ROOM, ("blocks.windows",)) == {"blocks.windows": fits}
    one = replace(config, partition=replace(config.partition, blocks=1))
    assert chosen(scene, one, ROOM, ("blocks.windows",)) == {}


def test_given_settings_are_kept_and_the_others_follow_them(scene: Scene) -> None:
    free = chosen(scene, OPEN)
    assert set(free) == set(CHOSEN) - {"blocks.windows"}  # there is one block
    given = load_config(None, ["scene.resolution=2", "partition.blocks=auto"])
    rest = chosen(scene, given, auto=tuple(key for key in CHOSEN if key != "scene.resolution"))
    assert set(rest) == set(free) - {"scene.resolution"}
    assert rest["model.voxel_size"] == pytest.approx(2 * free["model.voxel_size"], rel=1e-3)
    assert chosen(scene, OPEN, auto=()) == {}


def test_the_unit_of_the_scene_changes_the_voxel_alone(scene: Scene) -> None:
    ours, theirs = chosen(scene, OPEN), chosen(scaled(scene, 1000.0), OPEN)
    assert theirs.pop("model.voxel_size") == pytest.approx(1000 * ours.pop("model.voxel_size"), rel=1e-3)
    assert theirs == ours


def test_the_machine_does_not_matter_if_everything_fits(scene: Scene) -> None:
    assert chosen(scene, OPEN, ROOM) == chosen(scene, OPEN, Machine(2**34, 2**34))


def test_a_choice_says_its_reason() -> None:
    line = str(choose_steps(SURVEY, 500, Goal(), 1))
    assert line == "steps = 1,500: normal quality for 66 views of 500x375, each shown 23 times"
