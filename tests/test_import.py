"""Models that other programs trained: read without running them, the same Gaussians, in the run's coordinates."""

import json
import pickletools
import zipfile
from pathlib import Path

import pytest
import torch
from anchor_scene import parity, parity_anchors, parity_decoder, random_anchors, random_decoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from splat_scene import random_splats
from tiny_run import BASE, SETTINGS, make_config, model_of, train
from tiny_scene import nadir_camera, write_tiny_scene
from torch import Tensor, nn

from momentum_gs.cli.main import main
from momentum_gs.config.run import load_run_config
from momentum_gs.core.errors import UserError
from momentum_gs.data.frame import Axes, Frame
from momentum_gs.data.scene import load_scene
from momentum_gs.eval.results import read_json
from momentum_gs.formats.foreign import read_cfg_args, read_foreign
from momentum_gs.formats.move import anchors_to_frame, splats_to_frame
from momentum_gs.formats.official import read_official_decoder
from momentum_gs.formats.torchscript import read_torchscript
from momentum_gs.formats.write import with_degree, write_splats
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import HEADS, GaussianDecoder
from momentum_gs.model.expand import decode
from momentum_gs.model.io import load_model, model_file, model_folder, save_ply
from momentum_gs.model.splat_io import load_splats, save_splats
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.view import render_image

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # The official code writes what torch deprecates.
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]

FLAGS: list[dict[str, bool]] = [
    {}, {"add_opacity_dist": True}, {"add_cov_dist": True, "add_color_dist": True}, {"use_feature_bank": True},
    {"use_feature_bank": True, "add_opacity_dist": True, "add_cov_dist": True, "add_color_dist": True},
]  # fmt: skip
BLACK = torch.zeros(3)


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("tiny"), points=400)


def small_anchors(n: int = 300, n_offsets: int = 4, feature_dim: int = 8) -> Anchors:
    """Random anchors on the ground of the tiny scene."""
    anchors = random_anchors(n, n_offsets, feature_dim)
    with torch.no_grad():
        anchors.position *= torch.tensor([3.0, 3.0, 0.2])
        anchors.log_scale += 0.7
    return anchors


def ground(n: int = 300, degree: int = 3) -> Splats:
    """Random Gaussians on the ground of the tiny scene."""
    splats = random_splats(n, degree)
    with torch.no_grad():
        splats.position *= torch.tensor([3.0, 3.0, 0.2])
        splats.sh_rest *= 0.2
    return splats


def save_official(folder: Path, anchors: Anchors, decoder: GaussianDecoder, cfg_args: str = "") -> Path:
    """A model as the official code writes it: a PLY, and each head traced on its own; returns the output folder."""
    inner = folder / "point_cloud" / "iteration_30000"
    inner.mkdir(parents=True)
    save_ply(inner / "point_cloud.ply", anchors)
    heads = {name: getattr(decoder, name) for name in HEADS}
    if decoder.feature_bank is not None:
        heads["feature_bank"] = decoder.feature_bank
    for name, head in heads.items():
        torch.jit.trace(head.eval(), torch.rand(1, head[0].in_features)).save(inner / f"{name}_mlp.pt")
    (folder / "cfg_args").write_text(cfg_args)
    return folder


# TorchScript archives.


@pytest.mark.parametrize("how", ["traced", "scripted"])
def test_weights_are_read_from_an_archive(tmp_path: Path, how: str) -> None:
    head = random_decoder().opacity
    module = torch.jit.script(head) if how == "scripted" else torch.jit.trace(head, torch.rand(2, 11))
    module.save(tmp_path / "a.pt")
    found = read_torchscript(tmp_path / "a.pt")
    assert found.kind == "Sequential"
    for name, value in head.state_dict().items():
        layer, _, part = name.partition(".")
        inner = found.module(layer)
        assert inner is not None and inner.kind == "Linear"
        tensor = inner.tensor(part)
        assert tensor is not None and torch.equal(tensor, value)


