"""``momentum-gs bench step``: what bounds the parts of a step, and the JSON object with all of it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from anchor_scene import random_decoder
from tiny_run import make_config, train
from tiny_scene import write_tiny_scene

from momentum_gs.bench.roofline import Counts, Machine, bounds, covered
from momentum_gs.bench.step import PARTS
from momentum_gs.cli import main as cli_main
from momentum_gs.config.load import dump_config
from momentum_gs.core.types import Camera, Gaussians

COUNTS = Counts(
    anchors=1e3, visible=400.0, active=300.0, gaussians=900.0, covered=9e3, pixels=4800.0, decoders=1.0
)
MACHINE = Machine(bytes_per_second=1e9, operations_per_second=1e10)


def test_a_bound_is_the_slower_of_memory_and_computation() -> None:
    found = bounds(COUNTS, random_decoder(), MACHINE)
    assert set(found) == set(PARTS)
    for bound in found.values():
        times = {"memory": bound.bytes / 1e9, "compute": bound.operations / 1e10}
        assert bound.by == max(times, key=lambda name: times[name])
        assert bound.milliseconds == pytest.approx(1000 * max(times.values()))
    # Adam reads four numbers for each parameter and writes three.
    parameters = 1000 * (3 * 4 + 8 + 6) + sum(p.numel() for p in random_decoder().parameters())
    assert found["optimizer"].bytes == 4 * 7 * parameters and found["optimizer"].by == "memory"


def test_a_teacher_decodes_along_but_has_no_gradient() -> None:
    alone, both = (bounds(replace(COUNTS, decoders=n), random_decoder(), MACHINE) for n in (1.0, 2.0))
    assert both["decode"].operations == 2 * alone["decode"].operations
    assert both["backward: decode"] == alone["backward: decode"]
    assert both["loss"].bytes > alone["loss"].bytes


def test_a_ball_covers_the_disc_where_its_opacity_counts() -> None:
    eye = torch.eye(3, dtype=torch.float64)
    camera = Camera("a", 640, 480, 500.0, 500.0, 320.0, 240.0, eye, torch.zeros(3, dtype=torch.float64))
    balls = Gaussians(
        means=torch.tensor([[0.0, 0, 5], [0, 0, 5], [0, 0, 5]], dtype=torch.float64),
        scales=torch.full((3, 3), 0.1, dtype=torch.float64),
        quats=torch.tensor([[1.0, 0, 0, 0]] * 3, dtype=torch.float64),
        opacities=torch.tensor([[0.5], [1 / 300], [0.5]], dtype=torch.float64),
        colors=torch.zeros(3, 3, dtype=torch.float64),
    )
    radii = torch.tensor([30, 30, 0])  # the second is too faint, the third is not drawn
    variance = (0.1 * 500 / 5) ** 2 + 0.3
    assert covered(balls, camera, radii) == pytest.approx(2 * math.pi * math.log(127.5) * variance)


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [True, False])
def test_a_runs_step_is_timed_beside_its_bounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    overrides = ("steps=2", "blocks.decoder_freeze_rounds=0")
    config = make_config(write_tiny_scene(tmp_path / "scene"), tmp_path / "out", *overrides)
    train(config)
    (tmp_path / "out" / "config.yaml").write_text(dump_config(config))
    capsys.readouterr()
    out = tmp_path / "out"
    command = ["bench", "step", "-c", str(out / "config.yaml"), "-m", str(out), "--steps", "2"]
    assert cli_main.main([*command, *(["--json"] if as_json else []), "device=cpu"]) == 0
    printed = capsys.readouterr().out
    if as_json:
        found = json.loads(printed)
        assert list(found["parts"]) == list(PARTS)
        assert all(part["milliseconds"] > 0 and part["reached"] >= 0 for part in found["parts"].values())
        assert found["counts"]["decoders"] == 2 and found["machine"]["bytes_per_second"] > 0
    else:
        assert all(part in printed for part in PARTS) and "GB/s of a large copy" in printed
