"""Line charts and the map of blocks as inline SVG, without scripts; lines of text take the colour of the page."""

import base64
import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import cv2
import numpy as np

WIDTH, HEIGHT = 720, 260
"""Size of a chart in SVG user units; the page scales it."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 170, 12, 34
MAX_POINTS = 200
"""Most points of a line; more are averaged in groups. At this number, details are finer than the width of the line."""
MAX_NAMES = 14
"""Most entries of a legend: as many as fit beside a chart."""


def line_chart(curves: Mapping[str, Mapping[int, float]], ylabel: str, *, log: bool = False) -> str:
    """Curves over steps, with a legend; '' if no curve has a finite value (above 0, if ``log``).

    Args:
        curves: Name -> step -> value.
        ylabel: The quantity with its unit, as the description of the chart.
        log: Use a logarithmic y axis.
    """
    lines = {
        name: points
        for name, curve in curves.items()
        if (points := _thinned([(s, v) for s, v in sorted(curve.items()) if math.isfinite(v) and (v > 0 or not log)]))
    }
    if not lines:
        return ""
    scale = math.log10 if log else float
    xs = [x for points in lines.values() for x, _ in points]
    ys = [scale(y) for points in lines.values() for _, y in points]
    (x0, x1), (y0, y1) = _range(xs), _range(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        right, down = (x - x0) / (x1 - x0), (y1 - y) / (y1 - y0)
        return _LEFT + right * (WIDTH - _LEFT - _RIGHT), _TOP + down * (HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in ticks(y0, y1):
        _, y = place(x0, tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{10**tick if log else tick:.4g}", "end"))
    for tick in ticks(x0, x1):
        x, _ = place(tick, y0)
        parts.append(_text(x, HEIGHT - _BOTTOM + 16, f"{tick:g}", "middle"))
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 3, "step", "middle"))
    for i, (name, points) in enumerate(lines.items()):
        at = [place(x, scale(y)) for x, y in points]
        if len(at) == 1:
            parts.append(f'<circle cx="{at[0][0]:.1f}" cy="{at[0][1]:.1f}" r="2.5" fill="{color(i)}"/>')
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
            parts.append(f'<polyline fill="none" stroke="{color(i)}" stroke-width="1.5" points="{path}"/>')
        if i < MAX_NAMES:
            y = _TOP + 8 + 15 * i
            parts.append(f'<path stroke="{color(i)}" stroke-width="3" d="M{WIDTH - _RIGHT + 10} {y - 4}h14"/>')
            parts.append(_text(WIDTH - _RIGHT + 30, y, name, "start"))
    if len(lines) > MAX_NAMES:
        more = f"and {len(lines) - MAX_NAMES} more"
        parts.append(_text(WIDTH - _RIGHT + 30, _TOP + 8 + 15 * MAX_NAMES, more, "start"))
    return _svg(WIDTH, HEIGHT, ylabel, parts)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten apart) in [low, high], low < high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def color(index: int) -> str:
    """Colour of a line; consecutive ones differ much in hue, and all are visible on white and on black."""
    rgb = colorsys.hls_to_rgb((index * 0.61803 + 0.58) % 1, 0.5, 0.65)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


@dataclass(frozen=True)
class Label:
    """Lines of text on a map, at ``x`` and ``y`` in [0, 1] from its left and lower edge."""

    x: float
    y: float
    lines: tuple[str, ...]


def score_map(
    scores: np.ndarray, aspect: float, dots: Sequence[tuple[float, float]], labels: Sequence[Label], about: str
) -> str:
    """A raster coloured by its values, with dots and labels on it, and a colour bar beside it.

    Args:
        scores: [H,W] in dB, the lowest row first; NaN where there is no score.
        aspect: Height over width of the area.
        dots: (x, y) in [0, 1], from the left and lower edge.
        labels: Texts on the map.
        about: The quantity with its unit, as the description of the map.
    """
    width, height = WIDTH - _RIGHT, min(max(round((WIDTH - _RIGHT) * aspect), 120), 2 * WIDTH)
    known = scores[np.isfinite(scores)]
    low, high = _range(known.tolist()) if known.size else (0.0, 1.0)
    shade = np.nan_to_num((scores - low) / (high - low), nan=-1)
    pixels = np.where(shade[..., None] < 0, [160, 160, 160], _shade(shade))
    parts = [
        f'<image href="{png(np.flipud(pixels).astype(np.uint8))}" width="{width}" height="{height}" '
        'preserveAspectRatio="none" style="image-rendering:pixelated"/>'
    ]
    for x, y in dots:
        parts.append(f'<circle class="dot" cx="{x * width:.1f}" cy="{(1 - y) * height:.1f}" r="2.5"/>')
    for label in labels:
        for i, line in enumerate(label.lines):
            parts.append(_text(label.x * width, (1 - label.y) * height + 15 * i, line, "middle", "label"))
    if known.size:
        bar = _shade(np.linspace(1, 0, 64)[:, None]).astype(np.uint8)
        parts.append(
            f'<image href="{png(bar)}" x="{width + 16}" y="20" width="14" height="80" preserveAspectRatio="none"/>'
        )
        parts.append(_text(width + 36, 28, f"{known.max():.2f} dB", "start"))
        parts.append(_text(width + 36, 100, f"{known.min():.2f} dB", "start"))
    return _svg(WIDTH, height, about, parts)


def png(rgb: np.ndarray) -> str:
    """An 8-bit RGB image [H,W,3] as a data URI."""
    _, data = cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2BGR))
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


def _shade(share: np.ndarray) -> np.ndarray:
    """[...] in [0, 1] -> [...,3] in [0, 255]: from dark violet through green to yellow. The order is also visible in
    greyscale and to colour-blind readers."""
    stops = np.array([[68, 1, 84], [33, 145, 140], [253, 231, 37]])
    return np.stack([np.interp(share, [0, 0.5, 1], stops[:, i]) for i in range(3)], axis=-1)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest value, padded if all are equal."""
    low, high = min(values), max(values)
    pad = 0 if high - low > 1e-12 * max(abs(low), abs(high)) else max(abs(low) * 0.05, 1e-6)
    return low - pad, high + pad


def _thinned(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most ``MAX_POINTS`` points, each the mean of consecutive points."""
    size = -(-len(points) // MAX_POINTS)
    runs = [points[i : i + size] for i in range(0, len(points), size)] if points else []
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def _text(x: float | int, y: float | int, text: str, anchor: str, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, about: str, parts: Sequence[str]) -> str:
    label = escape(about)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
