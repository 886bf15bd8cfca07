"""Scores of pairs of PNG files, the files with the scores, and the table that compares runs."""

import json
import math
import weakref
from pathlib import Path

import pytest
import torch

from momentum_gs.cli.main import main
from momentum_gs.core.errors import UserError
from momentum_gs.data.images import write_png
from momentum_gs.eval import metrics
from momentum_gs.eval.metrics import BlockErrors, error_map, score_folder, score_pair, view_names
from momentum_gs.eval.record import with_merge_gaps
from momentum_gs.eval.results import code_version, merge_json, png_names, read_json, view_list_hash, write_json
from momentum_gs.eval.table import Row, compare

CPU = torch.device("cpu")
GREY = 100
"""Level of the flat ground truth."""
METRICS = {"PSNR", "SSIM", "PSNR_cc", "SSIM_cc", "PSNR_right", "PSNR_fit", "SSIM_fit"}


def noise(seed: int, height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.25


def flat(level: int, height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.full((3, height, width), level / 255)


def write_pair(folder: Path, name: str, render: torch.Tensor, truth: torch.Tensor) -> None:
    write_png(folder / "renders" / name, render)
    write_png(folder / "gt" / name, truth)


@pytest.fixture()
def out(tmp_path: Path) -> Path:
    """A run whose two views are off by 1 and by 4 levels of 255 everywhere."""
    for name, difference in (("a/0.png", 1), ("1.png", 4)):
        write_pair(tmp_path / "run" / "test" / "ours_30", name, flat(GREY + difference), flat(GREY))
    return tmp_path / "run"


def test_equal_images_are_perfect() -> None:
    scores = score_pair(noise(0), noise(0), None)
    assert scores["PSNR"] == math.inf
    assert scores["SSIM"] == pytest.approx(1, abs=1e-6)  # float32 round-off of a mean of ones
    assert set(scores) == METRICS  # without a network there is no LPIPS


def test_color_correction_removes_exposure_and_the_raw_score_stays() -> None:
    truth = noise(1)
    scores = score_pair(truth * 0.8 + 0.05, truth, None)
    assert scores["PSNR"] < 30
    # The correction can express affine changes of colour; what is left is float32 round-off.
    assert scores["PSNR_cc"] > 90


def test_folder_scores_by_closed_form(out: Path) -> None:
    scores = score_folder(out / "test" / "ours_30", None, CPU)
    psnr = {"a/0.png": 20 * math.log10(255), "1.png": 20 * math.log10(255 / 4)}
    # The levels are read back from 8 bits exactly; float32 keeps 6 digits of the error's square.
    assert scores.per_view["PSNR"] == pytest.approx(psnr, rel=1e-5)
    assert scores.mean["PSNR"] == pytest.approx(sum(psnr.values()) / 2, rel=1e-5)
    assert scores.protocol["views"] == 2
    assert scores.protocol["resolution"] == {"32x24": 2}
    assert scores.protocol["view_list_sha256"] == view_list_hash(["1.png", "a/0.png"])


def test_eval_writes_the_files_of_3dgs_and_leaves_other_methods_alone(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "results.json").write_text(json.dumps({"ours_7": {"PSNR": 1.0}}))
    assert main(["eval", str(out), "--lpips", "none", "--markdown", str(out / "table.md")]) == 0
    results, per_view = read_json(out / "results.json"), read_json(out / "per_view.json")
    assert results["ours_7"] == {"PSNR": 1.0}
    assert set(per_view["ours_30"]["PSNR"]) == {"a/0.png", "1.png"}
    assert set(results["ours_30"]) == {*METRICS, "protocol"}
    for metric in ("PSNR", "SSIM", "SSIM_cc"):
        values = per_view["ours_30"][metric].values()
        assert results["ours_30"][metric] == sum(values) / 2
    assert results["ours_30"]["protocol"]["lpips"] is None
    printed = capsys.readouterr().out
    assert f"{results['ours_30']['PSNR']:.2f}" in printed and "LPIPS was left out" in printed
    assert (out / "table.md").read_text().startswith("| run | method | PSNR |")


def test_train_scores_do_not_touch_the_test_files(out: Path) -> None:
    write_pair(out / "train" / "ours_30", "2.png", noise(0), noise(1))
    assert main(["eval", str(out), "--split", "train", "--lpips", "none"]) == 0
    assert not (out / "results.json").exists()
    assert read_json(out / "results_train.json")["ours_30"]["protocol"]["split"] == "train"


def test_eval_without_renders_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(tmp_path), "--lpips", "none"]) == 2
    assert f"run 'momentum-gs render {tmp_path} --split test' first" in capsys.readouterr().err


