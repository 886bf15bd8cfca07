"""Initialization of blocks of splats from the coarse model.

Source: CityGaussian, which trains a coarse model of the whole scene and continues it in every block.
"""

from collections.abc import Sequence

from momentum_gs.config.run import coarse_folder
from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_any_view
from momentum_gs.core.types import Camera
from momentum_gs.model.io import model_folder
from momentum_gs.model.splat_io import load_splats
from momentum_gs.model.splats import Splats


def load_initialization(config: Config) -> Splats:
    """The coarse model of ``partition.coarse`` (default: OUT/coarse), on the CPU.

    Raises:
        UserError: if there is none, or its spherical harmonics have another degree.
    """
    coarse = coarse_folder(config)
    try:
        folder = model_folder(coarse)
    except UserError as error:
        raise UserError(
            f"{coarse}: no coarse model, expected one for the blocks to start from (gaussians.from_coarse); run "
            f"'momentum-gs train -c ... -s {config.scene.path} -m {coarse} stage=coarse' first, or set "
            "gaussians.from_coarse=false"
        ) from error
    splats = load_splats(folder / "point_cloud.ply")
    if splats.sh_degree != config.gaussians.sh_degree:
        raise UserError(
            f"{folder}: spherical harmonics of degree {splats.sh_degree}, expected gaussians.sh_degree = "
            f"{config.gaussians.sh_degree}; train the coarse model with the same setting"
        )
    return splats


def seen_by(initial: Splats, block: int, cameras: Sequence[Camera]) -> Splats:
    """A copy of the splats whose centres lie in at least one of the block's views; few others ever get a gradient.

    Raises:
        UserError: if no splat does.
    """
    seen = in_any_view(initial.position.detach().double(), cameras)
    if not seen.any():
        raise UserError(
            f"block {block}: none of the coarse model's {len(initial)} Gaussians is inside one of its {len(cameras)} "
            "views, expected some; give the coarse model of this scene (partition.coarse)"
        )
    return initial.subset(seen)
