"""``momentum-gs bench grow``: times growth and pruning by number of anchors, and the original's algorithm beside it."""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.optim import Adam

from momentum_gs.config.schema import Config, GrowthConfig
from momentum_gs.core.log import info
from momentum_gs.core.rows import append_rows, keep_rows, scatter_max
from momentum_gs.core.seeds import keyed_uniform
from momentum_gs.core.voxels import cell_centers, cells_of
from momentum_gs.model.anchors import Anchors
from momentum_gs.train.growth.anchors import GrowthStats, grow_and_prune
from momentum_gs.train.growth.report import GrowthReport
from momentum_gs.train.optim import anchor_optimizer

SIZES = (250_000, 1_000_000, 4_000_000)
"""Default numbers of anchors."""
VOXEL = 0.001
"""Edge of the finest voxel. The city is built in multiples of growth cells, so that this value has no effect."""
LOT, REPOSITORY, STOREYS = 64.0, 40.0, 60.0
"""Dimensions of the city, in edges of the coarsest growth cell: pitch of the lots, side and greatest height of the
houses."""
LIKELY = 0.03
"""Share of the offsets above the coarsest level's threshold; half as many are above twice the threshold."""
FAINT = 0.02
"""Share of the anchors that are transparent enough to be pruned."""
CHUNK = 4096
"""Number of anchors that the original compares with all new cells at a time [SGS]."""


@dataclass(frozen=True)
class Load:
    """A block in training; copies of it are grown and pruned."""

    anchors: Anchors
    optimizer: Adam
    stats: GrowthStats

    def copy(self) -> "Load":
        """A copy for one growth and pruning. The statistics are copied; rows and moments are shared, as growth and
        pruning copy them when they add or drop any."""
        rows, anchors = self.anchors.rows(), self.anchors.as_leaves()
        optimizer = Adam([{"params": [anchors.rows()[name]], "name": name} for name in Anchors.LEARNABLE])
        optimizer.state.update(
            {anchors.rows()[name]: dict(self.optimizer.state[rows[name]]) for name in Anchors.LEARNABLE}
        )
        return Load(anchors, optimizer, GrowthStats.from_rows({k: v.clone() for k, v in self.stats.rows().items()}))

    def tensors(self) -> dict[str, Tensor]:
        """Name -> tensor, for all tensors that growth and pruning change."""
        moments = {
            f"{name}.{key}": value
            for name in Anchors.LEARNABLE
            for key, value in self.optimizer.state[self.anchors.rows()[name]].items()
        }
        return self.anchors.rows() | self.stats.rows() | moments


Judge = Callable[[Load, GrowthConfig], tuple[Load, GrowthReport]]
"""Grows and prunes once; the load must not be used afterwards."""


def run(args: argparse.Namespace, config: Config, device: torch.device) -> None:
    """Prints a line for each number of anchors, and the comparison for the smallest."""
    place = f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    info(f"grow: K = {config.model.n_offsets}, F = {config.model.feature_dim}, torch {torch.__version__}, {place}, "
        f"medians of {args.repeats}")  # fmt: skip
    loads = [city_load(n, config, device) for n in sorted(args.anchors or SIZES)]
    reports = [timed(judge, load, config.growth)[2] for load in loads]  # Also warms caches and allocators.
    # Each repetition times every size, so that other programs on the machine slow all of them alike.
    rounds = [[timed(judge, load, config.growth)[0] for load in loads] for _ in range(args.repeats)]
    seconds = [statistics.median(of_size) for of_size in zip(*rounds, strict=True)]
    for i, (load, report) in enumerate(zip(loads, reports, strict=True)):
        n = len(load.anchors)
        line = f"  {n:>9} anchors, {sum(report.grown)} more, {report.pruned} less: {1e3 * seconds[i]:10.1f} ms"
        if i > 0:
            ratio = statistics.median(times[i] / times[i - 1] for times in rounds)
            line += f", {ratio:.2f}x the time for {n / len(loads[i - 1].anchors):.2f}x the anchors"
        info(line)
    plain, found, _ = timed(judge_plainly, loads[0], config.growth)
    assert_equal(found, timed(judge, loads[0], config.growth)[1])
    info(f"  {len(loads[0].anchors):>9} anchors, every new cell compared with every anchor: {1e3 * plain:.1f} ms "
        f"(one run), {plain / seconds[0]:.1f}x the time of ours, the same result")  # fmt: skip


