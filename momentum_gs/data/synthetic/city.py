"""Ground plan of the procedural city: which solids stand where, and how they are painted.

One unit is a metre, z points up, the ground is z = 0 and the city is centred on the origin. City blocks lie on a square
grid of pitch ``PITCH``; a street runs along every grid line, so n blocks lie between n + 1 streets. Every block draws
from a generator of its own, keyed by (seed, column, row): one block never changes another.

All solids reach down to the ground (nobody sees a city from below), which leaves three shapes: boxes, boxes under a
sloped roof, and ellipsoids for the crowns of trees.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.core.seeds import keyed_generator

PITCH = 56.0
"""From the middle of one street to the middle of the next, metres."""
ROAD = 4.5
"""Half the width of the carriageway, metres: one lane and a row of parked cars on either side."""
KERB = 7.0
"""From the middle of the street to the back of the sidewalk, metres."""
MARGIN = 40.0
"""Width of the belt of trees around the outer streets, metres."""

PAVED, LAWN, PARK = 0, 1, 2
"""What covers the ground of a block."""

Color = tuple[int, int, int]

_WALLS: tuple[Color, ...] = (
    (158, 88, 66), (204, 182, 146), (226, 220, 208), (164, 160, 154), (210, 168, 104),
    (98, 104, 114), (190, 116, 86), (172, 188, 198), (236, 226, 190), (132, 118, 104),
)  # fmt: skip
_GLASS: tuple[Color, ...] = ((66, 84, 102), (46, 56, 68), (92, 118, 136), (58, 74, 78))
_FLAT_ROOFS: tuple[Color, ...] = ((152, 149, 144), (112, 110, 108), (194, 190, 182), (140, 124, 108), (116, 132, 96))
_TILES: tuple[Color, ...] = ((168, 90, 64), (140, 74, 56), (112, 98, 90), (94, 98, 108))
_CARS: tuple[Color, ...] = (
    (232, 232, 230), (40, 42, 46), (150, 154, 160), (176, 40, 36), (40, 78, 140), (206, 176, 60), (86, 100, 92),
)  # fmt: skip
_CROWNS: tuple[Color, ...] = ((70, 104, 44), (88, 118, 52), (58, 90, 48), (108, 126, 60), (126, 112, 52))
_METAL: Color = (176, 178, 180)
_TRUNK: Color = (92, 74, 58)


@dataclass(frozen=True)
class Paint:
    """Look of one box or roof. Colours are sRGB 0..255; lengths are metres."""

    wall: Color
    glass: Color
    top: Color
    bay: float = 1.0
    """Distance between the middles of neighbouring windows."""
    storey: float = 1.0
    wide: float = 0.0
    """Share of the bay that is glass; 0 leaves the wall blank."""
    tall: float = 0.0
    """Share of the storey that is glass."""
    parapet: float = 0.0
    """Width of the bright rim of a flat roof."""

    def row(self) -> list[float]:
        """The 14 columns of ``City.paint``."""
        colors = [float(c) for rgb in (self.wall, self.glass, self.top) for c in rgb]
        return [*colors, self.bay, self.storey, self.wide, self.tall, self.parapet]


@dataclass(frozen=True)
class City:
    """All solids, float32. A solid's number counts boxes, then roofs, then trees."""

    blocks: tuple[int, int]
    """Number of city blocks along x and y."""
    seed: int
    boxes: Float[Tensor, "b 5"]
    """xmin, ymin, xmax, ymax, top."""
    roofs: Float[Tensor, "r 8"]
    """xmin, ymin, xmax, ymax, then slope and height of the two pairs of roof planes:
    z + slope_x |x - xmid| <= height_x and z + slope_y |y - ymid| <= height_y."""
    trees: Float[Tensor, "t 5"]
    """Centre x, y, z of the crown, its radius and its half height."""
    paint: Float[Tensor, "s 14"]
    """Of boxes and roofs: ``Paint.row``."""
    crowns: Float[Tensor, "t 3"]
    """Colours of the trees, sRGB 0..255."""
    ground: Int[Tensor, "bx by"]
    """PAVED, LAWN or PARK, by block."""

    @property
    def size(self) -> tuple[float, float]:
        """Extent along x and y between the middles of the outer streets, metres."""
        return self.blocks[0] * PITCH, self.blocks[1] * PITCH

    @property
    def tallest(self) -> float:
        """Height of the highest solid, metres."""
        tops = torch.cat([self.boxes[:, 4], self.roofs[:, [5, 7]].amin(1), self.trees[:, 2] + self.trees[:, 4]])
        return float(tops.max())


