"""A scene with sub-folders, several sizes, extensions, alpha, grey, 16 bits and masks, from training to scores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scene_files import points, random_image, write_image
from tiny_run import BASE
from tiny_scene import nadir_camera

from momentum_gs.cli.main import main
from momentum_gs.core.errors import UserError
from momentum_gs.data.colmap.model import write_model
from momentum_gs.data.images import write_png
from momentum_gs.eval.metrics import score_folder, score_pair
from momentum_gs.eval.results import read_json, write_json

CPU = torch.device("cpu")
SIZES = {
    "east/1.png": (48, 36), "west/1.png": (36, 48), "west/1.jpg": (64, 40), "2.JPG": (48, 36), "ö.tif": (50, 30),
    "grey.png": (48, 36), "alpha.png": (48, 36), "deep.png": (48, 36),
}  # fmt: skip


def write_mixed_scene(root: Path) -> Path:
    cameras = []
    for i, (name, (width, height)) in enumerate(SIZES.items()):
        cameras.append(nadir_camera(name, 0.3 * i, 0.0).resized(width, height))
        pixels = random_image(name, width, height)
        if name == "grey.png":
            pixels = pixels[..., 0]
        elif name == "alpha.png":
            pixels = np.dstack([pixels, pixels[..., 0]])
        elif name == "deep.png":
            pixels = pixels.astype(np.uint16) * 257
        write_image(root / "images" / name, pixels)
        if name in ("east/1.png", "2.JPG"):
            mask = np.full((height, width), 255, np.uint8)
            mask[: height // 2] = 0
            write_image(root / "masks" / f"{name}.png", mask)
    write_model(root / "sparse" / "0", cameras, points(200))
    return root


@pytest.mark.slow
def test_everything_at_once_trains_renders_and_is_scored(tmp_path: Path) -> None:
    scene, out = write_mixed_scene(tmp_path / "scene"), tmp_path / "out"
    settings = ["stage=coarse", "steps=10", "device=cpu", "log.tensorboard=false", "model.voxel_size=0.1"]
    # Names in order: 2.JPG, alpha, deep, east/1, ...; every fourth is held out.
    settings += ["scene.test_every=4", "log.test_every=10"]
    assert main(["train", *BASE, "-s", str(scene), "-m", str(out), *settings]) == 0
    assert main(["render", str(out), "--split", "both"]) == 0
    assert main(["eval", str(out), "--lpips", "none"]) == 0
    folder = out / "test" / "ours_10"
    record = read_json(folder / "render.json")
    assert len(record["names"]) == 2 and len(record["masked"]) == 1 and "2" in record["masked"][0]
    assert (folder / "masks" / record["masked"][0]).is_file()
    trained = read_json(out / "train" / "ours_10" / "render.json")["names"]
    assert len(set(trained)) == 6, "equal names in two folders stay two"


@pytest.mark.slow
def test_ignored_pixels_do_not_reach_the_table(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    render, truth = (torch.rand(3, 24, 32, generator=draw) * 0.5 + 0.25 for _ in range(2))
    mask = torch.ones(1, 24, 32)
    mask[:, :, 20:] = 0
    noise = torch.where(mask.bool(), truth, torch.rand(3, 24, 32, generator=draw))
    assert score_pair(render, truth, None, mask) == score_pair(render, noise, None, mask)
    scores = score_pair(render, truth, None, mask)
    cut = score_pair(render[..., :20], truth[..., :20], None)
    # The same pixels summed in another order. SSIM differs, as windows at the border of the mask reach over it.
    assert scores["PSNR"] == pytest.approx(cut["PSNR"], rel=1e-5)
    assert scores["PSNR_cc"] == pytest.approx(cut["PSNR_cc"], rel=1e-5)


@pytest.mark.slow
def test_views_of_which_nothing_counts_are_left_out(tmp_path: Path) -> None:
    for name, level in (("0.png", 1.0), ("1.png", 0.0)):
        write_png(tmp_path / "renders" / name, torch.rand(3, 24, 32))
        write_png(tmp_path / "gt" / name, torch.rand(3, 24, 32))
        write_png(tmp_path / "masks" / name, torch.full((3, 24, 32), level))
    names = ["0.png", "1.png"]
    record = {"complete": True, "names": names, "masked": names}
    write_json(tmp_path / "render.json", record)
    scores = score_folder(tmp_path, None, CPU)
    assert list(scores.per_view["PSNR"]) == ["0.png"] and "masks_sha256" in scores.protocol
    write_json(tmp_path / "render.json", {**record, "masked": []})
    # Masks of an earlier rendering are not used.
    assert list(score_folder(tmp_path, None, CPU).per_view["PSNR"]) == names
    write_json(tmp_path / "render.json", {**record, "names": ["1.png"]})
    with pytest.raises(UserError, match="ignore every pixel"):
        score_folder(tmp_path, None, CPU)
