"""``cfg_args``: the one-line record of settings beside a model, which programs of 3DGS codebases read."""

import os
from pathlib import Path

from momentum_gs.config.schema import Config


def cfg_args(config: Config) -> str:
    """The line ``Namespace(name=value, ...)`` under the names that 3DGS codebases use.

    The SIBR viewers search the text for ``sh_degree``, ``white_background``, ``add_*_dist`` and ``source_path`` and
    read up to the next comma, so the paths come last, where no part of them can be mistaken for a setting. With
    anchors, colours come from the decoder; ``sh_degree`` is there because the viewers require it.
    """
    model = config.model
    source = "" if config.scene.path is None else os.path.abspath(config.scene.path)
    output = "" if config.out is None else os.path.abspath(config.out)
    values = {
        "sh_degree": config.gaussians.sh_degree,
        "white_background": config.scene.white_background,
        "add_opacity_dist": model.add_opacity_dist,
        "add_cov_dist": model.add_cov_dist,
        "add_color_dist": model.add_color_dist,
        "feat_dim": model.feature_dim,
        "n_offsets": model.n_offsets,
        "voxel_size": model.voxel_size,
        "use_feat_bank": model.use_feature_bank,
        "appearance_dim": 0,
        "update_depth": config.growth.depth,
        "update_init_factor": config.growth.init_factor,
        "update_hierachy_factor": config.growth.hierarchy_factor,  # The spelling of 3DGS codebases.
        "iterations": config.steps,
        "resolution": config.scene.resolution,
        "eval": True,
        "images": config.scene.images,
        "source_path": source,
        "model_path": output,
    }
    return f"Namespace({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def write_cfg_args(folder: Path, config: Config) -> None:
    """Write the line to ``folder/cfg_args``."""
    (folder / "cfg_args").write_text(cfg_args(config) + "\n", encoding="utf-8")
