"""Compression, sending and aggregation of block models: what is sent, and what must hold whatever arrives."""

import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch
from splat_scene import random_splats
from tiny_scene import nadir_camera

from momentum_gs.aggregate.combine import combine, faded, mean_surface, regions, shares
from momentum_gs.aggregate.compress import compress
from momentum_gs.aggregate.removal import removal_error
from momentum_gs.aggregate.send import aggregate_inbox, border_images
from momentum_gs.aggregate.upload import MANIFEST, MODEL, read_upload, receive, write_upload
from momentum_gs.aggregate.wire import HARMONIC_STEP, SCALE_STEP, decode, encode
from momentum_gs.bake.refine import surface_terms
from momentum_gs.config.load import load_config
from momentum_gs.config.schema import CompressConfig, Config
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.core.voxels import deinterleave, interleave
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.surface import Surface
from momentum_gs.render.view import render_image, render_view

CPU = torch.device("cpu")
BLACK = torch.zeros(3)


def config(*overrides: str) -> Config:
    return load_config(None, ["model.primitive=gaussians", "teacher.enabled=false", "blocks.boundary_finetuning=false",
                              "blocks.offset_clamping=false", "aggregate.steps=6", *overrides])  # fmt: skip


def table(dim: tuple[int, int, int] = (2, 2, 1)) -> PartitionTable:
    n = dim[0] * dim[1] * dim[2]
    return PartitionTable((-4.0, -4.0, -1.0, 4.0, 4.0, 5.0), dim, torch.eye(3, dtype=torch.float64), [[]] * n, {})


def plane(seed: int, count: int = 400) -> Splats:
    """Gaussians on the ground, wherever a camera of ``cameras`` looks."""
    rng = torch.Generator().manual_seed(seed)
    position = (torch.rand(count, 3, generator=rng) - 0.5) * 10
    position[:, 2] *= 0.1  # Not equal: of equal depths, the order of the rows decides which is in front.
    rgb = torch.rand(count, 3, generator=rng)
    splats = Splats.fresh(position, rgb, torch.full((count, 3), -1.2), 1)
    return Splats.from_rows({**splats.rows(), "opacity": torch.full((count, 1), 1.0)}).as_leaves()


def cameras() -> list[Camera]:
    return [nadir_camera(f"{x}_{y}.png", float(x), float(y)) for x in (-2, 0, 2) for y in (-2, 0, 2)]


def inbox_of(folder: Path, order: tuple[int, ...] = (0, 1, 2, 3), names: str = "device") -> Path:
    for place, block in enumerate(order):
        name = f"{names}{place}"
        write_upload(folder / name, f"device {block}", encode(plane(block)), table(), [block], cameras(), {}, {})
    return folder


def rows(splats: Splats) -> dict[str, torch.Tensor]:
    return {name: row.detach() for name, row in splats.rows().items()}


def assert_equal(a: Splats, b: Splats) -> None:
    for name, row in rows(a).items():
        assert torch.equal(row, rows(b)[name]), name


def in_order(splats: Splats, found: Splats) -> Splats:
    """The Gaussians in the order of the file: each is the nearest to its decoded position."""
    nearest = torch.cdist(found.position.detach().double(), splats.position.detach().double()).argmin(dim=1)
    assert len(nearest.unique()) == len(splats)
    return splats.subset(nearest)


