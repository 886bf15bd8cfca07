"""``momentum-gs bench``: what the kernels are compared with gives the same results, and the table has all rows."""

import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import diff_gaussian_rasterization
import pytest
import torch
from diff_gaussian_rasterization import reference

from momentum_gs.bench import grow as bench_grow
from momentum_gs.bench.kernels import gsplat_draw, official_draw, raster_load, reference_draw, surface_points
from momentum_gs.cli import main as cli
from momentum_gs.render.rasterize import rasterize

CPU = torch.device("cpu")


def lines_of(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    assert cli.main(["bench", *argv, "--repeats", "1", "--threads", "1", "device=cpu"]) == 0
    machine, *lines = capsys.readouterr().out.splitlines()
    assert machine.startswith("device   cpu, 1 thread, kernels ")
    return lines


@pytest.mark.slow
def test_raster_compares_with_the_reference_and_says_why_with_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    head, *rows = lines_of(capsys, "raster", "--gaussians", "500", "--size", "80x60", "--original", "no_such_module")
    assert head.startswith("raster: 500 Gaussians, 80x60, torch") and "1 threads, medians of 1" in head
    assert any("gsplat: not compared (its compositing needs a GPU)" in row for row in rows)
    assert any("no_such_module: not compared (No module named" in row for row in rows)
    (ratio,) = (row for row in rows if "readable reference" in row)
    assert "the time of ours" in ratio and "image differs by" in ratio
    assert torch.get_num_threads() == threads  # --threads is undone


@pytest.mark.slow
def test_raster_compares_with_an_installed_original(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our rasterizer has the interface of the original, so it can be used in its place."""
    monkeypatch.setitem(sys.modules, "original_rasterizer", diff_gaussian_rasterization)
    rows = lines_of(capsys, "raster", "--gaussians", "500", "--size", "80x60", "--original", "original_rasterizer")
    (row,) = (row for row in rows if "original (original_rasterizer)" in row)
    assert float(row.split("differs by ")[1].split()[0]) < 1e-6


def test_ssim_and_knn_agree_with_what_they_are_compared_with(capsys: pytest.CaptureFixture[str]) -> None:
    rows = lines_of(capsys, "ssim", "--size", "60x40")
    assert len(rows) == 3 and float(rows[2].split("differs by ")[1]) < 1e-5
    pytest.importorskip("scipy", reason="the k-d tree that knn is compared with is scipy's")
    rows = lines_of(capsys, "knn", "--points", "3000")
    assert ["k-d tree of scipy" in rows[1], "all pairs in torch" in rows[2]] == [True, True]
    # All pairs in float32 subtract squares of coordinates up to 10: 1e-5 of squared distances of 0.03.
    for row in rows[1:]:
        assert float(row.split("differs by ")[1].split()[0]) < 1e-2


@pytest.mark.parametrize(
    "flag", [("--gaussians", "0"), ("--repeats", "0"), ("--threads", "-1"), ("--points", "4"), ("--anchors", "0")]
)
def test_a_load_of_nothing_is_refused(flag: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "raster", *flag, "device=cpu"]) == 2
    assert f"bench: {flag[0]} is {flag[1]}, expected at least" in capsys.readouterr().err


def test_a_size_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "raster", "--size", "large"])
    assert "invalid size value: 'large'" in capsys.readouterr().err


def test_step_asks_for_a_run_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "step", "device=cpu"]) == 2
    assert "bench: no output folder is given, expected that of a run; give -m OUT" in capsys.readouterr().err


@pytest.mark.parametrize("draw", [official_draw(diff_gaussian_rasterization), reference_draw(reference)])
def test_the_others_render_the_same_image(draw: object) -> None:
    gaussians, camera = raster_load(400, 60, 45, CPU)
    expected = rasterize(gaussians, camera, torch.zeros(3)).image
    assert expected.mean() > 0.05
    # float32; an alpha on the threshold 1/255 may fall on either side.
    assert (draw(gaussians, camera) - expected).abs().mean() < 1e-5


def test_gsplat_is_called_for_the_same_image() -> None:
    """It rasterizes on GPUs only; here the call is checked against its signature, and the camera in the call."""
    gsplat = pytest.importorskip("gsplat", reason="gsplat is not installed")
    gaussians, camera = raster_load(10, 60, 45, CPU)
    calls: list[inspect.BoundArguments] = []

    def rasterization(*args: object, **kwargs: object) -> tuple[torch.Tensor, None, None]:
        calls.append(inspect.signature(gsplat.rasterization).bind(*args, **kwargs))
        return torch.zeros(1, 45, 60, 3), None, None

    stand_in = ModuleType("gsplat")
    vars(stand_in).update(rasterization=rasterization)
    assert gsplat_draw(stand_in, packed=True)(gaussians, camera).shape == (3, 45, 60)
    asked = SimpleNamespace(**calls[0].arguments)
    assert asked.opacities.shape == (10,) and asked.viewmats.shape == (1, 4, 4) and asked.packed is True
    assert torch.equal(asked.Ks[0, :2, 2], torch.tensor([camera.cx, camera.cy]))


def test_the_load_is_as_described() -> None:
    gaussians, camera = raster_load(20_000, 160, 90, CPU)
    depth = gaussians.means[:, 2:]
    pixels = gaussians.scales * camera.fx / depth
    # Log-normal around 2.5 px with spread 0.5; 60000 draws: standard errors 0.002 and 0.0015.
    assert abs(pixels.log().mean() - torch.tensor(2.5).log()) < 0.01 and abs(pixels.log().std() - 0.5) < 0.01
    assert gaussians.opacities.min() >= 0.02 and gaussians.opacities.max() <= 0.92
    screen = gaussians.means[:, :2] / depth * camera.fx
    assert (screen.abs() <= torch.tensor([80.0, 45.0]) + 1e-3).all()
    assert surface_points(100, CPU).shape == (100, 3)


def test_grow_prints_ratios_and_agrees_with_the_plain_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_grow, "CHUNK", 300)  # So that there are several chunks, and the last is not full.
    head, small, large, plain = lines_of(capsys, "grow", "--anchors", "4000,1000", "model.n_offsets=3")
    assert head.startswith("grow: K = 3, F = 32, torch") and head.endswith("1 threads, medians of 1")
    assert small.split()[0] == "1000" and int(small.split()[2]) > 0
    assert plain.endswith("the time of ours, the same result")
    assert large.split()[0] == "4000" and large.endswith("the time for 4.00x the anchors")


def test_grow_notices_another_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_grow, "chunked_compare", lambda cells, taken: torch.zeros(len(cells), dtype=torch.bool))
    with pytest.raises(AssertionError, match="disagree"):
        cli.main(["bench", "grow", "--anchors", "4000", "--repeats", "1", "device=cpu"])


def test_swap_compares_the_store_with_torch_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows = lines_of(capsys, "swap", "--anchors", "1000", f"store.folder={tmp_path}")
    assert head.startswith("swap: a block of 1000 anchors, 1 MiB, offloaded and loaded")
    assert len(rows) == 3
    assert rows[0].endswith(" 1.0x")
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_swap_prints_how_long_a_run_waited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = tmp_path / "events.jsonl"
    assert cli.main(["bench", "swap", "--anchors", "10", "-m", str(tmp_path), "device=cpu"]) == 2
    assert f"{events}: no such file" in capsys.readouterr().err
    events.write_text('{"event": "RoundEnded", "step": 5, "waited": 0.5, "seconds": 20.0}\n')
    last = lines_of(capsys, "swap", "--anchors", "10", "-m", str(tmp_path))[-1]
    assert "waited 0.50 s for blocks in 20.0 s, 2.50 %" in last
