"""What a smaller model of baked Gaussians gains from its start and its training, one change at a time.

  python scripts/distill_parts.py RUN --sh 0 --gaussians 135000 --steps 400 --pick merge --lessons both

Bakes a run of anchors, takes the Gaussians down to a number, trains them with ``RowAdam``, writes an .spz, and prints
its bytes and the scores of the file on the held-out views, with the background of the model behind it and on black.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import momentum_gs as mgs
from momentum_gs.bake.baking import bake_parts, choose
from momentum_gs.bake.between import Between
from momentum_gs.bake.contributions import contributions
from momentum_gs.bake.lod import build_lod
from momentum_gs.bake.refine import first_rates
from momentum_gs.bake.row_adam import RowAdam
from momentum_gs.config.run import load_run_config
from momentum_gs.core.seeds import keyed_uniform
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.data.scene import Scene
from momentum_gs.data.views import Views
from momentum_gs.export.placement import placement
from momentum_gs.export.price import scores
from momentum_gs.formats.read import read_splats
from momentum_gs.formats.write import write_splats
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.rasterize import visible_splats
from momentum_gs.render.splat_view import decode_splats
from momentum_gs.render.view import draw, learned_background, render_image
from momentum_gs.train.growth.importance import sample_by_importance
from momentum_gs.train.losses import reconstruction
from momentum_gs.train.lr import exponential
from momentum_gs.train.optim import LAST_RATE

LESSONS = {"three": ("image", "render", "between"), "both": ("both",), "image": ("image",), "render": ("render",)}
"""What the steps compare with: the image, the model's render, both at once, or its render between two cameras."""


def started(trained: mgs.TrainedModel, scene: Scene, degree: int, count: int, pick: str) -> Splats:
    """The baked Gaussians, of which ``count`` are left."""
    seen = contributions(trained.primitives, trained.decoder, scene.train)
    if pick == "most":
        chosen = choose(seen, count)
    elif pick == "sample":
        chosen = sample_by_importance(seen.total, count, lambda level, index: keyed_uniform(index, "start"))
    else:
        chosen = choose(seen)
    parts = bake_parts(trained.primitives, trained.decoder, scene.train, seen, chosen, sh_degree=degree)
    splats = Splats.cat([part for _, part in parts])
    return build_lod(splats, scene.train).level(count) if pick == "merge" else splats


def main() -> None:
    """Prints one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--sh", type=int, choices=range(4), default=1)
    parser.add_argument("--gaussians", type=int, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--pick", choices=("most", "sample", "merge"), default="merge")
    parser.add_argument("--lessons", choices=LESSONS, default="both")
    parser.add_argument("--last", type=float, default=LAST_RATE, help="rates at the last step, as a share of the first")
    args = parser.parse_args()
    scene, trained = mgs.load_scene(run=args.run), mgs.load_model(args.run, device="cpu")
    decoder, black = trained.decoder, trained.background
    config = load_run_config(args.run)
    with torch.no_grad():
        splats = started(trained, scene, args.sh, args.gaussians, args.pick)
    rng = torch.Generator().manual_seed(0)
    between, optimizer = Between(scene.train, rng), RowAdam(splats.rows())
    rates, harmonics, order = first_rates(scene.train, config.gaussians), Harmonics(args.sh), list[int]()
    with Views(scene, 1 << 30, torch.device("cpu")) as views:
        for step in range(args.steps):
            order = order or torch.randperm(len(scene.train), generator=rng).tolist()
            kind, index = LESSONS[args.lessons][step % len(LESSONS[args.lessons])], order.pop()
            camera = between.draw(index) if kind == "between" else scene.train[index]
            shown = visible_splats(splats, camera)
            if not len(shown):
                continue
            with torch.no_grad():
                behind = learned_background(decoder, camera, black)
            leaves = optimizer.leaves(shown)
            gaussians = decode_splats(Splats.from_rows(leaves), harmonics, camera).gaussians
            image, targets = draw(gaussians, camera, black, behind).image, []
            if kind in ("image", "both"):
                targets.append(views.target(camera.name))
            if kind != "image":
                targets.append(TargetImage(render_image(trained.primitives, decoder, camera, black)))
            terms = [term for target in targets for term in reconstruction(image, target, config.loss).values()]
            torch.stack(terms).sum().backward()
            decay = exponential(1.0, args.last, args.steps)(step)
            optimizer.step(shown, leaves, {name: rate * decay for name, rate in rates.items()})
        where = placement(scene)
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "gaussians.spz"
            write_splats(file, where.placed(splats))
            back = where.back(read_splats(file))

            def render(camera: Camera, behind: Tensor | None) -> Tensor:
                return draw(decode_splats(back, harmonics, camera).gaussians, camera, black, behind).image.clamp(0, 1)

            found = scores(scene.test, views, lambda c: render(c, learned_background(decoder, c, black)), None)
            alone = scores(scene.test, views, lambda c: render(c, None), None)
            print(f"{len(back):,} Gaussians, {file.stat().st_size:,} bytes, PSNR {found['PSNR']:.3f}, SSIM "
                  f"{found['SSIM']:.4f}, on black {alone['PSNR']:.3f} dB")  # fmt: skip


if __name__ == "__main__":
    main()