@pytest.mark.parametrize("side", ["renders", "gt"])
def test_missing_half_of_a_pair_is_named(out: Path, side: str) -> None:
    folder = out / "test" / "ours_30"
    write_json(folder / "render.json", {"complete": True, "names": ["a/0.png", "1.png"]})
    (folder / side / "1.png").unlink()
    with pytest.raises(UserError, match=rf"{side}/1\.png: missing"):
        score_folder(folder, None, CPU)


def test_different_sizes_are_both_named(out: Path) -> None:
    write_png(out / "test" / "ours_30" / "gt" / "1.png", flat(0, 10, 12))
    with pytest.raises(UserError, match=r"renders/1\.png is 32x24 but .*gt/1\.png is 12x10"):
        score_folder(out / "test" / "ours_30", None, CPU)


def test_only_the_listed_views_of_a_finished_rendering_count(out: Path) -> None:
    folder = out / "test" / "ours_30"
    assert view_names(folder) == ["1.png", "a/0.png"]  # a folder of another program: all files count
    write_json(folder / "render.json", {"complete": True, "names": ["1.png"]})
    assert view_names(folder) == ["1.png"]  # a/0.png is left over from an older rendering
    write_json(folder / "render.json", {"complete": False})
    with pytest.raises(UserError, match="interrupted"):
        view_names(folder)


def test_png_names_keep_folders_and_never_collide() -> None:
    assert png_names(["a/1.jpg", "b/1.jpg", "c.d/2.x.JPG"]) == {
        "a/1.jpg": "a/1.png",
        "b/1.jpg": "b/1.png",
        "c.d/2.x.JPG": "c.d/2.x.png",
    }
    clash = png_names(["1.jpg", "1.tif", "2.tif"])
    assert clash == {"1.jpg": "1.jpg.png", "1.tif": "1.tif.png", "2.tif": "2.png"}


def test_json_without_infinity_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": {"PSNR": math.inf, "SSIM": 1.0}})
    merge_json(path, {"b": {"PSNR": 2.0}})
    assert read_json(path) == {"a": {"PSNR": None, "SSIM": 1.0}, "b": {"PSNR": 2.0}}
    assert list(tmp_path.iterdir()) == [path]
    path.write_text('{"a": ')
    with pytest.raises(UserError, match="results.json: not readable as JSON"):
        merge_json(path, {})
    assert path.read_text() == '{"a": '  # a damaged file is not overwritten


def row(run: str, names: str = "list", **changes: object) -> Row:
    protocol = {
        "split": "test",
        "views": 3,
        "view_list_sha256": view_list_hash([names]),
        "resolution": {"32x24": 3},
        "ground_truth_sha256": "0" * 64,
        "lpips": None,
        "anchors": 1234567,
        **changes,
    }
    return Row(run, "ours_1", {"PSNR": 20.0, "SSIM": 0.5, "PSNR_cc": 21.0, "protocol": protocol})


def lpips_of(net: str, **changes: str) -> dict[str, str]:
    return {"net": net, "version": "0.1", "input_range": "x", "trunk_sha256": "a" * 64, **changes}


def test_rows_scored_alike_share_a_table() -> None:
    text = compare([row("x"), row("y"), row("z", lpips=lpips_of("vgg"))])  # LPIPS left out is an empty cell
    assert "1,234,567" in text
    lines = text.splitlines()
    assert len({len(line) for line in lines[:5]}) == 1  # aligned: heading, rule and rows end in one column
    assert lines[2].split()[2:] == ["20.00", "0.5000", "-", "21.00", "-", "-", "-", "3", "1,234,567"]
    assert lines[0].split()[2:6] == ["PSNR", "SSIM", "LPIPS", "PSNR"]


@pytest.mark.parametrize(
    "other, named",
    [
        (row("y", "other"), "list of views"),
        (row("y", resolution={"64x48": 3}), "resolution 3 of 32x24 against 3 of 64x48"),
        (row("y", ground_truth_sha256="1" * 64), "ground truth 00000000 against 11111111"),
        (row("y", split="train"), "split test against train"),
        (row("y", masks_sha256="2" * 64), "masks none against 22222222"),
        (row("y", lpips=lpips_of("squeeze")), "LPIPS net vgg against squeeze"),
        (row("y", lpips=lpips_of("vgg", input_range="y")), "LPIPS input_range x against y"),
    ],
)
def test_rows_scored_differently_never_share_a_column(other: Row, named: str) -> None:
    rows = [row("x"), row("v", lpips=lpips_of("vgg")), other, row("z")]
    with pytest.raises(UserError, match="--separate") as error:
        compare(rows)
    assert named in str(error.value) and "\n" not in str(error.value)
    tables = compare(rows, separate=True).split("run  method")[1:]
    assert len(tables) == 2
    assert [line[0] for table in tables for line in table.splitlines() if "ours_1" in line] == ["x", "v", "z", "y"]