def test_half_precision_and_views_of_a_storage_are_read(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            both = torch.arange(12.0).reshape(3, 4)
            self.register_buffer("turned", both.T)
            self.register_buffer("part", both[1:, 2])
            self.register_buffer("short", both.half())

        def forward(self, x: Tensor) -> Tensor:
            return x + self.turned.sum() + self.part.sum() + self.short.sum()

    torch.jit.trace(Two(), torch.rand(1)).save(tmp_path / "a.pt")
    found = read_torchscript(tmp_path / "a.pt")
    for name, value in Two().state_dict().items():
        tensor = found.tensor(name)
        assert tensor is not None and torch.equal(tensor, value.float())


def rewritten(path: Path, **entries: bytes | None) -> Path:
    """The archive with other contents of the entries that end so; None: without them."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    endings = {name.replace("__", "/").replace("_pkl", ".pkl"): value for name, value in entries.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in content.items():
            new = next((value for end, value in endings.items() if name.endswith(end)), old)
            if new is not None:
                archive.writestr(name, new)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.jit.trace(random_decoder().opacity, torch.rand(2, 11)).save(tmp_path / "a.pt")
    return tmp_path / "a.pt"


CALL = b"\x80\x02cos\nsystem\nX\x05\x00\x00\x00falseq\x00\x85R."
OBJECT = b"\x80\x02csubprocess\nPopen\n)\x81}b."


def test_nothing_that_an_archive_asks_for_is_called(archive: Path) -> None:
    assert [code.name for code, *_ in pickletools.genops(CALL)][-2:] == ["REDUCE", "STOP"]
    for instructions, what in ((CALL, "a call of 'os system'"), (OBJECT, "an object of")):
        with pytest.raises(UserError, match=f"not readable without running it .*{what}"):
            read_torchscript(rewritten(archive, data_pkl=instructions))


def test_the_code_of_an_archive_does_not_matter(archive: Path) -> None:
    rewritten(archive, **{"container.py": b"raise SystemExit", "linear.py": None})
    assert read_torchscript(archive).module("0") is not None


def test_tensors_stay_within_their_numbers(archive: Path) -> None:
    instructions = next(
        zipfile.ZipFile(archive).read(n) for n in zipfile.ZipFile(archive).namelist() if n.endswith("/data.pkl")
    )
    assert b"K\x08K\x0b" in instructions  # The size (8, 11) of the first weight; its stride begins with the same 11.
    for old, new in ((b"K\x08K\x0b", b"K\x09K\x0b"), (b"K\x0bK\x01\x86", b"K\xffK\xff\x86"), (b"K\x58", b"K\xff")):
        changed = instructions.replace(old, new)
        if changed != instructions:
            with pytest.raises(UserError, match="expected a TorchScript archive"):
                read_torchscript(rewritten(archive, data_pkl=changed))
            rewritten(archive, data_pkl=instructions)
    with pytest.raises(UserError, match="expected a TorchScript archive"):
        read_torchscript(rewritten(archive, data__0=b"\0" * 8))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=5), st.booleans())
def test_damaged_archives_are_read_or_refused(archive: Path, changes: list[tuple[int, int]], inner: bool) -> None:
    whole = archive.read_bytes()
    try:
        if inner:
            with zipfile.ZipFile(archive) as file:
                data = bytearray(file.read(next(n for n in file.namelist() if n.endswith("/data.pkl"))))
        else:
            data = bytearray(whole)
        for at, value in changes:
            data[at % len(data)] = value
        if inner:
            rewritten(archive, data_pkl=bytes(data))
        else:
            archive.write_bytes(bytes(data))
        try:
            read_torchscript(archive)
        except UserError as error:
            assert str(archive) in str(error) and "\n" not in str(error)
    finally:
        archive.write_bytes(whole)


# Official decoders.


def test_the_figures_of_the_original_decoder(tmp_path: Path) -> None:
    figures = parity("decoder")
    save_official(tmp_path, parity_anchors(), parity_decoder("student"))
    foreign = read_foreign(tmp_path)
    assert isinstance(foreign.model, Anchors) and foreign.decoder is not None and foreign.iteration == 30000
    rows = figures["visible"].bool().nonzero()[:, 0]
    with torch.no_grad():
        gaussians = decode(foreign.model, foreign.decoder, figures["camera_center"], rows).gaussians
    for name, found in (("xyz", gaussians.means), ("color", gaussians.colors), ("opacity", gaussians.opacities),
                        ("scale", gaussians.scales)):  # fmt: skip
        torch.testing.assert_close(found, figures[name])


@pytest.mark.parametrize("flags", FLAGS)
def test_a_model_in_the_official_layout_comes_back_bit_for_bit(tmp_path: Path, flags: dict[str, bool]) -> None:
    anchors, decoder = small_anchors(), random_decoder(**flags)
    foreign = read_foreign(save_official(tmp_path, anchors, decoder))
    assert foreign.decoder is not None and foreign.decoder.architecture == decoder.architecture
    for name, value in decoder.state_dict().items():
        assert torch.equal(foreign.decoder.state_dict()[name], value)
    for name, rows in anchors.rows().items():
        assert torch.equal(foreign.model.rows()[name], rows)
    assert foreign.settings["model.use_feature_bank"] == flags.get("use_feature_bank", False)


def unite(inner: Path, decoder: GaussianDecoder, codes: Tensor | None = None) -> Path:
    """Replaces the archives by the one file of the official mode 'unite'."""
    heads = {name: getattr(decoder, name) for name in HEADS}
    if decoder.feature_bank is not None:
        heads["feature_bank"] = decoder.feature_bank
    found = {f"{name}_mlp": head.state_dict() for name, head in heads.items()}
    for archive in inner.glob("*_mlp.pt"):
        archive.unlink()
    if codes is not None:
        found["appearance"] = Codes(codes).state_dict()
    torch.save(found, inner / "checkpoints.pth")
    return inner / "checkpoints.pth"


@pytest.mark.parametrize("flags", FLAGS[-1:])
def test_one_file_with_all_heads_is_read_without_running_it(tmp_path: Path, flags: dict[str, bool]) -> None:
    decoder = random_decoder(**flags)
    inner = save_official(tmp_path, small_anchors(), decoder) / "point_cloud/iteration_30000"
    file = unite(inner, decoder)
    foreign = read_foreign(tmp_path)
    assert foreign.decoder is not None and foreign.decoder.architecture == decoder.architecture
    for name, value in decoder.state_dict().items():
        assert torch.equal(foreign.decoder.state_dict()[name], value)
    found = torch.load(file, weights_only=True)
    found["opacity_mlp"]["4.weight"] = torch.zeros(4, 4)
    torch.save(found, file)
    with pytest.raises(UserError, match="checkpoints.pth: opacity_mlp holds 0.weight, .*expected heads of two linear"):
        read_foreign(tmp_path)
    del found["opacity_mlp"]
    torch.save(found, file)
    with pytest.raises(UserError, match="no state dicts of opacity_mlp, cov_mlp, color_mlp"):
        read_foreign(tmp_path)
    for content in (CALL, b"", b"PK"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="not readable without running .* mode='split'"):
            read_foreign(tmp_path)


class Codes(nn.Module):
    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(table)

    def forward(self, index: Tensor) -> Tensor:
        return self.embedding(index)


@pytest.mark.parametrize("chosen", [None, 2])
def test_an_appearance_code_becomes_part_of_the_bias(tmp_path: Path, chosen: int | None) -> None:
    rng = torch.Generator().manual_seed(1)
    codes = torch.randn(5, 6, generator=rng)
    save_official(tmp_path, small_anchors(), random_decoder())
    inner = tmp_path / "point_cloud" / "iteration_30000"
    with torch.random.fork_rng():
        torch.manual_seed(2)
        color = nn.Sequential(nn.Linear(8 + 3 + 6, 8), nn.ReLU(True), nn.Linear(8, 12), nn.Sigmoid())
    torch.jit.trace(color, torch.rand(1, 17)).save(inner / "color_mlp.pt")
    torch.jit.trace(Codes(codes), torch.zeros(1, dtype=torch.long)).save(inner / "embedding_appearance.pt")
    decoder, count = read_official_decoder(inner, 8, 4, chosen)
    assert count == 5
    feature, direction = torch.randn(7, 8, generator=rng), torch.randn(7, 3, generator=rng)
    code = codes.mean(dim=0) if chosen is None else codes[chosen]
    expected = color(torch.cat([feature, direction, code.expand(7, -1)], dim=1))
    torch.testing.assert_close(decoder(feature, direction, torch.ones(7, 1)).color.flatten(1), expected)
    united = random_decoder()
    united.color = color
    unite(inner, united, codes)
    again, count = read_official_decoder(inner, 8, 4, chosen)
    assert count == 5 and torch.equal(again.color[0].bias, decoder.color[0].bias)
    with pytest.raises(UserError, match="5 appearance codes, expected --appearance from 0 to 4"):
        read_official_decoder(inner, 8, 4, 5)


# Coordinates.

AXES: list[Axes] = [("x", "y", "z"), ("y", "z", "x"), ("x", "-z", "y"), ("-y", "x", "z"), ("-z", "-x", "y")]


@pytest.mark.parametrize("axes", AXES)
def test_a_moved_model_looks_the_same(axes: Axes) -> None:
    frame = Frame((3.0, -2.0, 0.5), 0.4, axes, normalized=True)
    camera = nadir_camera("a.png", 0.5, -0.25)
    there = Frame.camera(frame, camera)
    splats = ground()
    here = render_image(splats, Harmonics(3), camera, BLACK)
    assert here.std() > 0.1
    moved = render_image(splats_to_frame(splats, frame), Harmonics(3), there, BLACK)
    assert (moved - here).abs().max() < 2e-3 and (moved - here).abs().mean() < 2e-5

    for flags in FLAGS:
        anchors, decoder = small_anchors(), random_decoder(**flags)
        with torch.no_grad():  # The official code's anchors are not rotated.
            anchors.rotation.copy_(torch.tensor([1.0, 0, 0, 0]).expand(len(anchors), 4))
        here = render_image(anchors, decoder, camera, BLACK)
        assert here.std() > 0.02
        moved = render_image(*anchors_to_frame(anchors, decoder, frame), there, BLACK)
        assert (moved - here).abs().max() < 5e-3 and (moved - here).abs().mean() < 5e-5


def test_a_frame_without_change_changes_nothing() -> None:
    splats, anchors, decoder = ground(5), small_anchors(5), random_decoder()
    assert splats_to_frame(splats, Frame()) is splats
    assert anchors_to_frame(anchors, decoder, Frame()) == (anchors, decoder)


# The command.


def imported(out: Path) -> tuple[object, ...]:
    return load_model(model_file(model_folder(out)))


@pytest.mark.slow
def test_an_official_model_is_rendered_and_scored(scene_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: E501
    anchors, decoder = small_anchors(), random_decoder()
    text = f"Namespace(white_background=True, source_path='{scene_folder}', resolution=1, voxel_size=0.02, x=open('y'))"
    source = save_official(tmp_path / "official", anchors, decoder, text)
    out = tmp_path / "out"
    assert main(["import", str(source), "-m", str(out)]) == 0
    assert f"300 anchors of {source} -> {out}" in capsys.readouterr().out
    config = load_run_config(out)
    assert config.stage == "coarse" and config.scene.white_background and config.model.voxel_size == 0.02
    assert config.scene.path == str(scene_folder) and config.steps == 30000
    assert {file.name for file in out.iterdir()} >= {"config.yaml", "cfg_args", "cameras.json", "input.ply"}
    model, own = imported(out)
    camera = load_scene(config.scene).test[0]
    white = torch.ones(3)
    assert torch.equal(render_image(model, own, camera, white), render_image(anchors, decoder, camera, white))
    assert main(["render", str(out)]) == 0 and main(["eval", str(out)]) == 0
    assert read_json(out / "results.json")["ours_30000"]["PSNR"] > 3

    with pytest.raises(UserError, match="holds a run, expected a new folder"):
        raise_of(["import", str(source), "-m", str(out)], capsys)
    with pytest.raises(UserError, match="a run of momentum-gs .* expected a model of another program"):
        raise_of(["import", str(out), "-m", str(tmp_path / "again")], capsys)


def raise_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Raises what the command complains about."""
    capsys.readouterr()
    assert main(arguments) == 2
    raise UserError(capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".ply", ".splat", ".spz", ".compressed.ply"])
