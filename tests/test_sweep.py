"""Sweeps: files, folders of runs, interrupted jobs, spread over seeds, tables."""

import argparse
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_gs.cli import sweep as command
from momentum_gs.config.load import dump_config
from momentum_gs.config.schema import Config
from momentum_gs.config.sweep import MODES, Sweep, SweepRow, load_sweep
from momentum_gs.core.errors import UserError
from momentum_gs.eval.results import config_hash
from momentum_gs.experiments import sweep as sweep_module
from momentum_gs.experiments.figure import draw_sweep
from momentum_gs.experiments.plan import (
    Request,
    coarse_config,
    experiment,
    finished,
    initialization_folder,
    partition_folder,
    row_config,
    run_folder,
)
from momentum_gs.experiments.runner import Job, Stage, run_jobs, stages_done
from momentum_gs.experiments.scores import METRICS, RunScores, check_protocols, ordering, paired, read_scores, spread
from momentum_gs.experiments.table import SweepResults, statements, to_csv, to_json, to_latex, to_markdown

PSNR, SSIM, LPIPS = (next(metric for metric in METRICS if metric.key == key) for key in ("PSNR", "SSIM", "LPIPS"))
numbers = st.floats(-100, 100)


def arguments_of(sweep: Path, scene: Path, out: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_intermixed_args([str(sweep), "-s", str(scene), "-m", str(out), *words])


def arguments(*words: str) -> argparse.Namespace:
    return arguments_of(Path("sweep.yaml"), Path("scene"), Path("out"), *words)


def request(*words: str) -> Request:
    return command.request_of(arguments(*words))


def config_of(*settings: str, given: tuple[str, ...] = (), seed: int = 0, **row: Any) -> Config:
    return row_config(request(*given), SweepRow(name="row", settings=settings, paper={}, **row), seed)


# --- sweep files ---


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, "grid: {teacher.momentum: [0, 0.9], partition.dim: [[2, 2, 1], null]}"))
    cells = [(f"teacher.momentum={m}", f"partition.dim={dim}") for m in ("0", "0.9") for dim in ("[2,2,1]", "null")]
    assert [row.settings for row in sweep.rows] == cells
    assert sweep.reference == "teacher.momentum=0 partition.dim=[2 2 1]" and sweep.seeds == (0, 1, 2)