def timed(work: Judge, load: Load, growth: GrowthConfig) -> tuple[float, Load, GrowthReport]:
    """Seconds to grow and prune a copy of the load, and the result."""
    mine = load.copy()
    wait(load)
    start = time.perf_counter()
    after, report = work(mine, growth)
    wait(after)
    return time.perf_counter() - start, after, report


def wait(load: Load) -> None:
    """Waits until the device of the load is idle."""
    if load.anchors.position.is_cuda:
        torch.cuda.synchronize(load.anchors.position.device)


def draw(level: int, offsets: Int[Tensor, "m"]) -> Float[Tensor, "m"]:
    """Uniform numbers in [0, 1) keyed by offset, as in training."""
    return keyed_uniform(offsets, "bench", level)


def judge(load: Load, growth: GrowthConfig) -> tuple[Load, GrowthReport]:
    """Growth and pruning as in training."""
    anchors, stats, report = grow_and_prune(load.anchors, load.optimizer, load.stats, VOXEL, growth, draw)
    return Load(anchors, load.optimizer, stats), report


@torch.no_grad()
def judge_plainly(load: Load, growth: GrowthConfig) -> tuple[Load, GrowthReport]:
    """The same with the algorithm of the original (adjust_anchor in scene/gaussian_model.py of Scaffold-GS).

    It draws a number for every offset, sorts cells by rows, compares each new cell with each anchor, and copies all
    rows for every level and for the pruning.
    """
    anchors, optimizer, stats = load.anchors, load.optimizer, load.stats
    n, n_offsets = len(anchors), anchors.n_offsets
    enough = growth.interval * growth.success_threshold
    mean = (stats.offset_gradient_accum / stats.offset_denom).nan_to_num(0).squeeze(1)
    eligible = (stats.offset_denom > 0.5 * enough).squeeze(1)
    spots = (anchors.position.unsqueeze(1) + anchors.offset * anchors.scales[:, None, :3]).flatten(0, 1)
    features = anchors.feature.unsqueeze(1).expand(-1, n_offsets, -1).flatten(0, 1)
    everything = torch.arange(n * n_offsets, device=spots.device)
    grown: list[int] = []
    for level in range(growth.depth):
        if level > 0 and not sum(grown):
            break
        size = VOXEL * (growth.init_factor // growth.hierarchy_factor**level)
        threshold = growth.grad_threshold * (growth.hierarchy_factor // 2) ** level
        candidate = eligible & (mean >= threshold) & (draw(level, everything) > 0.5 ** (level + 1))
        cells, inverse = torch.unique(cells_of(spots[candidate], size), dim=0, return_inverse=True)
        free = ~chunked_compare(cells, cells_of(anchors.position, size))
        centers = cell_centers(cells[free], size, spots.dtype)
        feature = scatter_max(features[candidate], inverse, len(cells))[free]
        log_scale = centers.new_full((len(centers), 6), size).log()
        new = Anchors.fresh(centers, feature, log_scale, n_offsets)
        anchors = Anchors.from_rows(append_rows(anchors.rows(), new.rows(), optimizer))
        grown.append(len(new))

    fresh = GrowthStats.zeros(anchors).rows()
    seen = {name: torch.cat([row, fresh[name][len(row) :]]) for name, row in stats.rows().items()}
    seen["offset_denom"][: len(eligible)][eligible] = 0
    seen["offset_gradient_accum"][: len(eligible)][eligible] = 0
    faint = (seen["opacity_accum"] < growth.min_opacity * seen["anchor_denom"]).squeeze(1)
    weighed = (seen["anchor_denom"] > enough).squeeze(1)
    seen["opacity_accum"][weighed] = 0
    seen["anchor_denom"][weighed] = 0
    keep = ~(faint & weighed)
    anchors = Anchors.from_rows(keep_rows(anchors.rows(), keep, optimizer))
    for name, row in seen.items():
        seen[name] = row.view(len(keep), -1)[keep].view(-1, 1)
    anchors.log_scale[:, 3:].clamp_(max=0.05)
    return Load(anchors, optimizer, GrowthStats.from_rows(seen)), GrowthReport(tuple(grown), int((~keep).sum()), 0)


def chunked_compare(cells: Int[Tensor, "m 3"], taken: Int[Tensor, "n 3"]) -> Bool[Tensor, "m"]:
    """Which cells are among the taken ones, by comparing all pairs, ``CHUNK`` taken cells at a time."""
    found = torch.zeros_like(cells[:, 0], dtype=torch.bool)
    for chunk in taken.split(CHUNK):
        found |= (cells.unsqueeze(1) == chunk).all(-1).any(-1)
    return found


def assert_equal(found: Load, expected: Load) -> None:
    """Asserts that all rows, moments and statistics are equal bit for bit."""
    theirs = found.tensors()
    for name, tensor in expected.tensors().items():
        assert torch.equal(theirs[name], tensor), f"bench: the two algorithms disagree on {name}"


def city_load(n: int, config: Config, device: torch.device) -> Load:
    """A block in mid-training: anchors on the ground, walls and roofs of a city, one per area of a coarse growth cell.

    Offsets are about as long as a cell's edge. Anchors and offsets have been seen in a random number of the views of an
    interval, from none to all, so that about half of the offsets are eligible.
    """
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    growth, n_offsets = config.growth, config.model.n_offsets
    # The surface of a lot: its ground area (ground or roof), and the walls of a house of mean height.
    walls = 4 * REPOSITORY * STOREYS / 2
    lots = (n / (LOT**2 + walls)) ** 0.5
    place = uniform(n, 2) * lots
    lot = place.floor().long()
    within = (place - lot - 0.5) * LOT
    height = STOREYS * keyed_uniform(lot[:, 0] * 2**20 + lot[:, 1], "height")
    z = torch.where((within.abs() < REPOSITORY / 2).all(1), height, 0.0)
    on_wall = uniform(n) < walls / (LOT**2 + walls)
    side = torch.randint(4, (n,), generator=generator)
    along = (uniform(n) - 0.5) * REPOSITORY
    facade = torch.where(side % 2 == 0, REPOSITORY / 2, -REPOSITORY / 2)
    wall = torch.where((side < 2).unsqueeze(1), torch.stack([along, facade], 1), torch.stack([facade, along], 1))
    within = torch.where(on_wall.unsqueeze(1), wall, within)
    z = torch.where(on_wall, uniform(n) * height, z)
    cell = VOXEL * growth.init_factor
    position = torch.cat([lot * LOT + within, z.unsqueeze(1)], 1) * cell

    anchors = Anchors.fresh(position, uniform(n, config.model.feature_dim), uniform(n, 6), n_offsets)
    anchors.offset.normal_(generator=generator)
    anchors.log_scale.sub_(1.5).add_(torch.tensor(cell).log())
    anchors = anchors.to(device)
    optimizer = anchor_optimizer(anchors, config.optim, 1.0)
    for name in Anchors.LEARNABLE:
        anchors.rows()[name].grad = torch.ones_like(anchors.rows()[name])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    views = (uniform(n * n_offsets, 1) * (growth.interval + 1)).floor()
    anchor_views = (uniform(n, 1) * (growth.interval + 1)).floor()
    opacity = torch.where(uniform(n, 1) < FAINT, 0.5, 20.0) * growth.min_opacity
    gradient = growth.grad_threshold * LIKELY / (1 - uniform(n * n_offsets, 1))
    rows = {
        "offset_gradient_accum": gradient * views, "offset_denom": views,
        "opacity_accum": opacity * anchor_views, "anchor_denom": anchor_views,
    }  # fmt: skip
    return Load(anchors, optimizer, GrowthStats.from_rows({name: row.to(device) for name, row in rows.items()}))
