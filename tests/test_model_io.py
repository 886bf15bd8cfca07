"""Model files: bit-for-bit round trips, the layout of Scaffold-GS, and errors."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from anchor_scene import random_anchors, random_decoder
from plyfile import PlyData, PlyElement
from safetensors.torch import save_file

from momentum_gs.core.errors import UserError
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.io import DECODER_FILE, load_decoder, load_ply, save_decoder, save_ply

FLAGS = [
    {},
    {"add_opacity_dist": True, "add_cov_dist": True, "add_color_dist": True},
    {"use_feature_bank": True, "add_color_dist": True},
]


@pytest.mark.parametrize(("n", "n_offsets", "feature_dim"), [(0, 10, 32), (1, 4, 8), (57, 10, 32), (3, 1, 4)])
def test_ply_round_trip_is_bit_for_bit(tmp_path: Path, n: int, n_offsets: int, feature_dim: int) -> None:
    anchors = random_anchors(n, n_offsets, feature_dim)
    save_ply(tmp_path / "a.ply", anchors)
    again = load_ply(tmp_path / "a.ply")
    for name, row in anchors.rows().items():
        found = again.rows()[name]
        assert torch.equal(found, row) and found.dtype == torch.float32 and found.is_contiguous()
        assert found.requires_grad == row.requires_grad
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def test_ply_layout(tmp_path: Path) -> None:
    anchors = random_anchors(5, n_offsets=2, feature_dim=4)
    save_ply(tmp_path / "a.ply", anchors)
    header = (tmp_path / "a.ply").read_bytes().split(b"end_header")[0].decode().splitlines()
    assert header[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 5"]
    assert [line.removeprefix("property float ") for line in header[3:]] == [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_offset_{i}" for i in range(6)),
        *(f"f_anchor_feat_{i}" for i in range(4)),
        "opacity",
        *(f"scale_{i}" for i in range(6)),
        *(f"rot_{i}" for i in range(4)),
    ]
    vertices = PlyData.read(str(tmp_path / "a.ply"))["vertex"]
    # All x of the offsets, then all y, then all z.
    for i in range(6):
        assert np.array_equal(vertices[f"f_offset_{i}"], anchors.offset[:, i % 2, i // 2].detach().numpy())
    assert np.array_equal(vertices["scale_4"], anchors.log_scale[:, 4].detach().numpy())
    assert not vertices["nx"].any()


def test_79_numbers_an_anchor_in_the_default_model(tmp_path: Path) -> None:
    for n in (1, 11):
        save_ply(tmp_path / f"{n}.ply", random_anchors(n, 10, 32))
    # The header of 11 anchors is one character longer; 316 bytes an anchor is what published models have.
    assert (tmp_path / "11.ply").stat().st_size - (tmp_path / "1.ply").stat().st_size == 10 * 316 + 1


def test_properties_are_found_by_name(tmp_path: Path) -> None:
    """Order, extra properties, ASCII and float64 do not matter."""
    anchors = random_anchors(3, n_offsets=2, feature_dim=4)
    save_ply(tmp_path / "a.ply", anchors)
    table = PlyData.read(str(tmp_path / "a.ply"))["vertex"].data
    names = [*reversed(table.dtype.names), "label"]
    other = np.zeros(3, dtype=[(name, "f8") for name in names])
    for name in table.dtype.names:
        other[name] = table[name]
    PlyData([PlyElement.describe(other, "vertex")], text=True).write(str(tmp_path / "b.ply"))
    again = load_ply(tmp_path / "b.ply")
    assert all(torch.equal(again.rows()[name], row) for name, row in anchors.rows().items())


def write_vertices(path: Path, *names: str) -> None:
    PlyData([PlyElement.describe(np.zeros(2, dtype=[(name, "f4") for name in names]), "vertex")]).write(str(path))


def test_a_ply_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    write_vertices(path, "x", "y", "z", "f_dc_0", "opacity", "scale_0", "rot_0")
    with pytest.raises(UserError, match="no property 'f_offset_0'"):
        load_ply(path)
    save_ply(path, random_anchors(2, n_offsets=2, feature_dim=4))
    names = PlyData.read(str(path))["vertex"].data.dtype.names
    write_vertices(path, *names, "f_offset_6")
    with pytest.raises(UserError, match="7 offset numbers"):
        load_ply(path)
    write_vertices(path, *(name for name in names if name != "f_anchor_feat_1"))
    with pytest.raises(UserError, match="no property 'f_anchor_feat_1'"):
        load_ply(path)


def test_a_missing_or_damaged_ply_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    with pytest.raises(UserError, match="no such file"):
        load_ply(path)
    save_ply(path, random_anchors(50))
    whole = path.read_bytes()
    for damaged in (
        b"",
        b"not a ply",
        whole[: len(whole) // 2],
        whole[:40],
        whole.replace(b"vertex 50", b"vertex 99999999999"),
        whole.replace(b"element vertex", b"element corner"),
        whole.replace(b"float x", b"string x"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="a.ply"):
            load_ply(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_ply(tmp_path / "a.ply", random_anchors(4))
    before = (tmp_path / "a.ply").read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("momentum_gs.model.ply.np.ascontiguousarray", full_disk)  # After the header is written.
    with pytest.raises(OSError, match="no space"):
        save_ply(tmp_path / "a.ply", random_anchors(5))
    assert (tmp_path / "a.ply").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("flags", FLAGS)
def test_decoder_round_trip_is_bit_for_bit(tmp_path: Path, flags: dict[str, bool]) -> None:
    decoder = random_decoder(**flags)
    save_decoder(tmp_path, decoder)
    state = torch.random.get_rng_state()
    again = load_decoder(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert again.architecture == decoder.architecture
    assert again.state_dict().keys() == decoder.state_dict().keys()
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, decoder.get_parameter(name)) and parameter.requires_grad


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # Scaffold-GS reads TorchScript.
@pytest.mark.parametrize("flags", FLAGS)
def test_torchscript_heads_reproduce_the_decoder(tmp_path: Path, flags: dict[str, bool]) -> None:
    decoder = random_decoder(**flags)
    save_decoder(tmp_path, decoder)
    rng = torch.Generator().manual_seed(0)
    for name in [head for head in ("opacity", "cov", "color", "feature_bank") if getattr(decoder, head) is not None]:
        head = getattr(decoder, name)
        n_in = 4 if name == "feature_bank" else 8 + 3 + flags.get(f"add_{name}_dist", False)
        values = torch.randn(9, n_in, generator=rng)
        loaded = torch.jit.load(str(tmp_path / f"{name}_mlp.pt"))
        assert torch.equal(loaded(values), head(values))
    expected = {DECODER_FILE, "opacity_mlp.pt", "cov_mlp.pt", "color_mlp.pt"}
    expected |= {"feature_bank_mlp.pt"} if "use_feature_bank" in flags else set()
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_saving_leaves_the_decoder_in_training_mode(tmp_path: Path) -> None:
    decoder = random_decoder()
    save_decoder(tmp_path, decoder)
    assert decoder.training and all(p.requires_grad for p in decoder.parameters())


def test_a_missing_or_damaged_decoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / DECODER_FILE
    with pytest.raises(UserError, match="no such file"):
        load_decoder(tmp_path)
    save_decoder(tmp_path, random_decoder())
    whole = path.read_bytes()
    for damaged in (
        b"",
        whole[: len(whole) // 2],
        struct.pack("<Q", 2**60) + whole[8:],
        whole.replace(b"feature_dim", b"feature_dam"),
        whole.replace(b'\\"n_offsets\\": 4', b'\\"n_offsets\\": 5'),
    ):
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=DECODER_FILE):
            load_decoder(tmp_path)
    save_file(GaussianDecoder(8, 4).state_dict(), path)
    with pytest.raises(UserError, match="architecture"):
        load_decoder(tmp_path)