class _Draw:
    """Numbers of one keyed generator, as the plan needs them."""

    def __init__(self, *key: int | str) -> None:
        self._generator = keyed_generator(*key)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def chance(self, probability: float) -> bool:
        return self.uniform(0.0, 1.0) < probability

    def pick(self, colors: Sequence[Color]) -> Color:
        """One of the colours, a little lighter or darker."""
        shade = self.uniform(0.92, 1.06)
        r, g, b = colors[int(self.uniform(0.0, float(len(colors))))]
        return min(255, round(r * shade)), min(255, round(g * shade)), min(255, round(b * shade))


@dataclass(frozen=True)
class _Rect:
    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def sides(self) -> tuple[float, float]:
        return self.x1 - self.x0, self.y1 - self.y0

    def inset(self, by: float) -> "_Rect":
        return _Rect(self.x0 + by, self.y0 + by, self.x1 - by, self.y1 - by)


@dataclass
class _Plan:
    """Rows that the block builders append to."""

    boxes: list[list[float]] = field(default_factory=list)
    roofs: list[list[float]] = field(default_factory=list)
    trees: list[list[float]] = field(default_factory=list)
    box_paint: list[list[float]] = field(default_factory=list)
    roof_paint: list[list[float]] = field(default_factory=list)
    crowns: list[list[float]] = field(default_factory=list)

    def box(self, r: _Rect, top: float, paint: Paint) -> None:
        self.boxes.append([r.x0, r.y0, r.x1, r.y1, top])
        self.box_paint.append(paint.row())

    def roof(self, r: _Rect, eaves: float, slope: float, hip: bool, paint: Paint) -> None:
        """A house: walls up to the eaves, a ridge along the longer side, hipped or with gables at its ends."""
        half_x, half_y = r.sides[0] / 2, r.sides[1] / 2
        along_x = half_x >= half_y
        slope_x = slope if hip or not along_x else 0.0
        slope_y = slope if hip or along_x else 0.0
        ridge = eaves + slope * min(half_x, half_y)
        height_x = eaves + slope * half_x if slope_x else ridge
        height_y = eaves + slope * half_y if slope_y else ridge
        self.roofs.append([r.x0, r.y0, r.x1, r.y1, slope_x, height_x, slope_y, height_y])
        self.roof_paint.append(paint.row())

    def tree(self, x: float, y: float, draw: _Draw) -> None:
        radius, trunk = draw.uniform(1.5, 2.9), draw.uniform(1.2, 2.2)
        half = radius * draw.uniform(0.9, 1.25)
        self.trees.append([x, y, trunk + half, radius, half])
        self.crowns.append([float(c) for c in draw.pick(_CROWNS)])
        self.box(_Rect(x - 0.25, y - 0.25, x + 0.25, y + 0.25), trunk + 0.5, Paint(_TRUNK, _TRUNK, _TRUNK))

    def car(self, x: float, y: float, along_x: bool, draw: _Draw) -> None:
        body, glass = draw.pick(_CARS), (38, 44, 52)
        length, width = draw.uniform(2.0, 2.4), draw.uniform(0.85, 0.95)
        dx, dy = (length, width) if along_x else (width, length)
        self.box(_Rect(x - dx, y - dy, x + dx, y + dy), 0.85, Paint(body, body, body))
        dx, dy = (length * 0.55, width * 0.9) if along_x else (width * 0.9, length * 0.55)
        self.box(_Rect(x - dx, y - dy, x + dx, y + dy), 1.45, Paint(glass, glass, body))


