"""LPIPS as 3DGS papers report it: the ``lpips`` package, its trunk's weights from torchvision.

The trunk is looked for in a folder that the user names, then in ``$TORCH_HOME/hub/checkpoints``, and only then
downloaded. Where it cannot be had the metric is missing: another network gives another number, so none stands in.
"""

import contextlib
import hashlib
import importlib.util
import urllib.request
import warnings
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.log import info, progress

NETS = ("vgg", "alex", "squeeze")
"""Trunks of the ``lpips`` package; 3DGS papers use vgg."""


def metric_name(net: str) -> str:
    """Name of the number: plain ``LPIPS`` is that of 3DGS papers, with vgg; no other network's goes by that name."""
    return "LPIPS" if net == "vgg" else f"LPIPS_{net}"


_CONNECT_TIMEOUT = 10.0
"""Seconds without a byte after which a download is given up: long for a slow server, short for a missing network."""


class LpipsMissing(UserError):
    """LPIPS cannot be computed here; the message says what to install or which file to put where."""


class Lpips:
    """The metric with its provenance. Build it with :func:`load_lpips`."""

    def __init__(self, net: str, trunk: Path, model: torch.nn.Module, device: torch.device) -> None:
        self.net = net
        self.metric = metric_name(net)
        self.trunk = trunk
        self._model = model.to(device)

    @torch.no_grad()
    def __call__(self, image: Float[Tensor, "3 h w"], truth: Float[Tensor, "3 h w"], normalize: bool = False) -> float:
        """Distance of two images in [0, 1]; 0 for equal ones, smaller is better.

        ``normalize=False`` hands [0, 1] to the network, as 3DGS, Scaffold-GS and Momentum-GS do
        (MGS metrics.py::evaluate); ``True`` stretches to [-1, 1] first, as the package documents.
        """
        return float(self._model(image[None], truth[None], normalize=normalize))

    def about(self) -> dict[str, str]:
        """What another person needs to get the same number."""
        return {
            "net": self.net,
            "package": f"lpips {version('lpips')}, torchvision {version('torchvision')}",
            "version": "0.1",
            "input_range": f"{self.metric}, {self.metric}_cc: [0,1]; {self.metric}_norm: [-1,1]",
            "trunk": self.trunk.name,
            "trunk_sha256": hashlib.sha256(self.trunk.read_bytes()).hexdigest(),
        }


def load_lpips(net: str, weights: Path | None, device: torch.device) -> Lpips:
    """The metric with trunk ``net``; ``weights`` is a folder that holds the trunk's file (or a TORCH_HOME).

    Raises :class:`LpipsMissing` where a package or the trunk's weights cannot be had, UserError where ``weights`` was
    given and does not hold them, or where the file is damaged.
    """
    if net not in NETS:
        raise UserError(f"lpips: network {net!r}, expected one of {', '.join(NETS)} or none")
    for package in ("lpips", "torchvision"):
        if importlib.util.find_spec(package) is None:
            raise LpipsMissing(f"LPIPS left out: package {package} is not installed; pip install 'momentum-gs[eval]'")
    torchvision_schemas()
    import lpips

    trunk = _find_trunk(net, weights)
    with warnings.catch_warnings():
        # lpips 0.1.4 asks torchvision for the trunk with a keyword that torchvision deprecated.
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        # A random trunk that is filled below: lpips itself would go to the network for it.
        model = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
    try:
        state = torch.load(trunk, weights_only=True)
        # lpips files torchvision's layer 'features.7.weight' under 'slice3.7.weight'.
        model.net.load_state_dict({key: state["features." + key.split(".", 1)[1]] for key in model.net.state_dict()})
    except Exception as error:
        # torch raises a dozen types for a damaged file; every one means the same to the user.
        raise UserError(f"{trunk}: not torchvision's {net} weights ({error}); delete it and fetch it anew") from error
    return Lpips(net, trunk, model, device)


def _find_trunk(net: str, weights: Path | None) -> Path:
    url = _trunk_url(net)
    name = url.rsplit("/", 1)[1]
    if weights is not None:
        for folder in (weights, weights / "checkpoints", weights / "hub" / "checkpoints"):
            if (folder / name).is_file():
                return folder / name
        raise UserError(f"{weights}: no {name}, torchvision's {net} weights; put it there or drop --lpips-weights")
    home = Path(torch.hub.get_dir()) / "checkpoints"
    if not (home / name).is_file():
        try:
            _download(url, home / name)
        except (OSError, ValueError) as error:
            raise LpipsMissing(
                f"LPIPS left out: {name} is not in {home} and could not be downloaded ({error}); "
                f"put it there, or name its folder with --lpips-weights"
            ) from error
    return home / name


def _trunk_url(net: str) -> str:
    from torchvision import models

    weights = {"vgg": models.VGG16_Weights, "alex": models.AlexNet_Weights, "squeeze": models.SqueezeNet1_1_Weights}
    return str(weights[net].IMAGENET1K_V1.url)


def _download(url: str, path: Path) -> None:
    """Fetch ``url`` to ``path``, atomically; torch.hub's own download has no timeout and can hang for minutes.

    The name of a torchvision file ends in the first digits of its SHA-256. Raises OSError or ValueError.
    """
    info(f"downloading {url}")
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with replacing(path) as part:
        with (
            urllib.request.urlopen(url, timeout=_CONNECT_TIMEOUT) as answer,
            part.open("wb") as file,
            progress(int(answer.headers["Content-Length"] or 0), f"bytes of {path.name}") as bar,
        ):
            while chunk := answer.read(1 << 20):
                bar.update(len(chunk))
                digest.update(chunk)
                file.write(chunk)
        expected = path.stem.rsplit("-", 1)[1]
        if not digest.hexdigest().startswith(expected):
            raise ValueError(f"its SHA-256 is {digest.hexdigest()[:8]}..., expected {expected}...")


@lru_cache(maxsize=1)
def torchvision_schemas() -> torch.library.Library | None:
    """Make ``import torchvision`` work beside a torch without CUDA; call it before that import.

    The torchvision of the package index is built against CUDA. Beside a CPU torch its compiled operators do not load,
    and its import then dies on declaring fake kernels for two operators that do not exist. LPIPS needs neither, so
    their schemas alone are declared. Nothing is done where torch has CUDA or the operators load.

    A ``Library`` takes its schemas back when it is collected; this function's cache is what keeps it alive.
    """
    spec = importlib.util.find_spec("torchvision")
    if torch.version.cuda is not None or spec is None or spec.origin is None:
        return None
    for compiled in Path(spec.origin).parent.glob("_C*"):
        with contextlib.suppress(OSError):
            torch.ops.load_library(str(compiled))
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