def test_rows_take_the_mode_and_the_settings_of_the_file(tmp_path: Path) -> None:
    text = "mode: full\nset: [a=1]\nseeds: [4]\nrows:\n- {name: one}\n- {name: two, mode: momentum, set: [b=2]}"
    one, two = load_sweep(write(tmp_path, text)).rows
    assert one.mode is not None and one.mode.stem == "full" and one.settings == ("a=1",)
    assert two.mode is not None and two.mode.stem == "momentum" and two.settings == ("a=1", "b=2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: []", "neither rows nor grid"),
        ("rowss: []", "rowss"),
        ("rows: [{name: a, sett: []}]", "sett"),
        ("rows: [{set: []}]", "no name"),
        ("rows: [{name: a}, {name: a}]", "'a'"),
        ("rows: [{name: 'a, b'}]", "comma"),
        ("rows: [{name: a}]\nreference: b", "reference is 'b'"),
        ("rows: [{name: a}]\ncompare: [[a, b]]", "compare is 'b'"),
        ("rows: [{name: a}]\ncompare: [a]", "pairs"),
        ("rows: [{name: a}]\nseeds: [x]", "seeds"),
        ("rows: [{name: a, mode: fulll}]", "'fulll', expected one of"),
        ("rows: [{name: a, stretch: 0}]", "stretch"),
        ("rows: [{name: a, paper: {B: [1, 2]}}]\nsource: s", "paper"),
        ("rows: [{name: a, paper: {B: [1, 2, 3]}}]", "source"),
        ("grid: {a: 1}", "grid"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_sweep(write(tmp_path, text))
    assert message in str(caught.value) and "\n" not in str(caught.value)


# --- settings and folders of runs ---


def test_the_row_beats_its_mode_which_beats_the_file(tmp_path: Path) -> None:
    file, mode = tmp_path / "file.yaml", tmp_path / "mode.yaml"
    file.write_text("steps: 10\nblocks: {interval: 11, active: 2}")
    mode.write_text("blocks: {interval: 12, active: 3}")
    config = config_of("blocks.active=4", given=("-c", str(file), "teacher.momentum=0.5"), mode=mode)
    assert (config.steps, config.blocks.interval, config.blocks.active, config.teacher.momentum) == (10, 12, 4, 0.5)


@pytest.mark.parametrize(
    "given", ["teacher.momentum=0.5", "seed=3", "partition.file=x.json", "stage=coarse", "steps=3 passes"]
)
def test_a_setting_of_the_sweep_on_the_command_line_is_refused(given: str) -> None:
    with pytest.raises(UserError, match=given.split("=")[0]):
        config_of("teacher.momentum=0.9", given=(given,))


def test_stretching_scales_the_settings_that_follow_the_length_of_the_run() -> None:
    one, eight = config_of(), config_of(stretch=8)
    for setting in (lambda c: c.steps, lambda c: c.optim.lr_steps, lambda c: c.growth.until):
        assert setting(eight) == 8 * setting(one)
    assert eight.growth.interval == one.growth.interval


def test_the_folder_of_a_run_depends_on_the_settings_that_change_its_model(tmp_path: Path) -> None:
    same = [
        config_of(),
        config_of("device=cpu", "log.every=3", "store.ram_gb=1", "scene.cache_gb=1", "partition.balance=points"),
        config_of("teacher.momentum=0.9"),  # The default, given explicitly.
        config_of("gaussians.until=7"),  # Has no effect on a model of anchors.
    ]
    others = [config_of(seed=1), config_of("steps=7"), config_of("scene.resolution=2"), config_of("blocks.active=4")]
    assert len({run_folder(tmp_path, config) for config in same}) == 1
    assert len({run_folder(tmp_path, config) for config in [same[0], *others]}) == 1 + len(others)


@pytest.mark.parametrize(
    ("settings", "earlier"),
    [  # Folders of version 0.1.0, where the settings were called blocks.settle, blocks.confine and blocks.decoder=own.
        (
            ("blocks.boundary_finetuning=false", "blocks.offset_clamping=false"),
            "n8-k1-teacher-weighting-seed0-65fbaa943c",
        ),
        (
            ("blocks.decoder=per_block", "teacher.enabled=false", "blocks.boundary_finetuning=false",
             "blocks.decoder_freeze_rounds=0"),
            "n8-k1-own-weighting-seed0-db639bd3c6",
        ),
    ],
)  # fmt: skip
def test_a_run_of_the_release_before_is_found_in_its_folder(
    tmp_path: Path, settings: tuple[str, ...], earlier: str
) -> None:
    config = config_of(*settings)
    assert run_folder(tmp_path, config).name != earlier
    (tmp_path / "runs" / earlier).mkdir(parents=True)
    assert run_folder(tmp_path, config).name == earlier
    assert run_folder(tmp_path, config_of(*settings, seed=1)).name != earlier


def test_seeds_and_training_share_a_partition(tmp_path: Path) -> None:
    base = partition_folder(tmp_path, config_of())
    assert partition_folder(tmp_path, config_of("teacher.enabled=false", "blocks.active=3", seed=5)) == base
    for other in ("partition.blocks=4", "partition.balance=area", "scene.resolution=2"):
        assert partition_folder(tmp_path, config_of(other)) != base


def test_rows_of_gaussians_start_from_a_coarse_model_of_gaussians_in_the_same_blocks(tmp_path: Path) -> None:
    mode = MODES / "gaussians.yaml"
    row = SweepRow(name="row", mode=mode, paper={})
    config, coarse = row_config(request(), row, 3), coarse_config(request(), row)
    assert config.starts_from_coarse and coarse.stage == "coarse" and coarse.model.primitive == "gaussians"
    assert partition_folder(tmp_path, config) == partition_folder(tmp_path, config_of())
    four = coarse_config(request(), replace(row, settings=("partition.blocks=4", "blocks.active=2")))
    other = coarse_config(request("steps=7"), row)
    folders = [initialization_folder(tmp_path, config) for config in (four, coarse, other)]
    assert folders[0] == folders[1] != folders[2]


def test_settings_added_since_do_not_change_the_folders_of_runs() -> None:
    assert set(experiment(Config())) <= {"partition.balance"}


# --- scores of runs ---


def protocol(**changes: Any) -> dict[str, Any]:
    return {"view_list_sha256": "v", "resolution": {"8x6": 2}, "ground_truth_sha256": "g", "split": "test",
            "lpips": {"net": "vgg"}, "anchors": 12, "storage_bytes": 2_500_000} | changes  # fmt: skip


def write_run(folder: Path, config: Config, psnr: float = 20.0) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    entry = {"PSNR": psnr, "SSIM": 0.5, "LPIPS": None, "blocks": {"0": {"PSNR": 19.0}, "1": {"PSNR": 18.0}},
             "merge_gap": {"PSNR": -0.25}, "protocol": protocol(config_sha256=config_hash(folder))}  # fmt: skip
    (folder / "results.json").write_text(json.dumps({"ours_9": entry, "ours_9_blocks": entry}))


def test_scores_are_read_only_from_whole_results_of_these_settings(tmp_path: Path) -> None:
    config = config_of()
    folder = run_folder(tmp_path, config)
    assert read_scores(folder) is None and not finished(folder, config)
    write_run(folder, config)
    scores = read_scores(folder)
    assert scores is not None and finished(folder, config)
    found = {"PSNR": 20, "SSIM": 0.5, "merge_gap_PSNR": -0.25, "anchors": 12, "storage_MB": 2.5}
    assert scores.numbers == {**found, "worst_block_PSNR": 18} and scores.without_blocks().numbers == found
    with pytest.raises(UserError, match="steps=the default, expected 7"):
        finished(folder, config_of("steps=7"))
    entries = json.loads((folder / "results.json").read_text())
    entries["ours_9"] |= {"PSNR_fit": 21.0, "PSNR_covered": 22.0, "covered_share": 0.875}
    (folder / "results.json").write_text(json.dumps(entries))
    more = read_scores(folder)
    assert more is not None and more.without_blocks().numbers == found | {
        "PSNR_fit": 21, "PSNR_covered": 22, "covered_percent": 87.5
    }  # fmt: skip
    (folder / "config.yaml").write_text(dump_config(config_of("log.every=3")))  # Trained again since it was scored.
    assert not finished(folder, config)


def test_spread_and_paired_difference_in_closed_form() -> None:
    found = spread([1.0, 2.0, 3.0])
    assert found is not None and (found.mean, found.sd, found.n) == (2, 1, 3)
    assert found.error == pytest.approx(1 / math.sqrt(3), rel=1e-15)
    one = spread([7.0])
    assert one is not None and (one.mean, one.sd, one.error, one.n) == (7, None, None, 1)
    assert spread([]) is None and paired({0: 1.0}, {1: 1.0}) is None


@given(st.dictionaries(st.integers(0, 9), numbers, min_size=2), numbers)
def test_pairing_removes_the_effect_of_a_seed_on_both_rows(values: dict[int, float], step: float) -> None:
    found = paired({seed: value + step for seed, value in values.items()}, values | {99: 1.0})
    assert found is not None and found.sd is not None and found.n == len(values)
    # Sums and differences of numbers up to 200 round by 3e-14.
    assert found.mean == pytest.approx(step, abs=1e-12) and found.sd < 1e-12


@pytest.mark.parametrize(
    ("metric", "values", "verdict"),
    [
        # A mean of 1; sd 0.1 has a standard error of 0.058, of which 1 is 17; sd 1 has 0.58, of which 1 is 1.7.
        (PSNR, [0.9, 1.0, 1.1], "better"),
        (PSNR, [-0.9, -1.0, -1.1], "worse"),
        (LPIPS, [0.9, 1.0, 1.1], "worse"),
        (PSNR, [0.0, 1.0, 2.0], "not told apart"),
        (PSNR, [5.0], "not told apart"),
        (PSNR, [0.0, 0.0], "not told apart"),
    ],
)
def test_an_ordering_needs_two_standard_errors(metric: Any, values: list[float], verdict: str) -> None:
    found = spread(values)
    assert found is not None and ordering(metric, found) == verdict


def test_runs_that_were_scored_differently_share_no_table() -> None:
    run = RunScores({}, protocol())
    check_protocols({"a": run, "b": run})
    for other in ({"resolution": {"4x3": 2}}, {"view_list_sha256": "w"}, {"lpips": {"net": "alex"}}):
        with pytest.raises(UserError, match="a and b"):
            check_protocols({"a": run, "b": RunScores({}, protocol(**other))})


# --- tables ---


@pytest.fixture
def results() -> SweepResults:
    """Row b is better in PSNR beyond the spread, worse in SSIM; the paper says better in both. Row c has not run."""
    rows = [SweepRow(name=name, paper=paper) for name, paper in
            (("a_1", {"Building": (20.0, 0.5, 0.4)}), ("b", {"Building": (21.0, 0.6, 0.3)}), ("c", {}))]  # fmt: skip
    sweep = Sweep(name="s", title="T", source="P & Q", rows=tuple(rows), reference="a_1", compare=(), seeds=(0, 1, 2))
    psnr = {"a_1": [20.0, 22.0, 24.0], "b": [21.0, 23.0, 25.1]}
    runs = {
        name: {seed: RunScores({"PSNR_cc": value, "SSIM_cc": value / 100 if name == "a_1" else 0.1}, protocol())
               for seed, value in enumerate(values)}
        for name, values in psnr.items()
    }  # fmt: skip
    folders = {row.name: dict.fromkeys(range(3), "f") for row in rows}
    return SweepResults(sweep, {**runs, "c": {}}, folders, {"scene": "tiny"}, {"c, seed 0": "out of memory"})


def cells(markdown: str) -> list[list[str]]:
    """Rows of the first table of a markdown text, head first."""
    rows = markdown.split("\n\n")[3].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if not row.startswith("|--")]


