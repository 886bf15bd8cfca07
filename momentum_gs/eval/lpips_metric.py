"""LPIPS as 3DGS papers report it: the ``lpips`` package, with its trunk's weights from torchvision.

The weights of the trunk are looked for in the folder that the user names, else in ``$TORCH_HOME/hub/checkpoints``, and
downloaded if they are not there. If the download fails, LPIPS is left out: another network would give other numbers.
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
    """Name of the metric: ``LPIPS`` with vgg, as in 3DGS papers; with other networks ``LPIPS_<net>``."""
    return "LPIPS" if net == "vgg" else f"LPIPS_{net}"


_CONNECT_TIMEOUT = 10.0
"""Seconds without data after which a download is given up: enough for a slow server, short if there is no network."""


class LpipsMissing(UserError):
    """LPIPS cannot be computed; the message says what to install, or where to put which file."""


class Lpips:
    """The metric and its provenance; made by :func:`load_lpips`."""

    def __init__(self, net: str, trunk: Path, model: torch.nn.Module, device: torch.device) -> None:
        self.net = net
        self.metric = metric_name(net)
        self.trunk = trunk
        self._model = model.to(device)

    @torch.no_grad()
    def __call__(self, image: Float[Tensor, "3 h w"], truth: Float[Tensor, "3 h w"], normalize: bool = False) -> float:
        """LPIPS of two images; 0 for equal ones, smaller is better.

        Args:
            image: The render, in [0, 1].
            truth: The target image, in [0, 1].
            normalize: Scale both to [-1, 1] first, as the package documents. False passes [0, 1] to the network, as
                3DGS, Scaffold-GS and Momentum-GS do (MGS metrics.py::evaluate).
        """
        return float(self._model(image[None], truth[None], normalize=normalize))

    def about(self) -> dict[str, str]:
        """What is needed to reproduce the scores, for results.json."""
        return {
            "net": self.net,
            "package": f"lpips {version('lpips')}, torchvision {version('torchvision')}",
            "version": "0.1",
            "input_range": f"{self.metric}, {self.metric}_cc: [0,1]; {self.metric}_norm: [-1,1]",
            "trunk": self.trunk.name,
            "trunk_sha256": hashlib.sha256(self.trunk.read_bytes()).hexdigest(),
        }


def load_lpips(net: str, weights: Path | None, device: torch.device) -> Lpips:
    """Loads the metric.

    Args:
        net: Its trunk, one of ``NETS``.
        weights: Folder with the weights of the trunk, or a TORCH_HOME; None: the default TORCH_HOME, or a download.
        device: Where it is computed.

    Raises:
        LpipsMissing: if a package is not installed, or the weights cannot be downloaded.
        UserError: for an unknown ``net``, if ``weights`` is given and does not hold them, or the file is damaged.
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
        # lpips 0.1.4 calls torchvision with a deprecated keyword.
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        # Randomly initialized and loaded below: lpips itself would download the weights.
        model = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
    try:
        state = torch.load(trunk, weights_only=True)
        # torchvision's 'features.7.weight' is 'slice3.7.weight' in lpips.
        model.net.load_state_dict({key: state["features." + key.split(".", 1)[1]] for key in model.net.state_dict()})
    except Exception as error:
        # torch raises exceptions of many types for a damaged file.
        raise UserError(f"{trunk}: not torchvision's {net} weights ({error}); delete it and run again") from error
    return Lpips(net, trunk, model, device)


def lpips_or_none(net: str, weights: Path | None, device: torch.device, command: str) -> Lpips | None:
    """``load_lpips``; None for ``none``, and where LPIPS cannot be computed, which is then said with ``command``."""
    if net == "none":
        return None
    try:
        return load_lpips(net, weights, device)
    except LpipsMissing as missing:
        info(f"{command}: {missing}")
        return None


def _find_trunk(net: str, weights: Path | None) -> Path:
    url = _trunk_url(net)
    name = url.rsplit("/", 1)[1]
    if weights is not None:
        for folder in (weights, weights / "checkpoints", weights / "hub" / "checkpoints"):
            if (folder / name).is_file():
                return folder / name
        raise UserError(f"{weights}: no {name}, torchvision's {net} weights; put it there or omit --lpips-weights")
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
    """Downloads ``url`` to ``path`` atomically; torch.hub's download has no timeout and can hang for minutes.

    Raises:
        OSError: if the download fails.
        ValueError: if its SHA-256 does not begin with the digits at the end of the file's name.
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
    """Makes ``import torchvision`` work with a torch without CUDA; to be called before that import.

    The torchvision of the package index is built for CUDA. With a CPU torch its compiled operators do not load, and its
    import fails because it registers fake kernels for two operators that do not exist. LPIPS uses neither, so it is
    enough to declare their schemas. Nothing is done if torch has CUDA or the operators load.

    A ``Library`` withdraws its schemas when it is garbage-collected; the cache of this function keeps it alive.
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