def test_another_network_has_its_own_column() -> None:
    squeeze = row("x", lpips=lpips_of("squeeze"))
    squeeze = Row("x", "ours_1", {**squeeze.record, "LPIPS_squeeze": 0.25, "LPIPS_squeeze_cc": 0.24})
    heading = compare([squeeze]).splitlines()[0]
    assert "LPIPS squeeze" in heading and "LPIPS squeeze cc" in heading
    assert "LPIPS  " not in heading  # only LPIPS with VGG has the plain name


def test_worst_blocks_of_different_cells_share_no_column() -> None:
    """Whatever the model, the worst of eight cells tends to be lower than the worst of two."""
    two, eight = (row(name, cells_sha256=name * 64) for name in "28")
    for one in (two, eight):
        one.record.update(worst_block={"block": 0, "PSNR": 18.5})  # type: ignore[attr-defined]
    assert "18.50" in compare([two, two])
    text = compare([two, eight])
    assert "18.50" not in text and "worst block left out" in text


def test_fitted_and_covered_scores_have_columns_if_any_row_has_them() -> None:
    old, new = row("x"), row("y", covered_sha256="c" * 64)
    new.record.update({"PSNR_fit": 21.5, "PSNR_covered": 22.25, "covered_share": 0.875})  # type: ignore[attr-defined]
    assert "fit" not in compare([old]) and "covered" not in compare([old])
    table = [line.split("|")[1:-1] for line in compare([old, new], markdown=True).splitlines() if line.startswith("|")]
    cells = [dict(zip([head.strip() for head in table[0]], map(str.strip, line), strict=True)) for line in table[2:]]
    wanted = {"PSNR fit (right half)": "21.50", "PSNR covered": "22.25", "covered %": "87.5"}
    assert wanted.items() <= cells[1].items() and cells[1]["PSNR"] == "20.00"
    assert dict.fromkeys(wanted, "-").items() <= cells[0].items()
    other = row("z", covered_sha256="d" * 64)
    other.record.update({"PSNR_covered": 23.25, "covered_share": 0.5})  # type: ignore[attr-defined]
    text = compare([new, other])
    assert "PSNR covered left out" in text and "22.25" not in text and "covered %" not in text


def test_a_view_without_scores_over_its_pixels_counts_in_no_mean(out: Path) -> None:
    """Its mask ignores the right half."""
    folder = out / "test" / "ours_30"
    mask = torch.ones(3, 24, 32)
    mask[:, :, 16:] = 0
    write_png(folder / "masks" / "1.png", mask)
    write_json(folder / "render.json", {"complete": True, "names": ["1.png", "a/0.png"], "masked": ["1.png"]})
    scores = score_folder(folder, None, CPU)
    assert set(scores.per_view["PSNR"]) == {"1.png", "a/0.png"}
    assert scores.per_view["PSNR_right"] == {"a/0.png": scores.mean["PSNR_right"]}