def build_city(blocks_x: int, blocks_y: int, seed: int) -> City:
    """Lay out the city.

    Args:
        blocks_x: City blocks along x, at least 1.
        blocks_y: City blocks along y, at least 1.
        seed: Key of every random choice.
    """
    plan = _Plan()
    ground = torch.zeros(blocks_x, blocks_y, dtype=torch.int64)
    half_x, half_y = blocks_x * PITCH / 2, blocks_y * PITCH / 2
    reach = max(half_x, half_y)
    for i in range(blocks_x):
        for j in range(blocks_y):
            draw = _Draw(seed, "city block", i, j)
            x0, y0 = i * PITCH - half_x, j * PITCH - half_y
            inner = _Rect(x0 + KERB, y0 + KERB, x0 + PITCH - KERB, y0 + PITCH - KERB)
            # Tall in the middle of the town, low at its edge.
            center = math.exp(-2 * (math.hypot(x0 + PITCH / 2, y0 + PITCH / 2) / reach) ** 2)
            ground[i, j] = _block(plan, inner, center, _is_park(i, j), draw)
            _street_trees(plan, _Rect(x0, y0, x0 + PITCH, y0 + PITCH), draw)
    _traffic(plan, blocks_x, blocks_y, seed)
    _tree_belt(plan, half_x, half_y, seed)
    return City(
        blocks=(blocks_x, blocks_y),
        seed=seed,
        boxes=_rows(plan.boxes, 5),
        roofs=_rows(plan.roofs, 8),
        trees=_rows(plan.trees, 5),
        paint=torch.cat([_rows(plan.box_paint, 14), _rows(plan.roof_paint, 14)]),
        crowns=_rows(plan.crowns, 3),
        ground=ground,
    )


def _rows(rows: list[list[float]], columns: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, columns)


def _is_park(i: int, j: int) -> bool:
    """Every seventh block, on a lattice that puts no two parks side by side."""
    return (2 * i + 3 * j) % 7 == 5


def _block(plan: _Plan, inner: _Rect, center: float, park: bool, draw: _Draw) -> int:
    """Fill one block; returns what covers its ground."""
    if park:
        _park(plan, inner, draw)
        return PARK
    if draw.chance(0.85 - 0.9 * center):
        for lot in _lots(inner, 15.0, draw):
            _house(plan, lot, draw)
        return LAWN
    for lot in _lots(inner, 17.0 if draw.chance(0.7) else 26.0, draw):
        _building(plan, lot, center, draw)
    return PAVED


def _lots(rect: _Rect, smallest: float, draw: _Draw) -> list[_Rect]:
    """Halve the longer side until no half could be at least ``smallest`` metres wide."""
    width, depth = rect.sides
    if max(width, depth) < 2 * smallest:
        return [rect]
    share = draw.uniform(0.42, 0.58)
    if width >= depth:
        cut = rect.x0 + max(smallest, min(width - smallest, share * width))
        halves = _Rect(rect.x0, rect.y0, cut, rect.y1), _Rect(cut, rect.y0, rect.x1, rect.y1)
    else:
        cut = rect.y0 + max(smallest, min(depth - smallest, share * depth))
        halves = _Rect(rect.x0, rect.y0, rect.x1, cut), _Rect(rect.x0, cut, rect.x1, rect.y1)
    return [lot for half in halves for lot in _lots(half, smallest, draw)]


