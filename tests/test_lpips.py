"""LPIPS: it has published values, and missing weights are not replaced by anything."""

import hashlib
import importlib.util
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from momentum_gs.core.errors import UserError
from momentum_gs.data.images import image_size, read_image
from momentum_gs.eval.lpips_metric import LpipsMissing, _download, load_lpips, torchvision_schemas
from momentum_gs.eval.metrics import score_pair

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lpips") is None or importlib.util.find_spec("torchvision") is None,
    reason="lpips and torchvision (the extra 'eval') are not installed",
)

SQUEEZE = "squeezenet1_1-b8a52dc0.pth"
WEIGHTS = Path(os.environ.get("MOMENTUM_GS_SHARED", Path(__file__).parents[1].parent / "shared")) / "weights"
needs_weights = pytest.mark.skipif(
    not (WEIGHTS / SQUEEZE).exists(), reason=f"no {SQUEEZE} below MOMENTUM_GS_SHARED or ../shared (weights/)"
)
CPU = torch.device("cpu")


@pytest.fixture()
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty TORCH_HOME and no network access; the folder in which torchvision keeps its files."""

    def no_network(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    yield checkpoints


def example(name: str) -> torch.Tensor:
    path = WEIGHTS / name
    return read_image(path, *image_size(path)).float() / 255


@needs_weights
def test_published_values(torch_home: Path) -> None:
    shutil.copy(WEIGHTS / SQUEEZE, torch_home)
    metric = load_lpips("squeeze", None, CPU)
    reference = example("ex_ref.png")
    # Four digits are published, for images stretched to [-1, 1].
    for name, value in (("ex_p0.png", 0.7110), ("ex_p1.png", 0.1479)):
        assert metric(reference, example(name), normalize=True) == pytest.approx(value, abs=5e-5)
    assert metric(reference, reference) == 0
    # torchmetrics documents 0.1008 for the mean over these ten pairs.
    noise = torch.Generator().manual_seed(123)
    images, others = (torch.rand(10, 3, 100, 100, generator=noise) for _ in range(2))
    pairs = zip(images, others, strict=True)
    assert sum(metric(a, b, normalize=True) for a, b in pairs) / 10 == pytest.approx(0.1008, abs=5e-5)


@needs_weights
@torch.no_grad()
@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_same_as_the_package_with_its_own_loader(torch_home: Path) -> None:
    shutil.copy(WEIGHTS / SQUEEZE, torch_home)
    metric = load_lpips("squeeze", WEIGHTS, CPU)
    import lpips

    theirs = lpips.LPIPS(net="squeeze", verbose=False)
    a, b = torch.rand(2, 3, 40, 64, generator=torch.Generator().manual_seed(0))
    assert metric(a, b) == float(theirs(a[None], b[None]))  # the same operations on the same weights
    assert metric(a, b) != metric(a, b, normalize=True)
    assert metric(a, b, normalize=True) == float(theirs(2 * a[None] - 1, 2 * b[None] - 1))


@needs_weights
def test_provenance() -> None:
    about = load_lpips("squeeze", WEIGHTS, CPU).about()
    assert about["net"] == "squeeze"
    assert about["input_range"] == "LPIPS_squeeze, LPIPS_squeeze_cc: [0,1]; LPIPS_squeeze_norm: [-1,1]"
    assert about["trunk_sha256"] == hashlib.sha256((WEIGHTS / SQUEEZE).read_bytes()).hexdigest()


@needs_weights
def test_scores_of_another_network_than_vgg_have_its_name() -> None:
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    scores = score_pair(image, image.flip(1), load_lpips("squeeze", WEIGHTS, CPU))
    names = {"LPIPS_squeeze", "LPIPS_squeeze_cc", "LPIPS_squeeze_fit", "LPIPS_squeeze_norm"}
    assert {name for name in scores if name.startswith("LPIPS")} == names


def test_missing_weights_are_named_and_not_replaced(torch_home: Path) -> None:
    with pytest.raises(LpipsMissing, match=rf"vgg16-397923af\.pth is not in {torch_home}.*put it there") as error:
        load_lpips("vgg", None, CPU)
    assert "\n" not in str(error.value)
    assert list(torch_home.iterdir()) == []


def test_given_folder_must_hold_the_file(torch_home: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no alexnet-owt-7be5be79\.pth") as error:
        load_lpips("alex", tmp_path, CPU)
    assert not isinstance(error.value, LpipsMissing)  # a wrong setting is not a missing network


def test_damaged_weights(torch_home: Path) -> None:
    (torch_home / SQUEEZE).write_bytes(b"half a file")
    with pytest.raises(UserError, match=rf"{SQUEEZE}: not torchvision's squeeze weights"):
        load_lpips("squeeze", None, CPU)


def test_unknown_network() -> None:
    with pytest.raises(UserError, match="'resnet', expected one of vgg, alex, squeeze"):
        load_lpips("resnet", None, CPU)


def test_a_download_must_match_the_hash_in_its_name(tmp_path: Path) -> None:
    content = b"weights"
    good = tmp_path / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    bad = tmp_path / "net-00000000.pth"
    for path in (good, bad):
        path.write_bytes(content)
    target = tmp_path / "kept"
    _download(good.as_uri(), target / good.name)
    assert (target / good.name).read_bytes() == content
    with pytest.raises(ValueError, match="SHA-256"):
        _download(bad.as_uri(), target / bad.name)
    assert [path.name for path in target.iterdir()] == [good.name]


def test_schemas_are_declared_once() -> None:
    assert torchvision_schemas() is torchvision_schemas()
    import torchvision

    assert torchvision.models.vgg16 is not None
