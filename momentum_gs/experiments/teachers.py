"""What a student's training takes from its teachers besides their renders: its first Gaussians, and their scores."""

from pathlib import Path

import torch

from momentum_gs.bake.baking import bake
from momentum_gs.bake.lod import build_lod
from momentum_gs.config.schema import Config
from momentum_gs.core.image import psnr, ssim, to_uint8
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene
from momentum_gs.data.views import Views
from momentum_gs.eval.results import write_json
from momentum_gs.formats.write import with_degree
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.blocks.start import FirstBlocks
from momentum_gs.train.blocks.views import plan_blocks
from momentum_gs.train.distillation.teachers import Teacher, load_teachers, mean_render
from momentum_gs.train.initialization import Initialization

FILE = "teachers.json"
"""In a student's folder: scores of its teachers, and of their mean, on the held-out views."""


class TeacherStart:
    """Block -> its state at step 0, from the Gaussians of the first teacher (``distill.start=teacher``).

    Anchors are baked when the first block is asked for, so not at all where a run is resumed.
    """

    def __init__(self, config: Config, scene: Scene, table: PartitionTable | None, device: torch.device) -> None:
        """``table``: the partition; None: the whole scene is one block."""
        self._config, self._scene, self._table, self._device = config, scene, table, device
        self._first: FirstBlocks | None = None

    def __call__(self, block: int) -> Block:
        """Raises UserError where the teacher does not fit (``load_teachers``)."""
        if self._first is None:
            plan = plan_blocks(self._scene, self._table, self._config.blocks.windows)
            start = Initialization(self._merged(self._splats()), None)
            self._first = FirstBlocks(self._scene, plan, self._config, self._device, start)
        return self._first(block)

    def _merged(self, splats: Splats) -> Splats:
        """As many as the student may have, if that is where merging takes it (``distill.pick=merge``)."""
        distill = self._config.distill
        count = distill.count(len(splats)) if distill.pick == "merge" else None
        if count is None or count >= len(splats):
            return splats
        return build_lod(splats, self._scene.train, coarsest=count / len(splats)).level(count)

    def _splats(self) -> Splats:
        """The teacher's Gaussians on the CPU; of anchors, all that contribute to a training view."""
        config, degree = self._config, self._config.gaussians.sh_degree
        ours = self._scene.frame.recorded(config.scene)
        (teacher,) = load_teachers(config.distill.teachers[:1], self._scene, ours, self._device)
        if isinstance(teacher.decoder, Harmonics):
            assert isinstance(teacher.model, Splats)
            return with_degree(teacher.model, degree).to("cpu")
        assert not isinstance(teacher.model, Splats)
        with Views(self._scene, 0, self._device, skip_bad=config.scene.bad_images == "skip") as views:
            splats = bake(teacher.model, teacher.decoder, self._scene.train, sh_degree=degree, counts=views.counts)
        return splats.to("cpu")


@torch.no_grad()
def write_teacher_scores(folder: Path, config: Config, scene: Scene, device: torch.device) -> None:
    """Writes ``FILE``: raw PSNR and SSIM of each teacher and of the mean of their renders; nothing without held-out
    views."""
    if not scene.test:
        return
    teachers = load_teachers(config.distill.teachers, scene, scene.frame.recorded(config.scene), device)
    rows: dict[str, list[Teacher]] = {teacher.name: [teacher] for teacher in teachers}
    with Views(scene, 0, device) as views:
        found = {name: _scores(some, scene, views) for name, some in rows.items()}
        write_json(folder / FILE, {"teachers": found, "fused": _scores(teachers, scene, views)})


def _scores(teachers: list[Teacher], scene: Scene, views: Views) -> dict[str, float]:
    scores = []
    for camera in scene.test:
        target = views.target(camera.name)
        image = to_uint8(mean_render(teachers, camera)).float() / 255
        if target.mask is None or bool(target.mask.any()):
            found = psnr(image, target.image, target.mask), ssim(image, target.image, target.mask)
            scores.append([float(value) for value in found])
    means = torch.tensor(scores, dtype=torch.float64).mean(dim=0).tolist()
    return dict(zip(("PSNR", "SSIM"), means, strict=True))