def _house(plan: _Plan, lot: _Rect, draw: _Draw) -> None:
    """A low house with a tiled roof, and a tree or two in what is left of the lot."""
    yard = lot.inset(1.2)
    width, depth = yard.sides
    w, d = width * draw.uniform(0.62, 0.85), depth * draw.uniform(0.62, 0.85)
    right, back = draw.chance(0.5), draw.chance(0.5)
    x0 = yard.x1 - w if right else yard.x0
    y0 = yard.y1 - d if back else yard.y0
    paint = Paint(draw.pick(_WALLS), draw.pick(_GLASS), draw.pick(_TILES), draw.uniform(2.4, 3.4), 3.0, 0.42, 0.48)
    plan.roof(_Rect(x0, y0, x0 + w, y0 + d), 3.0 * int(draw.uniform(2.0, 4.0)), draw.uniform(0.45, 0.8),
              draw.chance(0.5), paint)  # fmt: skip
    # The free corner is diagonally opposite the building.
    x = (yard.x0 if right else yard.x1) + (1.5 if right else -1.5)
    y = (yard.y0 if back else yard.y1) + (1.5 if back else -1.5)
    plan.tree(x, y, draw)
    if draw.chance(0.6):
        plan.tree(x, (y0 + y0 + d) / 2, draw)


def _building(plan: _Plan, lot: _Rect, center: float, draw: _Draw) -> None:
    """A block of offices or flats: plain, stepped, L-shaped, or a tower on a podium; machines on its roof."""
    foot = lot.inset(draw.uniform(0.8, 2.2))
    storey = draw.uniform(3.2, 4.2)
    height = storey * round((9 + 9 * draw.uniform(0.0, 1.0) + 26 * center * draw.uniform(0.0, 1.0) ** 2) / storey) + 1.0
    glassy = draw.chance(0.25 + 0.3 * center)
    wide, tall = (draw.uniform(0.78, 0.88), draw.uniform(0.66, 0.78)) if glassy else (draw.uniform(0.4, 0.6), 0.52)
    paint = Paint(draw.pick(_WALLS), draw.pick(_GLASS), draw.pick(_FLAT_ROOFS), draw.uniform(3.0, 4.4), storey, wide,
                  tall, 0.7)  # fmt: skip
    width, depth = foot.sides
    if min(width, depth) > 30:
        _courtyard(plan, foot, height, paint, draw)
        return
    form = draw.uniform(0.0, 1.0)
    tower = foot
    if form < 0.35 and min(width, depth) > 12:
        plan.box(foot, 2 * storey + 0.8, paint)
        tower = foot.inset(draw.uniform(2.0, 0.2 * min(width, depth)))
        height += 2 * storey
    elif form < 0.6:
        # An L: one wing over the whole front at full height, one over the whole side two storeys lower.
        across, along = draw.uniform(0.45, 0.6), draw.uniform(0.4, 0.55)
        plan.box(_Rect(foot.x0, foot.y0, foot.x0 + width * along, foot.y1), max(height - 2 * storey, storey), paint)
        tower = _Rect(foot.x0, foot.y0, foot.x1, foot.y0 + depth * across)
    plan.box(tower, height, paint)
    _machines(plan, tower.inset(1.2), height, paint.wall, draw)


def _courtyard(plan: _Plan, foot: _Rect, height: float, paint: Paint, draw: _Draw) -> None:
    """Four wings of unequal height around a yard with trees."""
    deep = draw.uniform(9.5, 11.5)
    west, east = _Rect(foot.x0, foot.y0, foot.x0 + deep, foot.y1), _Rect(foot.x1 - deep, foot.y0, foot.x1, foot.y1)
    south = _Rect(foot.x0, foot.y0, foot.x1, foot.y0 + deep)
    north = _Rect(foot.x0, foot.y1 - deep, foot.x1, foot.y1)
    # Steps of at least half a storey: where wings meet, two roofs must not lie in one plane.
    for rank, wing in enumerate((south, east, north, west)):
        top = height + paint.storey * (0.5 * rank + int(draw.uniform(0.0, 2.0)))
        plan.box(wing, top, paint)
        if rank % 2:
            _machines(plan, wing.inset(1.2), top, paint.wall, draw)
    yard = foot.inset(deep + 3.0)
    for _ in range(4):
        plan.tree(draw.uniform(yard.x0, yard.x1), draw.uniform(yard.y0, yard.y1), draw)


