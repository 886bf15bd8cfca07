"""What each attribute of a bake costs: PSNR on held-out views of the model's own Gaussians, with some of their
attributes replaced by baked ones.

  python scripts/bake_attributes.py RUN
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import momentum_gs as mgs
from momentum_gs.bake.baking import bake_parts, choose
from momentum_gs.bake.contributions import contributions
from momentum_gs.core.device import pick_device
from momentum_gs.core.types import Camera, Gaussians
from momentum_gs.data.views import Views
from momentum_gs.export.price import scores
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.splat_view import decode_splats
from momentum_gs.render.view import decode_view, draw, learned_background

CASES = {
    "nothing": (),
    "offsets without contribution left out": ("dropped",),
    "colour": ("colors",),
    "opacity": ("opacities",),
    "scale": ("scales",),
    "rotation": ("quats",),
    "scale and rotation": ("scales", "quats"),
    "all, where the model has a Gaussian": ("colors", "opacities", "scales", "quats", "dropped"),
}


@torch.no_grad()
def main() -> None:
    """Prints one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--sh", type=int, choices=range(4), default=3)
    args = parser.parse_args()
    scene, trained = mgs.load_scene(run=args.run), mgs.load_model(args.run, device="cpu")
    model, decoder, background = trained.primitives, trained.decoder, trained.background
    seen = contributions(model, decoder, scene.train)
    chosen = choose(seen)
    baked = Splats.cat([s for _, s in bake_parts(model, decoder, scene.train, seen, chosen, sh_degree=args.sh)])
    row = torch.full((len(seen.total),), -1)
    row[chosen] = torch.arange(len(chosen))

    def render(camera: Camera, names: tuple[str, ...]) -> Tensor:
        decoded = decode_view(model, decoder, camera)
        first = decoded.visible * model.n_offsets
        offset = (first[:, None] + torch.arange(model.n_offsets)).flatten()[decoded.kept]
        explicit = decode_splats(baked, Harmonics(args.sh), camera).gaussians
        is_baked, at = row[offset] >= 0, row[offset].clamp_min(0)
        own = decoded.gaussians
        changed = {name: torch.where(is_baked[:, None], getattr(explicit, name)[at], getattr(own, name))
                   for name in names if name != "dropped"}  # fmt: skip
        shown = replace(own, **changed)
        if "dropped" in names:
            shown = Gaussians(*(getattr(shown, name)[is_baked] for name in shown.__dataclass_fields__))
        return over(shown, camera)

    def over(gaussians: Gaussians, camera: Camera) -> Tensor:
        return draw(gaussians, camera, background, learned_background(decoder, camera, background)).image.clamp(0, 1)

    with Views(scene, 1 << 30, pick_device("cpu")) as views:
        for title, names in CASES.items():
            found = scores(scene.test, views, lambda camera, names=names: render(camera, names), None)
            print(f"{title:<40}{found['PSNR']:8.3f} dB", flush=True)
        harmonics = Harmonics(args.sh)
        whole = scores(
            scene.test, views, lambda camera: over(decode_splats(baked, harmonics, camera).gaussians, camera), None
        )
        print(f"{'all, the bake':<40}{whole['PSNR']:8.3f} dB")


if __name__ == "__main__":
    main()
