"""Merging: the cells tile space, so the merged model holds every anchor once, from the block that owns its place."""

from pathlib import Path

import pytest
import torch

import momentum_gs.merge.blocks as merge
from momentum_gs.cli.main import main
from momentum_gs.config.load import dump_config
from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.core.seeds import keyed_generator
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.merge.blocks import merge_blocks
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.io import load_ply, save_decoder, save_ply

K, F = 3, 8


def anchors(count: int, mark: float, seed: int = 0, n_offsets: int = K) -> Anchors:
    """Random anchors that depend on the seed alone, except for the first feature, which is ``mark``."""
    g = keyed_generator("merge", seed)
    feature = torch.randn(count, F, generator=g)
    feature[:, 0] = mark
    return Anchors(
        position=torch.randn(count, 3, generator=g) * 3,
        offset=torch.randn(count, n_offsets, 3, generator=g),
        feature=feature,
        log_scale=torch.randn(count, 6, generator=g),
        rotation=torch.nn.functional.normalize(torch.randn(count, 4, generator=g)),
        opacity=torch.randn(count, 1, generator=g),
    )


def partition(dim: tuple[int, int, int] = (2, 2, 1)) -> PartitionTable:
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=keyed_generator("turn"), dtype=torch.float64)).Q
    rotation = rotation * torch.linalg.det(rotation)
    return PartitionTable((-1.0, -1.0, -1.0, 1.5, 1.0, 2.0), dim, rotation, [["a.jpg"]] * (dim[0] * dim[1] * dim[2]))


def write_run(folder: Path, table: PartitionTable, blocks: list[Anchors]) -> Path:
    for block, held in enumerate(blocks):
        folder.mkdir(parents=True, exist_ok=True)
        save_ply(folder / f"point_cloud_block{block}.ply", held)
    save_decoder(folder, GaussianDecoder(F, K))
    return folder


@pytest.mark.parametrize("dim", [(2, 2, 1), (4, 1, 2)])
def test_every_anchor_comes_once_from_the_block_that_owns_it(
    tmp_path: Path, dim: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "SLICE", 117)  # several slices, the last one short
    table = partition(dim)
    blocks = [anchors(1000, mark=block) for block in range(table.n)]  # every block holds the whole scene
    report = merge_blocks(write_run(tmp_path, table, blocks), table)

    merged = load_ply(report.path)
    assert sum(report.kept) == len(merged) == 1000
    assert all(kept + dropped == 1000 for kept, dropped in zip(report.kept, report.dropped, strict=True))
    assert merged.feature[:, 0].long().equal(table.cell_of(merged.position.double()))
    # All rows are bit for bit those of the blocks, in their order.
    cell = table.cell_of(blocks[0].position.double())
    wanted = Anchors.cat([held.subset(cell == block) for block, held in enumerate(blocks)])
    for name, row in wanted.rows().items():
        assert merged.rows()[name].equal(row), name


def test_the_merge_of_one_block_is_its_file(tmp_path: Path) -> None:
    table = partition((1, 1, 1))
    report = merge_blocks(write_run(tmp_path, table, [anchors(50, 0)]), table)
    assert report.path.read_bytes() == (tmp_path / "point_cloud_block0.ply").read_bytes()


def test_block_without_an_anchor_in_its_cell_gives_nothing(tmp_path: Path) -> None:
    table = partition((2, 1, 1))
    everything = anchors(300, 0)
    cell = table.cell_of(everything.position.double())
    report = merge_blocks(write_run(tmp_path, table, [everything, everything.subset(cell == 0)]), table)
    assert report.kept == [int((cell == 0).sum()), 0]
    assert len(load_ply(report.path)) == report.kept[0]


def test_incomplete_set_is_refused_by_name(tmp_path: Path) -> None:
    table = partition()
    write_run(tmp_path, table, [anchors(10, block) for block in range(4)])
    (tmp_path / "point_cloud_block1.ply").unlink()
    (tmp_path / "point_cloud_block3.ply").unlink()
    with pytest.raises(UserError, match=r"2 of 4 blocks are missing: point_cloud_block1.ply, point_cloud_block3.ply"):
        merge_blocks(tmp_path, table)
    assert not (tmp_path / "point_cloud.ply").exists()


def test_blocks_without_decoder_are_refused(tmp_path: Path) -> None:
    table = partition()
    write_run(tmp_path, table, [anchors(10, block) for block in range(4)])
    (tmp_path / "decoder.safetensors").unlink()
    with pytest.raises(UserError, match="decoder.safetensors"):
        merge_blocks(tmp_path, table)


def test_blocks_with_different_columns_are_refused(tmp_path: Path) -> None:
    table = partition((2, 1, 1))
    write_run(tmp_path, table, [anchors(10, 0), anchors(10, 1, n_offsets=K + 1)])
    with pytest.raises(UserError, match="columns differ"):
        merge_blocks(tmp_path, table)


def test_damaged_block_is_refused_and_leaves_the_old_model(tmp_path: Path) -> None:
    table = partition((2, 1, 1))
    write_run(tmp_path, table, [anchors(100, 0), anchors(100, 1)])
    before = merge_blocks(tmp_path, table).path.read_bytes()
    block = tmp_path / "point_cloud_block1.ply"
    block.write_bytes(block.read_bytes()[:-50])
    with pytest.raises(UserError, match="point_cloud_block1.ply: not a complete PLY"):
        merge_blocks(tmp_path, table)
    assert (tmp_path / "point_cloud.ply").read_bytes() == before
    assert not list(tmp_path.glob(".point_cloud*"))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = partition()
    table.save(tmp_path / "point_cloud" / "iteration_30" / "partition.json")
    (tmp_path / "config.yaml").write_text(dump_config(Config()))
    write_run(tmp_path / "point_cloud" / "iteration_30", table, [anchors(200, block) for block in range(4)])
    assert main(["merge", str(tmp_path)]) == 0
    assert "point_cloud.ply" in capsys.readouterr().out
    assert len(load_ply(tmp_path / "point_cloud" / "iteration_30" / "point_cloud.ply")) == 200
    (tmp_path / "point_cloud" / "iteration_30" / "point_cloud_block2.ply").unlink()
    assert main(["merge", str(tmp_path)]) == 2
    assert "point_cloud_block2.ply" in capsys.readouterr().err
