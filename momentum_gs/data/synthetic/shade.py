"""Colour of the procedural city: box-filtered textures, Lambert's law, one sun with cast shadows, a sky.

Every texture is averaged analytically over the footprint of its sample (``width``), or fades into its mean as the
footprint outgrows it, so that what a camera cannot resolve is a flat tone and never aliasing. Nothing depends on the
direction of view apart from this footprint. Colours are linear light until ``to_srgb``.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.seeds import keyed_generator
from momentum_gs.data.synthetic.cast import GROUND, SKY, Caster, Hits
from momentum_gs.data.synthetic.city import KERB, LAWN, PARK, PITCH, ROAD, City, Color

_AZIMUTH, _ELEVATION = math.radians(222), math.radians(50)
SUN = (math.cos(_ELEVATION) * math.cos(_AZIMUTH), math.cos(_ELEVATION) * math.sin(_AZIMUTH), math.sin(_ELEVATION))
"""Unit vector towards the sun: the south-west at a summer afternoon's height."""
# What a surface receives from the sun and from the open sky; white paint on a roof just reaches 1.
SUNLIGHT = (1.12, 1.06, 0.95)
SKYLIGHT = (0.37, 0.41, 0.48)
"""Ambient light from above; walls get it from half the sky and the bounce from the other half."""
_BOUNCE = (0.20, 0.19, 0.17)
_LIFT = 0.01
"""Metres that a shadow ray starts off its surface: far above float32 round-off, far below anything visible."""
_TABLE = 512
"""Edge of the table of random numbers that noise and per-window tones are read from; a power of two."""
_FAR = 1e5
"""Coordinates (m) are clamped here before they become table indices: the ground reaches to the horizon."""