def test_markdown_is_rectangular() -> None:
    lines = [line for line in compare([row("x"), row("y")], markdown=True).splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_compare_reads_scores_and_scores_nothing(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = out.parent / "other"
    for run, level in ((out, 1), (other, 2)):
        write_pair(run / "test" / "ours_30", "1.png", flat(GREY + level), flat(GREY))
        write_pair(run / "test" / "ours_30", "a/0.png", flat(GREY), flat(GREY + level))
    assert main(["eval", "--compare", str(out), str(other)]) == 2
    assert f"run 'momentum-gs eval {out} --split test' first" in capsys.readouterr().err
    assert main(["eval", str(out), str(other), "--lpips", "none"]) == 0
    scored = capsys.readouterr().out
    assert scored.count(" method ") == 2  # their images differ: a table each
    before = (out / "results.json").read_bytes()
    assert main(["eval", "--compare", str(out), str(other)]) == 2
    assert "ground truth" in capsys.readouterr().err
    assert main(["eval", "--compare", "--separate", str(out), str(other)]) == 0
    assert capsys.readouterr().out == scored
    assert (out / "results.json").read_bytes() == before
    (out / "results.json").write_text(json.dumps({"ours_7": {"PSNR": 1.0}}))
    assert main(["eval", "--compare", str(out)]) == 2
    assert "ours_7 has no 'protocol'" in capsys.readouterr().err


def test_scoring_holds_a_few_images_whatever_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(12):
        write_pair(tmp_path / "ours_1", f"{i}.png", noise(i), noise(100 + i))
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0
    decode = metrics.read_image

    def counted(path: Path, width: int, height: int) -> torch.Tensor:
        nonlocal most
        image = decode(path, width, height)
        alive.add(image)
        most = max(most, len(alive))
        return image

    monkeypatch.setattr(metrics, "read_image", counted)
    assert score_folder(tmp_path / "ours_1", None, CPU).protocol["views"] == 12
    # The pair that is read, and the previous one, which variables may still refer to.
    assert 2 <= most <= 4


def test_errors_of_blocks_by_closed_form() -> None:
    errors = BlockErrors(3)
    truth = torch.zeros(3, 2, 4)
    # Block 0: two pixels inside, off by 0.1, and one near a border, off by 0.2. Block 2: one inside, off by 0.4.
    labels = torch.tensor([[0, 0, 1, 1], [2, 5, 0, 0]])
    render = torch.tensor([[0.9, 0.9, 0.1, 0.1], [0.2, 0.4, 0.9, 0.9]]).expand(3, -1, -1)
    errors.add(render, truth, labels)
    errors.add(render, truth, labels)  # the same view again changes no mean
    found = errors.summary()
    # Errors are float32: 6e-8 of a square is far below 1e-5 dB.
    psnr = {"0": -10 * math.log10((2 * 0.01 + 0.04) / 3), "2": -10 * math.log10(0.16)}
    assert {block: scores["PSNR"] for block, scores in found["blocks"].items()} == pytest.approx(psnr, abs=1e-5)
    assert {block: scores["pixels"] for block, scores in found["blocks"].items()} == {"0": 6, "2": 2}
    assert found["worst_block"] == {"block": 2, "PSNR": found["blocks"]["2"]["PSNR"]}
    assert found["border"] == {"PSNR": pytest.approx(-10 * math.log10(0.04), abs=1e-5), "share": 0.25}
    assert found["interior"] == {"PSNR": pytest.approx(-10 * math.log10(0.18 / 3), abs=1e-5), "share": 0.75}
    assert BlockErrors(3).summary() == {}


def test_merge_gap_is_after_minus_before_if_both_were_scored_alike() -> None:
    protocol = row("x").protocol
    after = {"PSNR": 20.0, "SSIM": None, "protocol": protocol, "merge_gap": {"PSNR": 9.0}}
    before = {"PSNR": 20.5, "SSIM": 0.5, "protocol": {**protocol, "anchors": 5}}
    assert with_merge_gaps({"ours_1": after, "ours_1_blocks": before})["ours_1"]["merge_gap"] == {"PSNR": -0.5}
    assert "merge_gap" not in with_merge_gaps({"ours_1": after})["ours_1"]  # an old gap does not stay
    # Scores over covered pixels have a gap only if the pixels are the same; the share of covered pixels has none.
    for sha, gap in (("a", {"PSNR": -0.5, "PSNR_covered": -1.0}), ("b", {"PSNR": -0.5})):
        one, two = (
            {**record, "PSNR_covered": psnr, "covered_share": 0.5, "protocol": {**protocol, "covered_sha256": by}}
            for record, psnr, by in ((after, 21.0, "a"), (before, 22.0, sha))
        )
        assert with_merge_gaps({"ours_1": one, "ours_1_blocks": two})["ours_1"]["merge_gap"] == gap
    windows = {**after, "protocol": {**protocol, "windows": True}}
    assert "merge_gap" not in with_merge_gaps({"ours_1": windows, "ours_1_blocks": before})["ours_1"]
    other = {**before, "protocol": row("x", "other").protocol}
    assert "merge_gap" not in with_merge_gaps({"ours_1": after, "ours_1_blocks": other})["ours_1"]


def test_range_of_the_error_map() -> None:
    truth = flat(128)
    assert error_map(truth, truth).max() == 0
    assert error_map(flat(0), truth).min() == 1  # an error of half the range is beyond the end of the scale


def test_code_version_names_package_and_commit() -> None:
    import momentum_gs

    words = code_version().split()
    assert words[0] == momentum_gs.__version__
    assert len(words) == 1 or len(words[1].removesuffix("+dirty")) == 40
