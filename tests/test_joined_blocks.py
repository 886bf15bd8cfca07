"""Joined cells through training and merge: they are one block in every respect."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import CPU, assert_same_bits, make_config, model_of
from tiny_scene import write_tiny_scene

from momentum_gs.core.comm import LocalComm
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene
from momentum_gs.merge.blocks import merge_blocks
from momentum_gs.model.io import load_ply
from momentum_gs.train.events import Observers
from momentum_gs.train.loop import Training


@pytest.mark.slow
def test_joined_cells_train_and_merge_as_the_block_that_they_make(tmp_path: Path) -> None:
    """2 x 2 cells with each row joined are a grid of 1 x 2: the same models and the same merge, bit for bit."""
    config = make_config(write_tiny_scene(tmp_path / "scene"), tmp_path / "out", "steps=40", "blocks.interval=10")
    scene = load_scene(config.scene)
    whole = PartitionTable((-4.0, -4.0, -1.0, 4.0, 4.0, 5.0), (1, 2, 1), torch.eye(3, dtype=torch.float64), [[], []])
    # Cuts off the middle, so that they matter.
    whole = replace(whole, cuts=((), (0.45,), ()))
    whole = replace(whole, views=[[c.name for c in scene.train if whole.owner(c) == b] for b in range(2)])
    joined = replace(whole, dim=(2, 2, 1), cuts=((0.6,), (0.45,), ()), joined=(0, 0, 1, 1))
    assert min(map(len, whole.views)) >= 3

    models, merged = [], []
    for name, table in (("whole", whole), ("joined", joined)):
        run = replace(config, out=str(tmp_path / name))
        Training(run, scene, table, LocalComm(), CPU).run(Observers())
        folder = tmp_path / name / "point_cloud" / "iteration_40"
        found = PartitionTable.load(folder / "partition.json")  # what merge and render read
        assert (found.grid, found.joined) == (table.grid, table.joined)
        merge_blocks(folder, found)
        models.append(model_of(tmp_path / name))
        merged.append(load_ply(folder / "point_cloud.ply").rows())
    assert_same_bits(*models)
    assert_same_bits(*merged)
    assert len(merged[0]["position"]) > 0
