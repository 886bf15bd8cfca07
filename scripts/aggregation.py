#!/usr/bin/env python
"""What compression and aggregation cost: held-out views of one block, of cropped devices, and of aggregated ones.

    momentum-gs devices SCENE -m OUT --tree 4x1 ...
    momentum-gs train -s SCENE -m ONE stage=coarse ...
    python scripts/aggregation.py OUT ONE --cuts 3 --cut-steps 50 --steps 300 --images 8

Reads the trained models of OUT/devices and prints PSNR of all held-out views, of the pixels near borders (2.5 % of a
cell's width, by the depth of ONE), and in a scene with depths (``synth``) the mean relative error of the depth there,
which is the planar one with model.surface=planar. Cuts are those of LMC: each keeps 70 % of the Gaussians, with
--cut-steps steps after it. What is sent is kept in OUT/sent, so that a second call goes on. With --voxel, every model's
mesh is scored against the scene's reference.ply, as 'mesh --voxel V' and 'eval-mesh --threshold V --crop SCENE' do it
(docs/surfaces.md), for all of the scene and for what lies near borders.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from momentum_gs.aggregate import wire
from momentum_gs.aggregate.combine import combine
from momentum_gs.aggregate.compress import CUT, cut
from momentum_gs.aggregate.send import border_images
from momentum_gs.aggregate.upload import Upload, receive, sent_bytes, write_upload
from momentum_gs.aggregate.wire import decode, encode
from momentum_gs.bake.refine import Teaching, refine
from momentum_gs.config.run import load_run_config
from momentum_gs.core.image import psnr, to_uint8
from momentum_gs.core.types import Camera
from momentum_gs.data.colmap.model import find_model, read_cameras
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.point_files import read_point_file
from momentum_gs.data.scene import load_scene
from momentum_gs.data.views import Views
from momentum_gs.eval.cells import CellLabels
from momentum_gs.mesh.build import MeshSettings, build_mesh
from momentum_gs.mesh.score import in_views, score_points, surface_points, thinned
from momentum_gs.model.io import model_file, model_folder
from momentum_gs.model.splat_io import load_splats, save_splats
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.surface import expected_depth
from momentum_gs.render.view import ViewRender, render_view

CPU = torch.device("cpu")


def model_of(run: Path) -> Splats:
    return load_splats(model_file(model_folder(run)))


@dataclass
class Bench:
    """A scene with the devices of OUT and the single block of ONE."""

    out: Path
    one: Path
    voxel: float | None = None
    """Edge of a voxel of the meshes that are scored, and distance that counts as correct; None: no meshes."""

    def __post_init__(self) -> None:
        self.config = load_run_config(self.one)
        self.scene = load_scene(self.config.scene)
        self.table = PartitionTable.load(self.out / "partition.json").in_frame(self.scene.frame)
        self.views = Views(self.scene, int(4e9), CPU)
        self.background = torch.full((3,), float(self.config.scene.white_background))
        self.single, self.planar = model_of(self.one), self.config.model.surface == "planar"
        self.models = [model_of(self.out / "devices" / str(block) / "run") for block in range(self.table.n)]
        self.labels = CellLabels(self.table, CPU)
        self.near: dict[str, Tensor] = {}
        for camera in self.scene.test:
            label = self.labels.of(self.render(self.single, camera).output, camera)
            self.near[camera.name] = (label > 0) & (label % 2 == 0)

    @torch.no_grad()
    def render(self, splats: Splats, camera: Camera) -> ViewRender:
        return render_view(splats, Harmonics(splats.sh_degree), camera, self.background, surface=self.planar)

    def own(self, block: int) -> list[Camera]:
        names = set(self.table.views[block])
        return [camera for camera in self.scene.train if camera.name in names]

    def true_depth(self, camera: Camera) -> Tensor | None:
        """Camera z in training units, 0 where unknown."""
        file = self.scene.path / "depths" / Path(camera.name).with_suffix(".png")
        if not file.is_file():
            return None
        scale = json.loads((self.scene.path / "synth.json").read_text())["depth_scale"] / self.scene.frame.unit
        stored = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        size = (camera.width, camera.height)
        return torch.from_numpy(cv2.resize(stored, size, interpolation=cv2.INTER_NEAREST).astype("float32")) * scale

    def score(self, label: str, splats: Splats, sent: int = 0, seconds: float = 0.0) -> None:
        values, squares, off = [], [], []
        for camera in self.scene.test:
            truth, near = self.views.target(camera.name).image, self.near[camera.name]
            view = self.render(splats, camera)
            output, image = view.output, view.output.image.clamp(0, 1)
            values.append(float(psnr(image, truth)))
            squares.append((image - truth).square().mean(dim=0)[near])
            depth = self.true_depth(camera)
            if depth is not None:
                there = near & (depth > 0) & (output.alpha > 0.5)
                drawn = expected_depth(output) if view.surface is None else view.surface.depth
                off.append(((drawn - depth).abs() / depth)[there])
        border = -10 * float(torch.cat(squares).mean().log10())
        depth_error = f"{100 * float(torch.cat(off).mean()):.2f}" if off else "-"
        surface = " | ".join(f"{score:.3f}" for score in self.f1(splats)) if self.voxel else "- | -"
        print(f"| {label} | {len(splats):,} | {sent / 1e6:.2f} | {sum(values) / len(values):.2f} | {border:.2f} | "
              f"{depth_error} | {surface} | {seconds:.0f} |", flush=True)  # fmt: skip

    def f1(self, splats: Splats) -> tuple[float, float]:
        """F1 of the model's mesh, of all of the scene and near borders."""
        settings = MeshSettings(voxel=self.voxel, depth="planar" if self.planar else "median")
        with tempfile.TemporaryDirectory() as folder:
            save_splats(model := Path(folder) / "point_cloud.ply", splats)
            mesh = build_mesh(Path(folder), model, self.scene.train, self.scene.frame, self.background, settings)
        cameras, spacing = read_cameras(find_model(self.scene.path)), self.voxel / 2
        clouds = [surface_points(mesh, "even", spacing), read_point_file(self.scene.path / "reference.ply").xyz.numpy()]
        seen = [cloud[in_views(cloud, cameras)] for cloud in (thinned(cloud, spacing) for cloud in clouds)]
        near = [cloud[self.near_border(cloud)] for cloud in seen]
        return score_points(*seen, self.voxel).f1, score_points(*near, self.voxel).f1

    def near_border(self, points: np.ndarray) -> np.ndarray:
        return self.labels.near_border(self.scene.frame.points(torch.from_numpy(points))).numpy()

    def sent(self, cuts: int, steps: int, images: int) -> list[Upload]:
        """The uploads of the devices after some cuts, with some images each."""
        folder = self.out / "sent" / f"{cuts}_{images}"
        for block, model in enumerate(self.models):
            if (folder / f"device{block}").exists():
                continue
            data = self.compressed(model, block, cuts, steps)
            cameras = self.own(block)
            chosen = border_images(decode(data, "sent"), cameras, self.table, block, images)
            pixels = {camera.name: to_uint8(self.views.target(camera.name).image) for camera in chosen}
            write_upload(folder / f"device{block}", f"device {block}", data, self.table, [block], cameras, pixels, {})
        return receive(folder)[0]

    def compressed(self, model: Splats, block: int, cuts: int, steps: int) -> bytes:
        kept = self.out / "sent" / f"{block}_{cuts}_{steps}.xz"
        if not kept.is_file():
            smaller, cameras = model, self.own(block)
            if cuts:
                smaller = decode(self.compressed(model, block, cuts - 1, steps), "sent")
                teaching = Teaching(model, Harmonics(model.sh_degree), cameras, self.background, self.views.target)
                smaller = cut(smaller, cameras, CUT, self.background, self.planar, seed=cuts)
                smaller = refine(smaller, teaching, steps, seed=cuts)
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(encode(smaller))
        return kept.read_bytes()

    def cropped(self, models: list[Splats]) -> Splats:
        inside = [self.table.cell_of(model.position.detach().double()) == i for i, model in enumerate(models)]
        return Splats.cat([model.subset(rows) for model, rows in zip(models, inside, strict=True)])

    def combined(self, label: str, uploads: list[Upload], steps: int, surface: float = 0.0) -> None:
        begun = time.perf_counter()
        settings = replace(self.config.aggregate, steps=steps, surface=surface)
        done = combine(uploads, replace(self.config, aggregate=settings), CPU).splats
        sent = sum(sent_bytes(upload.folder) for upload in uploads if upload.folder)
        self.score(label, done, sent, time.perf_counter() - begun)


    def coding(self) -> None:
        """One block, coded with other steps of the harmonics."""
        usual = wire.HARMONIC_STEP
        for step in (1 / 16, 1 / 32, usual):
            wire.HARMONIC_STEP = step
            data = encode(self.single)
            label = f"harmonics in steps of 1/{1 / step:.0f}, {len(data) / len(self.single):.1f} bytes each"
            self.score(label, decode(data, "sent"), len(data))
        wire.HARMONIC_STEP = usual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("one", type=Path)
    parser.add_argument("--cuts", type=int, default=3)
    parser.add_argument("--cut-steps", type=int, default=50)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learn-at", type=int, nargs="*", default=[0, 2], help="cuts at which the union is trained")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--surface", type=float, metavar="W", help="a row with aggregate.surface=W where one learns")
    parser.add_argument("--voxel", type=float, metavar="V", help="score meshes with voxels and threshold of V")
    parser.add_argument("--coding", action="store_true", help="only the single block, coded")
    args = parser.parse_args()
    bench = Bench(args.out, args.one, args.voxel)
    print("| | Gaussians | MB sent | PSNR | near borders | depth there, % | F1 | F1 near borders | s |")
    print("|---" * 9 + "|")
    bench.score("one block", bench.single)
    if args.coding:
        bench.coding()
        return
    bench.score("cropped, as trained", bench.cropped(bench.models))
    for cuts in range(args.cuts + 1):
        uploads = bench.sent(cuts, args.cut_steps, 0)
        arrived = [upload.splats for upload in uploads]
        size = sum(sent_bytes(upload.folder) for upload in uploads if upload.folder)
        bench.score(f"{cuts} cuts, cropped", bench.cropped(arrived), size)
        bench.combined(f"{cuts} cuts, faded", uploads, 0)
        if cuts in args.learn_at:
            bench.combined(f"{cuts} cuts, faded and trained", uploads, args.steps)
            if args.surface:
                bench.combined(f"{cuts} cuts, the same with surface={args.surface}", uploads, args.steps, args.surface)
            if args.images:
                sent = bench.sent(cuts, args.cut_steps, args.images)
                bench.combined(f"{cuts} cuts, the same with {args.images} images a device", sent, args.steps)


if __name__ == "__main__":
    main()
