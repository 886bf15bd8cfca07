"""momentum-gs: large scenes as blocks of anchored 3D Gaussians that share one decoder.

``import momentum_gs as mgs`` gives the names of ``momentum_gs/api.py``. They are loaded when one is first used, since
with them comes torch.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "Anchors", "Camera", "Lpips", "Scene", "Splats", "TargetImage", "TrainedModel", "UserError", "load_image",
    "load_lpips", "load_model", "load_scene", "render_image", "score_image",
]  # fmt: skip

if TYPE_CHECKING:
    from momentum_gs.api import (
        Anchors,
        Camera,
        Lpips,
        Scene,
        Splats,
        TargetImage,
        TrainedModel,
        UserError,
        load_image,
        load_lpips,
        load_model,
        load_scene,
        render_image,
        score_image,
    )  # fmt: skip
else:

    def __getattr__(name: str) -> object:
        """A name of ``momentum_gs.api``, loaded now."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module("momentum_gs.api"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