def test_markdown_has_mean_and_spread_and_the_papers_columns_apart(results: SweepResults) -> None:
    head, a, b = cells(to_markdown(results))
    # Row c has no run and LPIPS has no value, so there is no line for c and no column for LPIPS.
    paper = ["paper, Building: PSNR cc", "paper, Building: SSIM cc", "paper, Building: LPIPS cc"]
    assert head == ["row", "seeds", "PSNR cc", "SSIM cc", *paper]
    assert a == ["a_1", "3", "22.00 ± 2.00", "0.2200 ± 0.0200", "20.00", "0.500", "0.400"]
    assert b[:4] == ["b", "3", "23.03 ± 2.05", "0.1000 ± 0.0000"]
    assert "c, seed 0: out of memory" in to_markdown(results)


def test_statements_compare_rows_and_name_the_papers_difference(results: SweepResults) -> None:
    # Differences 1, 1, 1.1: mean 1.033, standard error 0.033; and -0.1, -0.12, -0.14: error 0.012.
    assert statements(results) == [
        "b against a_1: PSNR cc +1.03 ± 0.03 (3 seeds): better; the paper has +1.00 on Building, the same order",
        "b against a_1: SSIM cc -0.1200 ± 0.0115 (3 seeds): worse; the paper has +0.100 on Building, the reverse order",
    ]


