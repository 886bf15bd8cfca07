"""Windows: a block trains the pixels that its cell makes up, and the merge keeps everything that it has trained."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import (
    CPU,
    assert_same_bits,
    interrupt,
    make_config,
    model_of,
    run_ranks,
    train,
    write_table,
)
from tiny_scene import nadir_camera, write_tiny_scene

from momentum_gs.config.load import load_config
from momentum_gs.config.schema import LossConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_any_view
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.core.window import (
    MARGIN,
    PASSES,
    RASTER,
    TILE,
    margin_of,
    pack_owned,
    unpack_owned,
    window_of,
    windows_of,
)
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene
from momentum_gs.merge.blocks import merge_blocks
from momentum_gs.model.init import voxelize
from momentum_gs.model.io import load_model
from momentum_gs.partition.windows import with_windows
from momentum_gs.render.ownership import owned_squares
from momentum_gs.render.view import render_view
from momentum_gs.train.blocks.start import FirstBlocks
from momentum_gs.train.blocks.views import plan_blocks
from momentum_gs.train.losses import reconstruction
from momentum_gs.train.surroundings import LARGEST_FACTOR, lr_factor

pytestmark = pytest.mark.usefixtures("one_thread")

ON = ("blocks.windows=true", "teacher.enabled=false", "weighting.enabled=false")


def camera_of(width: int, height: int) -> Camera:
    return replace(nadir_camera("a.png", 0, 0), width=width, height=height)


def squares(seed: int, share: float = 0.2) -> torch.Tensor:
    return torch.rand(RASTER, RASTER, generator=torch.Generator().manual_seed(seed)) < share


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("seed", range(3))
def test_ownership_is_saved_as_text_and_read_back(seed: int) -> None:
    owned = torch.stack([squares(seed + i) for i in range(seed)]) if seed else torch.zeros(0, RASTER, RASTER).bool()
    assert torch.equal(unpack_owned(pack_owned(owned)), owned)
    owned = squares(seed)[None]
    with pytest.raises(ValueError, match="254 hexadecimal digits, expected a multiple of 256"):
        unpack_owned(pack_owned(owned)[2:])


@pytest.mark.parametrize("size", [(48, 36), (31, 20), (240, 180), (1, 1), (333, 500)])
@pytest.mark.parametrize("share", [0.02, 0.6])
def test_a_window_counts_its_pixels_and_those_whose_loss_it_draws_anyway(size: tuple[int, int], share: float) -> None:
    camera, owned = camera_of(*size), squares(0, share)
    window = window_of(owned, camera, CPU)
    rows, columns = (((torch.arange(n) + 0.5) * RASTER / n).long() for n in (camera.height, camera.width))
    own = owned[rows][:, columns]
    if window is None:
        assert not own.any()
        return
    x, y, width, height = window.rectangle
    drawn, counted = torch.zeros(2, camera.height, camera.width, dtype=torch.bool).unbind()
    drawn[y : y + height, x : x + width] = window.tiles.repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)[
        :height, :width
    ]
    counted[y : y + height, x : x + width] = window.weights > 0
    missing = torch.nn.functional.max_pool2d((~drawn).float()[None], 2 * MARGIN + 1, 1, MARGIN)[0] > 0
    assert not (own & missing).any(), "all that the loss of an owned pixel needs is drawn"
    assert torch.equal(counted, own | ~missing)
    assert window.share == window.counted == pytest.approx(float(counted.float().mean()))


@pytest.mark.parametrize("size", [(48, 36), (240, 180), (501, 333)])
def test_a_window_draws_what_its_pixels_and_their_ssim_need(size: tuple[int, int]) -> None:
    owned = squares(2, 0.02)
    owned[:9] = owned[25:] = owned[:, :5] = owned[:, 27:] = False
    window = window_of(owned, camera_of(*size), CPU)
    assert window is not None
    x, y, width, height = window.rectangle
    rows, columns = (((torch.arange(n) + 0.5) * RASTER / n).long() for n in (size[1], size[0]))
    own = owned[rows][:, columns][y : y + height, x : x + width].float()
    margin = (margin_of(size[1]), margin_of(size[0]))
    near = torch.nn.functional.max_pool2d(own[None, None], tuple(2 * m + 1 for m in margin), 1, margin)
    drawn = torch.nn.functional.max_pool2d(near, TILE, ceil_mode=True)[0, 0] > 0
    assert torch.equal(window.tiles, drawn)
    inner = own[margin[0] : -margin[0], margin[1] : -margin[1]]
    assert inner.sum() == own.sum(), "the margin is around the owned pixels"
    assert inner[0].any() and inner[-1].any() and inner[:, 0].any() and inner[:, -1].any(), "it is not wider"


@pytest.mark.parametrize("size", [(240, 180), (333, 500)])
def test_passes_weigh_every_pixel_alike(size: tuple[int, int]) -> None:
    """Over the passes of a view, the mean weight is 1 where a pixel counts in any: the loss is that of their union."""
    owned = torch.zeros(3, RASTER, RASTER, dtype=torch.bool)
    owned[0, 4:28, 3:] = owned[1, 4:20, 3:20] = owned[2, 15:18, 3:7] = True
    windows = [window.expand() for window in windows_of(owned, camera_of(*size), CPU)]
    mean, times = torch.zeros(2, size[1], size[0]).unbind()
    for window, squares_of_pass in zip(windows, owned, strict=True):
        alone = window_of(squares_of_pass, camera_of(*size), CPU)
        assert alone is not None and torch.equal(window.weights > 0, alone.weights > 0)
        assert torch.equal(window.tiles, alone.tiles) and window.rectangle == alone.rectangle
        assert window.counted == alone.share
        assert window.share == pytest.approx(float(window.weights.sum()) / mean.numel())
        x, y, width, height = window.rectangle
        mean[y : y + height, x : x + width] += window.weights / len(windows)
        times[y : y + height, x : x + width] += window.weights > 0
    assert times.unique().tolist() == [0, 1, 2, 3], "pixels count in different numbers of passes"
    torch.testing.assert_close(mean, (times > 0).float())
    once = window_of(owned[0], camera_of(*size), CPU)
    assert once is not None and once.weights.unique().tolist() == [0, 1] and once.share == once.counted


def test_a_block_that_owns_nothing_has_no_window() -> None:
    nothing = torch.zeros(RASTER, RASTER, dtype=torch.bool)
    assert window_of(nothing, camera_of(48, 36), CPU) is None
    assert windows_of(nothing[None], camera_of(48, 36), CPU) == []


@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_of_a_window_is_that_of_its_pixels_in_the_whole_view(masked: bool) -> None:
    """In value and gradient: what is not drawn, or left out of the rectangle, makes no difference."""
    camera = camera_of(96, 70)
    image, target = torch.rand(2, 3, 70, 96, generator=torch.Generator().manual_seed(3)).double().unbind()
    image.requires_grad_()
    mask = (torch.rand(1, 70, 96, generator=torch.Generator().manual_seed(4)) < 0.7).double() if masked else None
    whole, first = TargetImage(target, mask), squares(5, 0.5)
    for owned in (first, ~first, squares(6, 0.01), torch.ones_like(first)):
        window = window_of(owned, camera, CPU)
        assert window is not None
        window = replace(window, weights=window.weights.double())
        x, y, width, height = window.rectangle
        counts = torch.zeros(70, 96).double()
        counts[y : y + height, x : x + width] = window.weights
        share = counts.mean() if mask is None else (counts * mask).sum() / mask.sum()
        weighed = reconstruction(image, replace(whole, weights=counts), LossConfig())
        expected = {name: share * term for name, term in weighed.items()}
        hidden = window.tiles.repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)[:height, :width]
        part = window.target(whole)
        terms = reconstruction(window.crop(image) * hidden, part, LossConfig())
        found = {name: part.share * term for name, term in terms.items()}
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(torch.stack(list(t.values())).sum(), image)[0] for t in (found, expected)]
        torch.testing.assert_close(*gradients)
    plain = reconstruction(image, whole, LossConfig())
    torch.testing.assert_close(found, plain)  # The block that owns everything has the loss of the view.


def passes_of(owned: dict[int, torch.Tensor], block: int) -> torch.Tensor:
    """In how many passes a block owns each square; passes are nested."""
    assert all((one | two).equal(one) for one, two in itertools.pairwise(owned[block]))
    return owned[block].sum(dim=0)


def test_squares_are_owned_by_shares_and_open_ones_as_the_nearest() -> None:
    a, b = torch.zeros(2, RASTER, RASTER).unbind()
    a[:, :20], b[:, 16:24] = 0.9, 0.6
    b[0, 0] = a[0, 0]
    b[:, 24:28] = 0.3  # Less than half of the light is covered: open squares.
    owned = owned_squares({0: a, 3: b})
    first, second = passes_of(owned, 0), passes_of(owned, 3)
    assert (first[:, :16] == PASSES).all() and (first[:, 16:20] == 2).all() and (first[:, 20:] == 0).all()
    assert (second[:, 16:20] == 1).all(), "it has 40 % of their weight"
    assert (second[:, 20:] == PASSES).all(), "right of 24 it is nearest"
    assert second[0, 0] == PASSES, "where two are as strong, both own the square"
    assert (second[:, :16] > 0).sum() == 1
    assert owned_squares({}) == {}
    faint = owned_squares({5: torch.full((RASTER, RASTER), 0.01)})
    assert (passes_of(faint, 5) == PASSES).all(), "a view that is hardly covered has an owner, too"


def test_passes_follow_shares_and_cover_the_view() -> None:
    weights = torch.rand(5, RASTER, RASTER, generator=torch.Generator().manual_seed(7)) ** 4 / 5
    weights[2] += 0.5
    owned = owned_squares(dict(enumerate(weights)))
    counts = torch.stack([passes_of(owned, block) for block in range(5)])
    shares = weights / weights.sum(dim=0)
    strongest = shares == shares.amax(dim=0)
    assert (counts - PASSES * shares)[~strongest].abs().max() <= 0.5, "a share is rounded"
    assert (counts.sum(dim=0) >= PASSES).all(), "together, blocks own every square as often as there are passes"
    assert (counts[strongest] >= 1).all()


def test_a_block_that_nothing_shows_keeps_its_views_whole(scene_folder: Path, tmp_path: Path) -> None:
    config = make_config(scene_folder, tmp_path)
    scene, table = load_scene(config.scene), write_table(config)
    alone = with_windows(table, scene.train, lambda camera: {2: torch.ones(RASTER, RASTER)})
    assert alone.windows is not None
    for block, texts in enumerate(alone.windows):
        assert len(texts) == len(table.views[block])
        assert all(unpack_owned(text).all() for text in texts), "block 2 is seen everywhere, the others nowhere"


def test_pixels_whose_owner_does_not_train_their_view_are_told(scene_folder: Path, tmp_path: Path) -> None:
    table = write_table(make_config(scene_folder, tmp_path))
    first, second = pack_owned(squares(0, 0.25)[None]), pack_owned(~squares(0, 0.25)[None])
    part = float(squares(0, 0.25).float().mean())
    both = replace(table, views=[["a"], ["a", "b"], ["b"], ["b"]], windows=[[first], [second] * 2, [first], [second]])
    assert both.unowned() == 0
    dropped = replace(both, views=[[], ["a", "b"], ["b"], ["b"]], windows=[[], [second] * 2, [first], [second]])
    assert dropped.unowned() == pytest.approx(part / 2), "of two views, the part of one"
    assert replace(table, windows=None).unowned() == 0, "not known"


def test_a_block_starts_from_its_cell_and_leaves_views_out_that_show_nothing_of_it(
    scene_folder: Path, tmp_path: Path
) -> None:
    config = make_config(scene_folder, tmp_path, *ON)
    scene, table = load_scene(config.scene), write_table(config)
    plan = plan_blocks(scene, table, windows=True)
    assert plan.windows is not None
    anchors = []
    for block in range(4):
        state = FirstBlocks(scene, plan, config, CPU)(block)
        assert (table.cell_of(state.model.position.double()) == block).all()
        assert len(plan.windows[block]) == len(plan.train[block]) > 0
        assert all(squares.any() for squares in plan.windows[block])
        anchors.append(state.model.position)
    seen = in_any_view(scene.points.xyz, scene.train)
    expected = voxelize(scene.points.xyz[seen], config.model.voxel_size)
    together = torch.cat(anchors)
    assert len(together.unique(dim=0)) == len(together), "no anchor is of two blocks"
    # All but the few that only views of other blocks see.
    assert 0.97 * len(expected) < len(together) <= len(expected)
    with pytest.raises(UserError, match=r"blocks\.windows.*re-run 'momentum-gs partition'"):
        plan_blocks(scene, replace(table, windows=None), windows=True)


@pytest.mark.slow
def test_the_merge_keeps_every_anchor_and_renders_what_was_trained(scene_folder: Path, tmp_path: Path) -> None:
    config = make_config(scene_folder, tmp_path, *ON, "steps=45")
    train(config)
    table = PartitionTable.load(tmp_path / "partition.json")
    folder = tmp_path / "point_cloud" / "iteration_45"
    scene = load_scene(config.scene)
    report = merge_blocks(folder, table)  # Crops blocks to their cells, and drops nothing.
    assert report.dropped == [0, 0, 0, 0]
    assert sum(report.kept) > len(voxelize(scene.points.xyz, config.model.voxel_size)), "blocks grew"

    merged, decoder = load_model(report.path)
    parts = [load_model(folder / f"point_cloud_block{block}.ply")[0] for block in range(4)]
    camera = scene.train[5]
    around = type(parts[1]).cat([parts[0], *parts[2:]])
    whole = render_view(merged, decoder, camera, torch.zeros(3)).output
    amid = render_view(parts[1], decoder, camera, torch.zeros(3), around=around).output
    # Anchors are in another order, in which Gaussians of equal depth are drawn.
    torch.testing.assert_close(amid.image, whole.image, atol=2e-5, rtol=0)
    assert len(amid.radii) < len(whole.radii)


@pytest.mark.slow
def test_a_run_resumes_to_the_same_bits_within_a_round(scene_folder: Path, tmp_path: Path) -> None:
    """A block's surroundings are those at the start of the round, not those at the checkpoint."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(make_config(scene_folder, whole, *ON))
    config = make_config(scene_folder, broken, *ON, "log.checkpoint_every=20")
    interrupt(config, 47)
    train(config, resume=True)
    assert_same_bits(model_of(broken), model_of(whole))


@pytest.mark.slow
def test_the_number_of_ranks_changes_no_bit(scene_folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(make_config(scene_folder, one, *ON))
    assert_same_bits(run_ranks(scene_folder, two, 2, *ON), model_of(one))


def test_windows_need_a_shared_decoder() -> None:
    with pytest.raises(UserError, match=r"blocks\.windows.*per_block"):
        load_config(None, ["blocks.windows=true", "blocks.decoder=per_block", "teacher.enabled=false",
                           "blocks.boundary_finetuning=false", "blocks.decoder_freeze_rounds=0"])  # fmt: skip


def test_a_block_with_fewer_views_learns_faster() -> None:
    assert lr_factor(100, 100) == 1
    assert lr_factor(25, 64) == pytest.approx(1.6)
    assert lr_factor(1, 100) == LARGEST_FACTOR