def _machines(plan: _Plan, rect: _Rect, top: float, wall: Color, draw: _Draw) -> None:
    """The stair head and the air conditioning of a flat roof."""
    width, depth = rect.sides
    for low, high, rise, color in ((2.5, 4.0, 2.6, wall), (1.5, 2.6, 1.4, _METAL), (1.2, 2.0, 1.1, _METAL)):
        size = draw.uniform(low, high)
        long = size * draw.uniform(1.0, 1.6)
        if long < width and size < depth:
            x, y = rect.x0 + draw.uniform(0.0, width - long), rect.y0 + draw.uniform(0.0, depth - size)
            plan.box(_Rect(x, y, x + long, y + size), top + rise, Paint(color, color, color))


def _park(plan: _Plan, inner: _Rect, draw: _Draw) -> None:
    """Trees on a jittered lattice that leaves the paths (see the ground's texture) free, and a pavilion."""
    side = 6.0
    middle_x, middle_y = (inner.x0 + inner.x1) / 2, (inner.y0 + inner.y1) / 2
    for i in range(-3, 4):
        for j in range(-3, 4):
            x = middle_x + i * side + draw.uniform(-1.5, 1.5)
            y = middle_y + j * side + draw.uniform(-1.5, 1.5)
            on_path = min(abs(x - middle_x), abs(y - middle_y)) < 3.5 or math.hypot(x - middle_x, y - middle_y) < 11
            if not on_path and draw.chance(0.8):
                plan.tree(x, y, draw)
    paint = Paint((214, 206, 190), (90, 98, 100), draw.pick(_TILES), 2.0, 4.0, 0.6, 0.7)
    x, y = middle_x + 6.5, middle_y - 6.5
    plan.roof(_Rect(x - 3, y - 3, x + 3, y + 3), 3.2, 0.6, True, paint)


def _street_trees(plan: _Plan, cell: _Rect, draw: _Draw) -> None:
    """Trees along the four sidewalks of a block, with gaps."""
    setback = KERB - 1.2
    for k in range(5):
        along = KERB + 3.5 + k * (PITCH - 2 * KERB - 7) / 4
        for x, y in ((cell.x0 + along, cell.y0 + setback), (cell.x0 + along, cell.y1 - setback),
                     (cell.x0 + setback, cell.y0 + along), (cell.x1 - setback, cell.y0 + along)):  # fmt: skip
            if draw.chance(0.45):
                plan.tree(x, y, draw)


def _traffic(plan: _Plan, blocks_x: int, blocks_y: int, seed: int) -> None:
    """Cars parked at the kerb and driving in the lanes of every street."""
    for along_x, lines, cells in ((True, blocks_y, blocks_x), (False, blocks_x, blocks_y)):
        for line in range(lines + 1):
            for cell in range(cells):
                draw = _Draw(seed, "traffic", int(along_x), line, cell)
                across = (line - lines / 2) * PITCH
                start = (cell - cells / 2) * PITCH + 11.0
                # Parked cars stand 3.55 m from the middle line, moving ones in their lane at 1.6 m.
                for offset, chance in ((-3.55, 0.5), (3.55, 0.5), (-1.3, 0.12), (1.3, 0.12)):
                    for slot in range(6):
                        if draw.chance(chance):
                            along = start + slot * 6.4 + draw.uniform(0.0, 1.2)
                            x, y = (along, across + offset) if along_x else (across + offset, along)
                            plan.car(x, y, along_x, draw)


def _tree_belt(plan: _Plan, half_x: float, half_y: float, seed: int) -> None:
    """Scattered trees outside the outer streets, one in every third place of a 12 m lattice."""
    side = 12.0
    draw = _Draw(seed, "tree belt")
    reach_x, reach_y = int((half_x + MARGIN) / side), int((half_y + MARGIN) / side)
    for i in range(-reach_x, reach_x + 1):
        for j in range(-reach_y, reach_y + 1):
            x, y = i * side + draw.uniform(-4.0, 4.0), j * side + draw.uniform(-4.0, 4.0)
            outside = abs(x) > half_x + KERB + 4 or abs(y) > half_y + KERB + 4
            if outside and draw.chance(0.35):
                plan.tree(x, y, draw)