def test_csv_and_json_hold_the_same_numbers(results: SweepResults) -> None:
    data = to_json(results)
    table = list(csv.DictReader(to_csv(results).splitlines()))
    assert [row["row"] for row in table] == ["a_1", "b"]
    for line, row in zip(table, data["rows"], strict=False):
        assert line["row"] == row["row"]
        for key in ("PSNR_cc", "SSIM_cc"):
            assert float(line[f"{key}_mean"]) == row["spread"][key]["mean"]
            assert float(line[f"{key}_sd"]) == row["spread"][key]["sd"]
    difference = data["differences"][0]["PSNR_cc"]
    assert float(table[1]["PSNR_cc_minus_reference"]) == difference["mean"] == pytest.approx(3.1 / 3, rel=1e-12)
    assert float(table[1]["PSNR_cc_minus_reference_error"]) == difference["error"]
    assert data["rows"][1]["runs"]["2"]["PSNR_cc"] == 25.1


def test_covered_pixels_have_a_column_if_all_runs_were_scored_with_the_same_maps(results: SweepResults) -> None:
    def scored(*maps: str | None) -> SweepResults:
        numbers = {"PSNR_fit": 21.0, "PSNR_covered": 22.0, "covered_percent": 87.5}
        runs = {name: {0: RunScores(numbers, protocol(covered_sha256=sha))}
                for name, sha in zip(("a_1", "b"), maps, strict=True)}  # fmt: skip
        return replace(results, runs={**runs, "c": {}})

    assert cells(to_markdown(scored("x", "x")))[0][2:5] == ["PSNR fit (right half)", "PSNR covered", "covered %"]
    assert cells(to_markdown(scored("x", "y")))[0][2:4] == ["PSNR fit (right half)", "paper, Building: PSNR cc"]