def test_places_on_the_curve_are_those_of_their_cells() -> None:
    cells = torch.randint(0, 2**21, (500, 3), generator=torch.Generator().manual_seed(0))
    assert torch.equal(deinterleave(interleave(cells)), cells)


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_what_is_decoded_is_within_half_a_step(degree: int) -> None:
    splats = random_splats(300, degree)
    found = decode(encode(splats), "x")
    was, now = rows(in_order(splats, found)), rows(found)
    extent = float((was["position"].amax(0) - was["position"].amin(0)).max())
    assert (was["position"] - now["position"]).abs().max() <= extent * 2**-16
    assert (was["log_scale"] - now["log_scale"]).abs().max() <= SCALE_STEP / 2 + 1e-6
    assert (was["sh_dc"] - now["sh_dc"]).abs().max() <= HARMONIC_STEP / 2 + 1e-6
    if degree:
        assert (was["sh_rest"] - now["sh_rest"]).abs().max() <= HARMONIC_STEP / 2 + 1e-6
    assert (was["opacity"].sigmoid() - now["opacity"].sigmoid()).abs().max() <= 1 / 512 + 1e-6
    turned = quat_to_matrix(was["rotation"]) @ quat_to_matrix(now["rotation"]).transpose(1, 2)
    cosine = (turned.diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2
    assert cosine.min() > 1 - 1e-4  # Components are off by 0.0007 at most.


def test_what_was_decoded_stays_where_it_is() -> None:
    once = decode(encode(random_splats(300)), "x")
    twice = decode(encode(once), "x")
    for name in ("position", "log_scale", "opacity", "sh_dc", "sh_rest"):
        assert torch.equal(rows(once)[name], rows(twice)[name]), name


def test_far_gaussians_widen_the_grid() -> None:
    splats = random_splats(300)
    with torch.no_grad():
        splats.position[7] = torch.tensor([1e6, -1e6, 3.0])
    found = decode(encode(splats), "x").position.detach()
    assert (found.amax(dim=0)[0] - 1e6).abs() < 2


def test_a_truncated_or_changed_file_is_one_error() -> None:
    data = encode(random_splats(50))
    wrong = [data[:-1], data[: len(data) // 2], b"", b"PK", data + b"x"]
    wrong += [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(0, len(data), 37)]
    for changed in wrong:
        with pytest.raises(UserError, match="truncated or changed") as caught:
            decode(changed, "model.xz")
        assert "\n" not in str(caught.value)


def test_a_forged_count_is_refused() -> None:
    header = {"format": "momentum-gs gaussians 1", "count": 10**9, "sh_degree": 3, "step": 1.0, "low": [0, 0, 0]}
    data = lzma.compress(json.dumps(header).encode() + b"\n" + bytes(10**6), check=lzma.CHECK_SHA256)
    with pytest.raises(UserError, match="1000000000 Gaussians"):
        decode(data, "x")


def test_gaussians_that_are_not_finite_are_not_encoded() -> None:
    splats = random_splats(5)
    with torch.no_grad():
        splats.opacity[2] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        encode(splats)


def _targets(splats: Splats, views: list[Camera]) -> dict[str, TargetImage]:
    return {c.name: TargetImage(render_image(splats, Harmonics(splats.sh_degree), c, BLACK)) for c in views}


@pytest.mark.slow
def test_pruning_keeps_what_the_views_show_and_the_wanted_quality() -> None:
    hidden = plane(1, 200)
    with torch.no_grad():
        hidden.position[:, 2] = -3  # Behind the ground, which covers it.
        hidden.position[:, 0] += 100
    shown = plane(0)
    splats, views = Splats.cat([shown, hidden]), cameras()
    images = _targets(splats, views)
    images = {name: TargetImage((t.image + 0.03 * torch.rand_like(t.image)).clamp(0, 1)) for name, t in images.items()}
    done = compress(splats, views, images.get, CompressConfig(max_loss_db=3.0, steps=2), BLACK)
    before, after = done.report["psnr"]
    assert after >= before - 3.0 and done.report["cuts"] >= 1
    kept = decode(done.data, "x")
    assert len(kept) < len(splats) and kept.position.detach()[:, 0].max() < 50


@pytest.mark.slow
@pytest.mark.parametrize(("surface", "removed"), [(False, 1.0), (True, 1e-4)])
def test_the_estimated_error_of_a_removal_is_what_the_removal_changes(surface: bool, removed: float) -> None:
    """Colours are linear in each opacity, so all of a Gaussian is removed; surfaces are not, so a little of it."""
    splats, view, count, draws = plane(3, 60), cameras()[4], 60, 150
    decoder = Harmonics(splats.sh_degree)

    def drawn(factors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            render = render_view(splats, decoder, view, BLACK, opacity_factors=factors, surface=surface)
        if render.surface is None:
            return render.output.image, torch.ones_like(render.output.alpha)
        there = render.surface.there
        depth = torch.where(there, render.surface.depth, 1).log()
        return torch.cat([render.output.image, depth[None], render.surface.normal]), there.float()

    before, there = drawn(torch.ones(count, 1))
    truth = []
    for row in range(count):
        after, still = drawn(1 - removed * (torch.arange(count) == row).float()[:, None])
        truth.append(((after - before) * there * still / removed).square().sum())
    estimates = torch.stack([removal_error(splats, [view], BLACK, surface, seed) for seed in range(draws)])
    # The square of a sum of many random signs varies by 1.4 times its mean: 0.06 with 4 times 150, and five times that.
    assert torch.allclose(estimates.mean(dim=0), torch.stack(truth), rtol=0.3, atol=1e-3)


@pytest.mark.slow
def test_the_file_has_at_most_the_wanted_bytes() -> None:
    splats, views = plane(0), cameras()
    images = _targets(splats, views)
    done = compress(splats, views, images.get, CompressConfig(max_mb=0.003, steps=1), BLACK)
    assert len(done.data) <= 3000
    with pytest.raises(UserError, match="compress.max_mb"):
        compress(splats, views, images.get, CompressConfig(max_mb=1e-5, steps=0), BLACK)


def test_without_a_bound_only_the_numbers_are_rounded() -> None:
    splats = plane(0)
    done = compress(splats, cameras(), _targets(splats, cameras()).get, CompressConfig(max_loss_db=None), BLACK)
    assert done.data == encode(splats)


def test_an_upload_arrives_as_it_was_sent(tmp_path: Path) -> None:
    pixels = torch.randint(0, 255, (3, 36, 48), dtype=torch.uint8)
    views = cameras()
    size = write_upload(tmp_path / "a", "device 2", encode(plane(0)), table(), [2], views, {views[3].name: pixels},
                        {"psnr": [1.0, 2.0]})  # fmt: skip
    found = read_upload(tmp_path / "a")
    assert (found.name, found.blocks, found.report) == ("device 2", (2,), {"psnr": [1.0, 2.0]})
    assert size == sum(path.stat().st_size for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert [camera.name for camera in found.cameras] == sorted(camera.name for camera in views)
    by_name = {camera.name: camera for camera in views}
    for camera in found.cameras:
        assert torch.allclose(camera.world_view, by_name[camera.name].world_view, atol=1e-9)
    target = found.target(views[3])
    assert target is not None and target.image.shape == (3, 36, 48) and found.target(views[0]) is None
    assert found.table.views[2] == [camera.name for camera in views] and found.table.views[0] == []


def _truncate(folder: Path) -> None:
    file = folder / MODEL
    file.write_bytes(file.read_bytes()[:-100])


def _forge(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../../secret"] = {"bytes": 1, "sha256": ""}
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "harm",
    [
        _truncate,
        _forge,
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / MANIFEST).write_text("{"),
        lambda folder: (folder / "cells.json").unlink(),
        lambda folder: (folder / "cameras" / "images.bin").write_bytes(b"x"),
    ],
)  # fmt: skip
def test_a_damaged_upload_costs_one_line_and_the_rest_goes_on(tmp_path: Path, harm) -> None:
    inbox = inbox_of(tmp_path / "inbox")
    harm(inbox / "device1")
    uploads, lines = receive(inbox)
    assert [upload.blocks for upload in uploads] == [(0,), (2,), (3,)]
    assert len(lines) == 1 and "device1" in lines[0] and "\n" not in lines[0]


def test_two_uploads_of_one_block_are_one(tmp_path: Path) -> None:
    inbox = inbox_of(tmp_path / "inbox")
    shutil.copytree(inbox / "device1", inbox / "again")
    uploads, lines = receive(inbox)
    assert len(uploads) == 4 and len(lines) == 1 and "sent twice" in lines[0]
    with pytest.raises(UserError, match="none of them intact"):
        (tmp_path / "empty").mkdir()
        receive(tmp_path / "empty")


def test_the_aggregation_of_one_model_is_that_model(tmp_path: Path) -> None:
    inbox = inbox_of(tmp_path / "inbox", (2,))
    aggregate_inbox(inbox, tmp_path / "edge", config(), "edge0")
    assert_equal(read_upload(tmp_path / "edge").splats, read_upload(inbox / "device0").splats)
    assert (tmp_path / "edge" / MODEL).read_bytes() == (inbox / "device0" / MODEL).read_bytes()
    uploads, _ = receive(inbox)
    assert_equal(combine(uploads, config(), CPU).splats, uploads[0].splats)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_the_order_of_arrival_does_not_matter(tmp_path: Path) -> None:
    first, second = inbox_of(tmp_path / "a"), inbox_of(tmp_path / "b", (3, 1, 0, 2), "sender")
    for name, inbox in (("x", first), ("y", second)):
        aggregate_inbox(inbox, tmp_path / name, config(), "edge0")
    assert (tmp_path / "x" / MODEL).read_bytes() == (tmp_path / "y" / MODEL).read_bytes()


def test_every_place_has_one_owner_and_a_lost_model_is_filled_by_its_nearest(tmp_path: Path) -> None:
    cells = table((4, 2, 1))
    space = regions(cells, [[0, 1, 4, 5], [2], [3, 7]])
    points = torch.rand(500, 3, dtype=torch.float64) * 20 - 10
    owner, block = space.cell_of(points), cells.cell_of(points)
    for i, blocks in enumerate([[0, 1, 4, 5], [2], [3, 7]]):
        assert (owner[torch.isin(block, torch.tensor(blocks))] == i).all()
    assert set(owner[block == 6].tolist()) == {0}  # 5, 2 and 7 are beside 6; the first of these models takes it.


def test_shares_sum_to_one_and_are_whole_away_from_borders() -> None:
    space = regions(table((4, 2, 1)), [[0, 1, 4, 5], [2], [3, 7]])
    points = torch.rand(2000, 3, dtype=torch.float64) * 20 - 10
    found = shares(space, points)
    assert torch.allclose(found.sum(dim=1), torch.ones(2000, dtype=torch.float64), atol=1e-12)
    sole = found.max(dim=1).values > 1 - 1e-9
    assert 0.5 < sole.double().mean() < 1
    assert torch.equal(found.argmax(dim=1)[sole], space.cell_of(points)[sole])


def test_two_equal_models_fade_into_themselves() -> None:
    """Where two models hold the same Gaussian, their optical depths sum to its own, whatever their shares."""
    model, space = plane(0, 3000), table((2, 1, 1))
    parts = [faded(model, space, i) for i in range(2)]
    both = Splats.cat(parts)
    alone = len(both) - len(model)
    assert 0 < alone < len(model)
    depth = torch.zeros(len(model))
    nearest = torch.cdist(both.position.detach().double(), model.position.detach().double()).argmin(dim=1)
    depth.index_add_(0, nearest, torch.nn.functional.softplus(both.opacity.detach()[:, 0]))
    whole = torch.nn.functional.softplus(model.opacity.detach()[:, 0])
    assert ((depth - whole).abs() <= 0.02 * whole + 1e-4).all()  # Shares below 0.02 are left out.


@pytest.mark.slow
def test_learning_changes_the_union_and_zero_steps_do_not(tmp_path: Path) -> None:
    uploads, _ = receive(inbox_of(tmp_path / "inbox"))
    plain, taught = (combine(uploads, config(f"aggregate.steps={steps}"), CPU) for steps in (0, 6))
    assert taught.report["views"] > 0
    assert any(not torch.equal(row, rows(taught.splats)[name]) for name, row in rows(plain.splats).items())


@pytest.mark.slow
def test_images_are_used_where_they_were_sent(tmp_path: Path) -> None:
    inbox = inbox_of(tmp_path / "inbox")
    white = {camera.name: torch.full((3, 36, 48), 255, dtype=torch.uint8) for camera in cameras()}
    uploads, _ = receive(inbox)
    write_upload(inbox / "device0", "device 0", encode(plane(0)), table(), [0], cameras(), white, {})
    sent, _ = receive(inbox)
    dark, bright = (combine(these, config("aggregate.steps=30"), CPU).splats for these in (uploads, sent))
    view = cameras()[4]
    shown = [float(render_image(splats, Harmonics(1), view, BLACK).mean()) for splats in (dark, bright)]
    assert shown[1] > shown[0] + 0.01


@pytest.mark.slow
def test_depth_and_normals_are_learned_too(tmp_path: Path) -> None:
    uploads, _ = receive(inbox_of(tmp_path / "inbox"))
    plain, both = (combine(uploads, config(f"aggregate.surface={weight}"), CPU).splats for weight in (0, 1))
    assert any(not torch.equal(row, rows(plain)[name]) for name, row in rows(both).items())


def test_a_surface_is_the_mean_of_those_that_are_there() -> None:
    depth, normal = torch.tensor([[2.0, 4.0, 0.0]]), torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(3, 1, 3)
    one = Surface(depth, normal, torch.ones(1, 3))
    other = Surface(torch.tensor([[4.0, 0.0, 0.0]]), normal, torch.ones(1, 3))
    found = mean_surface([one, other])
    assert found.depth.tolist() == [[3.0, 4.0, 0.0]] and torch.allclose(found.normal, normal)
    terms = surface_terms(one, Surface(depth * 1.25, -normal, one.alpha))
    assert float(terms["depth"]) == pytest.approx(0.2) and float(terms["normal"]) == pytest.approx(2)


def test_devices_send_the_images_that_show_both_sides(tmp_path: Path) -> None:
    chosen = border_images(plane(0, 2000), cameras(), table((2, 1, 1)), 0, 3)
    assert {camera.name.split("_")[0] for camera in chosen} == {"0"}
    assert border_images(plane(0), cameras(), table(), 0, 0) == []