def test_files_of_gaussians_become_runs(scene_folder: Path, tmp_path: Path, kind: str) -> None:
    splats = with_degree(ground(), 0) if kind == ".splat" else ground()
    write_splats(tmp_path / f"a{kind}", splats)
    arguments = ["-s", str(scene_folder), "-m", str(tmp_path / "out"), "scene.resolution=1"]
    assert main(["import", str(tmp_path / f"a{kind}"), *arguments]) == 0
    config = load_run_config(tmp_path / "out")
    assert config.model.primitive == "gaussians" and config.gaussians.sh_degree == splats.sh_degree
    model, harmonics = imported(tmp_path / "out")
    camera = load_scene(config.scene).test[0]
    found = render_image(model, harmonics, camera, BLACK)
    expected = render_image(splats, Harmonics(splats.sh_degree), camera, BLACK)
    assert (found - expected).pow(2).mean() < {".ply": 1e-12}.get(kind, 1e-3)  # 30 dB


def test_without_a_scene_the_coordinates_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splats = ground(20)
    with torch.no_grad():
        splats.position += 10_000  # A scene there would be shifted if nothing were recorded.
    save_splats(tmp_path / "a.ply", splats)
    assert main(["import", str(tmp_path / "a.ply"), "-m", str(tmp_path / "out")]) == 0
    assert "no scene is known" in capsys.readouterr().out
    assert load_run_config(tmp_path / "out").scene.offset == (0, 0, 0)
    assert torch.equal(imported(tmp_path / "out")[0].position, splats.position)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="scene.unit=auto without a scene"):
        raise_of(["import", str(tmp_path / "a.ply"), "-m", str(tmp_path / "b"), "scene.unit=auto"], capsys)