def test_latex_rows_have_the_columns_that_the_head_declares(results: SweepResults) -> None:
    tables = to_latex(results).split(r"\begin{tabular}{")[1:]
    assert len(tables) == 2
    for table in tables:
        columns, _, body = table.partition("}")
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows and all(row.count(" & ") == len(columns) - 1 for row in rows)
    assert r"a\_1" in tables[0] and r"$\pm$" in tables[0] and "±" not in to_latex(results)


@pytest.mark.slow
def test_the_figure_has_a_place_for_every_row(results: SweepResults, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib (extra 'plot')")
    raw = {row: {seed: RunScores({"PSNR": run.numbers["PSNR_cc"]}, run.protocol) for seed, run in seeds.items()}
           for row, seeds in results.runs.items()}  # fmt: skip
    draw_sweep(tmp_path / "s.png", SweepResults(results.sweep, raw, results.folders, {}))
    from momentum_gs.data.images import image_size

    width, height = image_size(tmp_path / "s.png")
    assert (width, height) == (5 * 120, 2 * 120)  # One panel, two rows, 120 dots an inch.


# --- jobs ---


def test_slots_share_the_cores_and_take_turns_on_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    gpus: list[str] = []
    monkeypatch.setattr(sweep_module, "visible_gpus", lambda _: gpus)
    assert sweep_module._slots(None, Config()) == [{"OMP_NUM_THREADS": "8"}]
    assert sweep_module._slots(3, Config()) == [{"OMP_NUM_THREADS": "2"}] * 3
    gpus += ["4", "6"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # What the user has set is kept.
    assert sweep_module._slots(None, Config()) == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("4", "6")]
    assert sweep_module._slots(3, Config()) == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("4", "6", "4")]


def test_the_command_line_refuses_what_would_mix_runs(tmp_path: Path) -> None:
    sweep = write(tmp_path, "rows: [{name: a}]")

    def refusal(scene: str, *words: str) -> str:
        with pytest.raises(UserError) as caught:
            command.run(arguments_of(sweep, tmp_path / scene, tmp_path / "out", *words))
        return str(caught.value)

    assert "no run is finished" in refusal("one", "--table")
    assert "holds runs of" in refusal("two", "--table")
    assert "--only names 'b'" in refusal("one", "--only", "b")
    assert "--jobs is -1" in refusal("one", "--jobs", "-1")


def job(folder: Path, *codes: str, names: str = "abcdef") -> Job:
    """A job whose stages run Python code; each stage writes a file with its name."""
    stages = tuple(
        Stage(name, (sys.executable, "-c", f"import time, sys, os; open({str(folder / name)!r}, 'w'); {code}"), name)
        for name, code in zip(names, codes, strict=False)
    )
    return Job(folder.name, folder, "", stages, lambda: len(stages_done(folder)) == len(stages), lambda: None)


def never() -> bool:
    return False


def test_stages_run_in_order_and_never_twice(tmp_path: Path) -> None:
    log = tmp_path / "order"
    note = "open({!r}, 'a').write('{}')"
    jobs = [job(tmp_path / "x", *(note.format(str(log), name) for name in "abc"))]
    assert run_jobs(jobs, [{}], never) == {} and log.read_text() == "abc"
    assert run_jobs(jobs, [{}], never) == {} and log.read_text() == "abc"


@pytest.mark.slow
def test_a_failed_job_is_named_with_its_last_output_and_the_others_go_on(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path / "bad", "sys.exit('out of luck')", "pass"),
        job(tmp_path / "shot", "os.kill(os.getpid(), 9)"),
        job(tmp_path / "empty", f"os.remove({str(tmp_path / 'empty' / 'a')!r})"),
        job(tmp_path / "good", "pass"),
    ]
    failed = run_jobs(jobs, [{}, {}], never)
    assert failed.keys() == {"bad", "shot", "empty"}
    assert "out of luck" in failed["bad"] and "SIGKILL" in failed["shot"] and "before its end" in failed["empty"]
    assert stages_done(tmp_path / "good") == ["a"] and stages_done(tmp_path / "bad") == []
    # What failed is tried again, from the stage that failed.
    jobs[0] = job(tmp_path / "bad", "pass", "pass")
    assert run_jobs(jobs[:1], [{}], never) == {}