def to_linear(srgb: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """sRGB in [0, 1] to linear light (IEC 61966-2-1). Inverse of ``to_srgb``."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055).clamp_min(0) ** 2.4)


def to_srgb(linear: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Linear light to sRGB, clamped to [0, 1]."""
    x = linear.clamp(0, 1)
    return torch.where(x <= 0.0031308, x * 12.92, 1.055 * x ** (1 / 2.4) - 0.055)


def pulse(x: Float[Tensor, "n"], period: Tensor, duty: Tensor, width: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Share of the interval of ``width`` around x in which a square wave is on: the exact box filter.

    The wave is on in the middle ``duty`` share of every period [i, i + 1) * period.
    """

    def on_until(y: Tensor) -> Tensor:
        whole = y.floor()
        return whole * duty + torch.minimum((y - whole - (1 - duty) / 2).clamp_min(0), duty)

    half = (width / period / 2).clamp_min(1e-4)
    middle = x / period
    return (on_until(middle + half) - on_until(middle - half)) / (2 * half)


def _within(distance: Tensor, width: Tensor) -> Tensor:
    """Box-filtered step: 1 where ``distance`` (metres into the region) is positive."""
    return (distance / width.clamp_min(1e-4) + 0.5).clamp(0, 1)


def _mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    return a + (b - a) * share[:, None]


def _rgb(color: Color) -> Tensor:
    return to_linear(torch.tensor(color, dtype=torch.float32) / 255)


class Shader:
    """Turns hits into linear colours."""

    def __init__(self, city: City, caster: Caster) -> None:
        self._city, self._caster = city, caster
        generator = keyed_generator(city.seed, "texture noise")
        self._random = torch.rand(_TABLE, _TABLE, generator=generator) * 2 - 1
        self._paint = torch.cat([to_linear(city.paint[:, :9] / 255), city.paint[:, 9:]], dim=1)
        self._crowns = to_linear(city.crowns / 255)
        self._sun = torch.tensor(SUN)

    def shade(
        self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"], hits: Hits, spread: float
    ) -> Float[Tensor, "n 3"]:
        """Colour seen along each ray.

        Args:
            origins: Where the rays start.
            directions: Unit vectors.
            hits: What ``Caster.cast`` found for them.
            spread: Angle between the rays of neighbouring pixels, radians.
        """
        color = self._sky(directions)
        boxes, roofs = len(self._city.boxes), len(self._city.roofs)
        solid = hits.solid
        points = origins + directions * hits.distance[:, None].nan_to_num(posinf=0.0)
        for seen, surface in (
            (solid == GROUND, self._ground),
            ((solid >= 0) & (solid < boxes), self._box),
            ((solid >= boxes) & (solid < boxes + roofs), self._roof),
            (solid >= boxes + roofs, self._crown),
        ):
            who = seen.nonzero().squeeze(1)
            if len(who) == 0:
                continue
            ray, point = directions[who], points[who]
            albedo, normal = surface(solid[who], point, ray, hits.distance[who] * spread)
            color[who] = albedo * self.light(point, normal)
        return color

    def light(self, point: Float[Tensor, "m 3"], normal: Float[Tensor, "m 3"]) -> Float[Tensor, "m 3"]:
        """Light that a surface receives: the sky's, and the sun's by Lambert's law where nothing blocks it."""
        facing = normal @ self._sun
        sunny = (facing > 0).nonzero().squeeze(1)
        start = point[sunny] + normal[sunny] * _LIFT
        lit = self._caster.cast(start, self._sun.expand(len(sunny), 3)).solid == SKY
        sun = torch.zeros_like(facing)
        sun[sunny] = facing[sunny] * lit
        up = (0.5 + 0.5 * normal[:, 2:]).clamp(0, 1)
        # Walls near the street see less of the sky: a cheap stand-in for occlusion by what stands opposite.
        open_sky = torch.where(normal[:, 2:] > 0.5, 1.0, 0.6 + 0.4 * (point[:, 2:] / 8).clamp(0, 1))
        ambient = point.new_tensor(SKYLIGHT) * up + point.new_tensor(_BOUNCE) * (1 - up)
        return sun[:, None] * point.new_tensor(SUNLIGHT) + ambient * open_sky

    def _sky(self, directions: Tensor) -> Tensor:
        """Blue above, pale at the horizon, bright around the sun."""
        height = directions[:, 2].clamp(0, 1).sqrt()
        sky = _mix(_rgb((206, 220, 232)).expand(len(height), 3), _rgb((92, 144, 206)), height)
        glow = (directions @ self._sun).clamp_min(0) ** 64
        return _mix(sky, torch.ones(3), 0.6 * glow)

    # Random tones

    def _tone(self, i: Tensor, j: Tensor) -> Tensor:
        """One random number in [-1, 1] for every pair of integers (given as floats)."""
        return self._random[i.long() % _TABLE, j.long() % _TABLE]

    def _noise(self, x: Tensor, y: Tensor, cell: float, width: Tensor) -> Tensor:
        """Smooth noise in [-1, 1] with features of ``cell`` metres, gone where ``width`` exceeds them."""
        u, v = x.clamp(-_FAR, _FAR) / cell, y.clamp(-_FAR, _FAR) / cell
        i, j = u.floor(), v.floor()
        a, b = u - i, v - j
        a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
        near = self._tone(i, j) * (1 - b) + self._tone(i, j + 1) * b
        far = self._tone(i + 1, j) * (1 - b) + self._tone(i + 1, j + 1) * b
        return (near * (1 - a) + far * a) * (1 - width / cell).clamp(0, 1)

    # Surfaces: (solid, point, ray, width) -> albedo [m,3], normal [m,3]

    def _box(self, solid: Tensor, point: Tensor, ray: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        x0, y0, x1, y1, top = self._city.boxes[solid].unbind(1)
        x, y, z = point.unbind(1)
        face = torch.stack([(x - x0).abs(), (x1 - x).abs(), (y - y0).abs(), (y1 - y).abs(), (top - z).abs()]).argmin(0)
        normal = _normals()[face]
        paint = self._paint[solid]
        albedo = torch.empty_like(point)
        wall = (face < 4).nonzero().squeeze(1)
        albedo[wall] = self._wall(solid[wall], face[wall] < 2, (x0, x1, y0, y1, top), point, ray, width, wall)
        roof = (face == 4).nonzero().squeeze(1)
        albedo[roof] = self._flat_roof(paint[roof], (x0[roof], x1[roof], y0[roof], y1[roof]), point[roof], ray[roof],
                                       width[roof])  # fmt: skip
        return albedo, normal

    def _wall(
        self, solid: Tensor, along_y: Tensor, extent: tuple[Tensor, ...], point: Tensor, ray: Tensor, width: Tensor,
        who: Tensor,
    ) -> Tensor:  # fmt: skip
        """A facade: rows of windows, each with a tone of its own, floor bands, a darker base, weathering."""
        wall, glass, _, rest = self._paint[solid].split((3, 3, 3, 5), dim=1)
        bay, storey, wide, tall, _ = rest.unbind(1)
        x0, x1, y0, y1, top = (c[who] for c in extent)
        x, y, z = point[who].unbind(1)
        dx, dy, dz = ray[who].unbind(1)
        u = torch.where(along_y, y, x)
        low, high = torch.where(along_y, y0, x0), torch.where(along_y, y1, x1)
        across = torch.where(along_y, dx, dy).abs().clamp_min(1e-3)
        width_u = width[who] * (1 + (torch.where(along_y, dy, dx) / across) ** 2).sqrt()
        width_v = width[who] * (1 + (dz / across) ** 2).sqrt()
        # A whole number of bays between the corners; storeys count from the ground.
        bay = (high - low) / ((high - low) / bay).round().clamp_min(1)
        u = u - low
        glazed = pulse(u, bay, wide, width_u) * pulse(z, storey, tall, width_v)
        glazed = glazed * _within(top - 0.8 - z, width_v)
        i, j = (u / bay).floor(), (z / storey).floor()
        coarse = torch.maximum(width_u / bay, width_v / storey)
        tone = self._tone(i + solid * 7, j + solid * 13) * (1 - 0.7 * coarse).clamp(0, 1)
        # A bright blind behind one window in five.
        pane = glass * (1 + 0.45 * tone)[:, None] + 0.25 * ((tone - 0.6) / 0.4).clamp(0, 1)[:, None]
        band = pulse(z, storey, torch.full_like(z, 0.1), width_v)
        weather = 1 + 0.07 * self._noise(u + solid * 3.7, z, 2.5, torch.maximum(width_u, width_v))
        base = 1 - 0.25 * _within(1.0 - z, width_v)
        plain = wall * (weather * base * torch.where(wide > 0, 1 - 0.12 * (1 - band), 1.0))[:, None]
        return _mix(plain, pane, glazed)

    def _flat_roof(
        self, paint: Tensor, extent: tuple[Tensor, ...], point: Tensor, ray: Tensor, width: Tensor
    ) -> Tensor:
        """Gravel with stains and seams inside a bright parapet."""
        x0, x1, y0, y1 = extent
        x, y, _ = point.unbind(1)
        width = width / ray[:, 2].abs().clamp_min(0.05)
        stains = 0.16 * self._noise(x, y, 5.0, width) + 0.1 * self._noise(x, y, 1.3, width)
        seams = pulse(x - x0, torch.full_like(x, 3.0), torch.full_like(x, 0.94), width)
        parapet = paint[:, 13]
        building = (parapet > 0).float()
        top = paint[:, 6:9] * (1 + building * (stains - 0.22 * (1 - seams)))[:, None]
        rim = torch.minimum(torch.minimum(x - x0, x1 - x), torch.minimum(y - y0, y1 - y))
        edge = _within(parapet - rim, width) * building
        return _mix(top, (paint[:, 6:9] * 0.4 + 0.42).clamp_max(0.8), edge)

    def _roof(self, solid: Tensor, point: Tensor, ray: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        row = self._city.roofs[solid - len(self._city.boxes)]
        x0, y0, x1, y1, slope_x, height_x, slope_y, height_y = row.unbind(1)
        x, y, z = point.unbind(1)
        mx, my = x - (x0 + x1) / 2, y - (y0 + y1) / 2
        lean_x, lean_y = (1 + slope_x**2).sqrt(), (1 + slope_y**2).sqrt()
        gap_x = (height_x - slope_x * mx.abs() - z).abs() / lean_x
        gap_y = (height_y - slope_y * my.abs() - z).abs() / lean_y
        # A pair of planes without slope only bounds the ridge; it is no surface.
        gap_x, gap_y = torch.where(slope_x > 0, gap_x, 1e3), torch.where(slope_y > 0, gap_y, 1e3)
        walls = [(x - x0).abs(), (x1 - x).abs(), (y - y0).abs(), (y1 - y).abs()]
        face = torch.stack([*walls, torch.minimum(gap_x, gap_y)]).argmin(0)
        over_x = gap_x <= gap_y
        tilt_x, tilt_y = torch.where(over_x, slope_x * mx.sign(), 0), torch.where(over_x, 0, slope_y * my.sign())
        sloped = torch.nn.functional.normalize(torch.stack([tilt_x, tilt_y, torch.ones_like(z)], dim=1))
        on_roof = face == 4
        normal = torch.where(on_roof[:, None], sloped, _normals()[face])

        albedo = torch.empty_like(point)
        wall = (~on_roof).nonzero().squeeze(1)
        # Windows end at the eaves.
        eaves = torch.where(slope_x > 0, height_x - slope_x * (x1 - x0) / 2, height_y - slope_y * (y1 - y0) / 2) + 0.8
        albedo[wall] = self._wall(solid[wall], face[wall] < 2, (x0, x1, y0, y1, eaves), point, ray, width, wall)
        tiles = on_roof.nonzero().squeeze(1)
        cover = width[tiles] / (-(sloped * ray).sum(1)[tiles]).clamp_min(0.05)
        courses = pulse(z[tiles], torch.tensor(0.5), torch.tensor(0.7), cover)
        along = torch.where(over_x, y, x)[tiles]
        mottled = 0.14 * self._noise(along, z[tiles] * 2, 1.6, cover) + 0.1 * self._noise(along, z[tiles], 5.0, cover)
        albedo[tiles] = self._paint[solid[tiles], 6:9] * (0.92 + mottled + 0.2 * (courses - 0.7))[:, None]
        return albedo, normal

    def _crown(self, solid: Tensor, point: Tensor, ray: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        tree = solid - len(self._city.boxes) - len(self._city.roofs)
        center, size = self._city.trees[tree].split((3, 2), dim=1)
        normal = torch.nn.functional.normalize((point - center) / size[:, [0, 0, 1]] ** 2)
        x, y, z = point.unbind(1)
        leaves = self._noise(x + 0.7 * z, y - 0.6 * z, 0.9, width)
        clumps = self._noise(x - 0.5 * z, y + 0.8 * z, 2.2, width)
        albedo = self._crowns[tree] * (1 + 0.3 * leaves + 0.25 * clumps)[:, None]
        # Foliage scatters: its shading is softer than that of a ball.
        return albedo, torch.nn.functional.normalize(normal + normal.new_tensor([0.0, 0.0, 0.4]))

    def _ground(self, solid: Tensor, point: Tensor, ray: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks, sidewalks, carriageways with their markings; fields outside the city."""
        x, y, _ = point.unbind(1)
        width = width / (-ray[:, 2]).clamp_min(0.02)
        size_x, size_y = self._city.size
        gx, gy = x + size_x / 2, y + size_y / 2
        # Metres inside the outer back of the sidewalks.
        inside = torch.minimum(torch.minimum(gx, size_x - gx), torch.minimum(gy, size_y - gy)) + KERB
        albedo = self._fields(x, y, width)
        urban = (inside > -width).nonzero().squeeze(1)
        city = self._streets(gx[urban], gy[urban], width[urban])
        albedo[urban] = _mix(albedo[urban], city, _within(inside[urban], width[urban]))
        return albedo, torch.tensor([0.0, 0.0, 1.0]).expand_as(point)

    def _fields(self, x: Tensor, y: Tensor, width: Tensor) -> Tensor:
        """A patchwork of crops between hedges, turned against the streets."""
        x, y = x.clamp(-_FAR, _FAR), y.clamp(-_FAR, _FAR)
        u, v = 0.94 * x - 0.34 * y + 31.0, 0.34 * x + 0.94 * y - 17.0
        long, short = 74.0, 46.0
        j = (v / short).floor()
        u = u + 23.0 * (j % 3)
        i = (u / long).floor()
        tone, hue = self._tone(i, j), self._tone(i + 91, j + 57)
        crop = _mix(_rgb((112, 134, 70)).expand(len(x), 3), _rgb((176, 162, 104)), 0.5 + 0.5 * hue)
        rows = torch.full_like(u, 4.0)
        furrows = pulse(torch.where(tone > 0, u, v), rows, torch.tensor(0.5), width) - 0.5
        grain = 0.1 * self._noise(x, y, 3.0, width) + 0.14 * self._noise(x, y, 17.0, width)
        crop = crop * (0.95 + 0.15 * tone + grain + 0.16 * furrows)[:, None]
        fu, fv = u - i * long, v - j * short
        rim = torch.minimum(torch.minimum(fu, long - fu), torch.minimum(fv, short - fv))
        return _mix(crop, _rgb((74, 92, 52)), _within(1.5 - rim, width))

    def _streets(self, gx: Tensor, gy: Tensor, width: Tensor) -> Tensor:
        """Ground of the city by distance to the streets' middle lines; gx, gy count from the first streets."""
        i, j = gx / PITCH, gy / PITCH
        sx, sy = gx - i.round() * PITCH, gy - j.round() * PITCH
        ax, ay = sx.abs(), sy.abs()
        blocks = self._city.ground
        column, row = i.floor().long().clamp(0, blocks.shape[0] - 1), j.floor().long().clamp(0, blocks.shape[1] - 1)
        yard = self._yard(blocks[column, row], gx, gy, width)

        slabs = pulse(gx, torch.tensor(1.5), torch.tensor(0.9), width) * pulse(gy, torch.tensor(1.5), torch.tensor(0.9),
                                                                               width)  # fmt: skip
        grain = self._noise(gx, gy, 4.0, width)
        walk = _rgb((184, 180, 172)) * (0.82 + 0.18 * slabs + 0.05 * grain)[:, None]
        wear = 0.1 * grain + 0.09 * self._noise(gx, gy, 13.0, width) + 0.07 * self._noise(gx, gy, 1.1, width)
        road = _rgb((92, 92, 94)) * (1 + wear)[:, None]
        road = _mix(road, _rgb((232, 230, 222)), 0.9 * self._markings(sx, sy, ax, ay, gx, gy, width))

        nearest = torch.minimum(ax, ay)
        ground = _mix(yard, walk, _within(KERB - nearest, width))
        kerb = _within(ROAD + 0.35 - nearest, width)
        return _mix(_mix(ground, _rgb((212, 208, 200)), kerb), road, _within(ROAD - nearest, width))

    def _markings(
        self, sx: Tensor, sy: Tensor, ax: Tensor, ay: Tensor, gx: Tensor, gy: Tensor, width: Tensor
    ) -> Tensor:
        """Share of white paint: dashed middle lines, zebra crossings and stop lines before every crossing."""
        paint = torch.zeros_like(sx)
        for off, signed, along, ahead in ((ax, sx, gy, ay), (ay, sy, gx, ax)):
            # Only one street's markings count at a place: those of the street whose middle is nearer.
            mine = (off < ROAD) & (ahead > ROAD)
            dash = pulse(along, torch.tensor(6.0), torch.tensor(0.5), width) * _within(ahead - 10.5, width)
            line = dash * _within(0.16 - off, width)
            stripes = pulse(signed, torch.tensor(1.3), torch.tensor(0.5), width) * _within(ROAD - 0.4 - off, width)
            zebra = stripes * _within(1.5 - (ahead - 7.0).abs(), width)
            stop = _within(0.25 - (ahead - 9.6).abs(), width) * _within(ROAD - 0.3 - off, width)
            paint = torch.where(mine, torch.maximum(line, torch.maximum(zebra, stop)), paint)
        return paint

    def _yard(self, kind: Tensor, gx: Tensor, gy: Tensor, width: Tensor) -> Tensor:
        """Ground inside a block: paving, lawn, or a park with a ring, a cross of paths and a pond."""
        grain = 0.16 * self._noise(gx, gy, 2.0, width) + 0.16 * self._noise(gx, gy, 9.0, width)
        bricks = pulse(gx + gy, torch.tensor(2.4), torch.tensor(0.5), width) - 0.5
        paved = _rgb((158, 150, 140)) * (1 + 0.5 * grain + 0.12 * bricks)[:, None]
        mown = pulse(gx, torch.tensor(4.0), torch.tensor(0.5), width) - 0.5
        lawn = _rgb((104, 132, 64)) * (1 + grain + 0.12 * mown * (kind == PARK))[:, None]
        mx, my = gx % PITCH - PITCH / 2, gy % PITCH - PITCH / 2
        ring = (mx * mx + my * my).sqrt()
        path = torch.maximum(_within(1.3 - torch.minimum(mx.abs(), my.abs()), width),
                             _within(1.4 - (ring - 8.5).abs(), width))  # fmt: skip
        gravel = _rgb((206, 190, 156)) * (1 + 0.4 * grain)[:, None]
        park = _mix(lawn, gravel, path)
        park = _mix(park, _rgb((74, 110, 124)) * (1 + 0.2 * grain)[:, None], _within(5.0 - ring, width))
        yard = torch.where((kind == LAWN)[:, None], lawn, paved)
        return torch.where((kind == PARK)[:, None], park, yard)


def _normals() -> Tensor:
    """Outward normals of a box's faces: west, east, south, north, top."""
    return torch.tensor([[-1.0, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, 1]])