def test_a_model_of_another_place_is_doubted(
    scene_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splats = ground(50)
    with torch.no_grad():
        splats.position += torch.tensor([0.0, 0.0, 1000.0])
    save_splats(tmp_path / "a.ply", splats)
    assert main(["import", str(tmp_path / "a.ply"), "-s", str(scene_folder), "-m", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "0% of the model is in view of the scene's cameras" in said.out + said.err


@pytest.mark.slow
@pytest.mark.parametrize("primitive", ["gaussians", "anchors"])
def test_blocks_start_from_an_imported_model(scene_folder: Path, tmp_path: Path, primitive: str) -> None:
    """With normalized coordinates, to which the model is converted; the cameras are assigned with it, too."""
    if primitive == "gaussians":
        save_splats(tmp_path / "a.ply", ground(400, 0))
        source = tmp_path / "a.ply"
        mode = ["-c", str(Path(__file__).parents[1] / "configs/modes/gaussians.yaml"), "gaussians.sh_degree=1"]
    else:
        source = save_official(tmp_path / "official", small_anchors(400), random_decoder())
        mode = ["blocks.from_coarse=true", "model.feature_dim=8", "blocks.decoder_freeze_rounds=0"]
    out = tmp_path / "out"
    scene = [f"scene.path={scene_folder}", "scene.unit=auto", "scene.resolution=1"]
    assert main(["import", str(source), "-m", str(out / "coarse"), *scene, *mode[2:3]]) == 0
    coarse = load_run_config(out / "coarse").scene
    assert coarse.unit != 1
    run = [*scene[1:], "-m", str(out), *SETTINGS, *mode, "steps=5"]
    run += ["partition.threshold=0.001", "partition.min_views=0"]
    assert main(["partition", str(scene_folder), *BASE, *run]) == 0
    assert main(["train", "-s", str(scene_folder), *BASE, *run]) == 0
    assert load_run_config(out).scene.unit == coarse.unit
    assert len(model_of(out)) > 4


def test_blocks_in_other_coordinates_refuse_it(scene_folder: Path, tmp_path: Path) -> None:
    save_splats(tmp_path / "a.ply", ground(400))
    coarse = tmp_path / "coarse"
    assert main(["import", str(tmp_path / "a.ply"), "-s", str(scene_folder), "-m", str(coarse), "scene.unit=2.0"]) == 0
    off = ("teacher.enabled=false", "blocks.boundary_finetuning=false", "blocks.offset_clamping=false")
    changes = ("model.primitive=gaussians", *off, f"partition.coarse={coarse}")
    config = make_config(scene_folder, tmp_path / "out", *changes)
    with pytest.raises(UserError, match="scene.unit, scene.offset and scene.axes are 2.0"):
        train(config)


# What is refused.


def test_what_cannot_be_imported_has_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "chkpnt30000.pth").write_bytes(CALL)
    with pytest.raises(UserError, match="a Python checkpoint, which can run code .* save its .ply"):
        read_foreign(tmp_path / "chkpnt30000.pth")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="neither a folder nor one of"):
        read_foreign(tmp_path / "a.txt")
    with pytest.raises(UserError, match="no such file or folder"):
        read_foreign(tmp_path / "nothing")
    with pytest.raises(UserError, match="no trained model"):
        read_foreign(tmp_path)


def test_other_descendants_of_scaffold_gs_are_refused(tmp_path: Path) -> None:
    inner = save_official(tmp_path, small_anchors(), random_decoder()) / "point_cloud/iteration_30000"
    plain = (inner / "point_cloud.ply").read_bytes()
    (inner / "point_cloud.ply").write_bytes(plain.replace(b"property float nz\n", b"property float level\n"))
    with pytest.raises(UserError, match="the property 'level', expected the anchors of Scaffold-GS"):
        read_foreign(tmp_path)
    (inner / "point_cloud.ply").write_bytes(plain)
    deep = nn.Sequential(nn.Linear(11, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    torch.jit.trace(deep, torch.rand(1, 11)).save(inner / "opacity_mlp.pt")
    with pytest.raises(UserError, match="opacity_mlp.pt: layers Linear, ReLU, Linear, ReLU, expected heads of two"):
        read_foreign(tmp_path)
    wide = random_decoder(feature_dim=16).opacity
    torch.jit.trace(wide, torch.rand(1, 19)).save(inner / "opacity_mlp.pt")
    with pytest.raises(UserError, match="19 inputs and 4 outputs for features of 8 and 4 offsets"):
        read_foreign(tmp_path)
    (inner / "opacity_mlp.pt").unlink()
    with pytest.raises(UserError, match="opacity_mlp.pt: no such file"):
        read_foreign(tmp_path)


def test_gaussians_that_are_flat_are_refused(tmp_path: Path) -> None:
    """2DGS and CityGaussianV2 have two scales."""
    save_splats(tmp_path / "a.ply", ground(5, 0))
    data = (tmp_path / "a.ply").read_bytes().replace(b"property float scale_2\n", b"property float other_2\n")
    (tmp_path / "a.ply").write_bytes(data)
    with pytest.raises(UserError, match="no property 'scale_2'"):
        read_foreign(tmp_path / "a.ply")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    splats = ground(5)
    with torch.no_grad():
        splats.opacity[3] = torch.inf
    save_splats(tmp_path / "a.ply", splats)
    with pytest.raises(UserError, match="opacity holds numbers that are not finite"):
        read_foreign(tmp_path / "a.ply")


@pytest.mark.parametrize("text", ["", "Namespace(", "__import__('os').system('false')", "Namespace(resolution=[1])",
                                  "Namespace(**x)", "1", "Namespace(white_background=1)"])  # fmt: skip
def test_cfg_args_are_only_literals(tmp_path: Path, text: str) -> None:
    (tmp_path / "cfg_args").write_text(text)
    assert read_cfg_args(tmp_path / "cfg_args") == {}


def test_an_output_folder_of_3dgs(tmp_path: Path) -> None:
    folder = tmp_path / "point_cloud" / "iteration_7000"
    folder.mkdir(parents=True)
    save_splats(folder / "point_cloud.ply", ground(9))
    (tmp_path / "cfg_args").write_text("Namespace(sh_degree=3, images='images_4', resolution=-1)")
    foreign = read_foreign(tmp_path)
    assert foreign.iteration == 7000 and foreign.settings["scene.images"] == "images_4"
    assert json.dumps(foreign.settings) and torch.equal(
        foreign.model.position, load_splats(folder / "point_cloud.ply").position
    )