@pytest.mark.slow
def test_a_job_waits_for_what_it_needs_and_fails_with_it(tmp_path: Path) -> None:
    """With a slot for each, a job that did not wait would not find the file that the first one writes at its end."""
    end = tmp_path / "end"
    first = job(tmp_path / "first", f"time.sleep(0.5); open({str(end)!r}, 'w')")
    second = replace(job(tmp_path / "second", f"os.stat({str(end)!r})"), needs=("first",))
    broken = job(tmp_path / "broken", "sys.exit(1)")
    lost = replace(job(tmp_path / "lost", "pass"), needs=("broken", "first"))
    assert run_jobs([lost, second, first, broken], [{}] * 4, never).keys() == {"broken", "lost"}
    assert not lost.log.exists()


def test_jobs_run_side_by_side_each_in_its_slot(tmp_path: Path) -> None:
    """Each job waits for the file of the other one: one after the other, they would hang."""
    wait = (
        "name = os.environ['SLOT']; open({!r} + name, 'w')\n"
        "while len([f for f in os.listdir({!r}) if f.startswith('slot')]) < 2:\n"
        "    time.sleep(0.01)"
    ).format(str(tmp_path / "slot"), str(tmp_path))
    jobs = [job(tmp_path / name, wait) for name in ("one", "two")]
    assert run_jobs(jobs, [{"SLOT": "0"}, {"SLOT": "1"}], never) == {}


@pytest.mark.slow
def test_a_command_keeps_the_lock_when_its_sweep_is_killed(tmp_path: Path) -> None:
    """A new sweep does not start the job while the old command runs; it continues the job when that has ended."""
    folder, started, go, order = tmp_path / "x", tmp_path / "x" / "a", tmp_path / "go", tmp_path / "order"
    note = f"open({str(order)!r}, 'a').write"
    old = f"pass\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\n{note}('old ')"
    script = (
        "from pathlib import Path; from test_sweep import job, never, run_jobs\n"
        f"run_jobs([job(Path({str(folder)!r}), {old!r})], [{{}}], never)"
    )
    places = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    sweep = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": places})
    while not started.exists():
        assert sweep.poll() is None
        time.sleep(0.02)
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    asked = 0

    def let_the_old_one_end() -> bool:
        """Called whenever the new sweep looks for work; after it found the lock taken twice, the old command ends."""
        nonlocal asked
        asked += 1
        if asked == 3:
            go.touch()
        return False

    assert run_jobs([job(folder, f"{note}('new ')")], [{}], let_the_old_one_end) == {}
    assert order.read_text() == "old new "
    assert (folder / "sweep.log").read_text().count("== a") == 2


def test_stopping_ends_the_commands_and_keeps_what_is_done(tmp_path: Path) -> None:
    told, listening = tmp_path / "told", tmp_path / "listening"
    listen = (
        f"import signal; signal.signal(15, lambda *_: (open({str(told)!r}, 'w'), sys.exit(0)))\n"
        f"open({str(listening)!r}, 'w')\n"
        "while True: signal.pause()"
    )
    jobs = [job(tmp_path / "x", "pass", listen), job(tmp_path / "y", "pass")]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, [{}], listening.exists)
    assert told.exists() and stages_done(tmp_path / "x") == ["a"] and not (tmp_path / "y").exists()


@pytest.mark.slow
def test_lost_results_are_made_again(tmp_path: Path) -> None:
    """All stages are done, but the job is not finished: its last stage runs again."""
    done: Callable[[], bool] = (tmp_path / "x" / "b").exists
    one = Job("x", tmp_path / "x", "", job(tmp_path / "x", "pass", "pass").stages, done, lambda: None)
    assert run_jobs([one], [{}], never) == {}
    (tmp_path / "x" / "b").unlink()
    assert run_jobs([one], [{}], never) == {} and done()
    assert (tmp_path / "x" / "sweep.log").read_text().count("== a") == 1
