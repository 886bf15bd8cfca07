"""The static page, mostly in a browser: opened from disk, it shows what our rasterizer shows and asks for nothing."""

import base64
import gzip
import hashlib
import importlib.util
import json
import math
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from splat_scene import random_splats
from tiny_scene import nadir_camera, texture

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.types import Camera
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.export.html.overlays import cell_values, focus_distances, overview
from momentum_gs.export.html.page import ONE_FILE, read_page, write_page
from momentum_gs.export.html.spz import spz_bytes
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.view import render_image

ROOT = Path(__file__).parents[1]
VENDOR = ROOT / "momentum_gs" / "export" / "html" / "vendor"
CHROMIUM = shutil.which("chromium")
NO_BROWSER = "there is no chromium" if importlib.util.find_spec("playwright") else "playwright is not installed"
in_browser = pytest.mark.skipif(CHROMIUM is None or "playwright" in NO_BROWSER, reason=NO_BROWSER)
HOSTILE = "\"'></script><script>document.title='hostile'</script>&amp;{style}\u2028.png"
"""A name that ends elements, attributes and JSON wherever it is pasted unescaped."""
UP = torch.tensor([0.0, 0.0, 1.0])
PATIENCE = 240_000
"""Milliseconds after which something hangs: a busy machine is slow, not wrong."""


def plane(degree: int = 3) -> Splats:
    """A textured ground with hills; its splats have random shapes, and colours that depend on the direction."""
    line = torch.linspace(-5, 5, 21)
    xy = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(-1, 2)
    height = 0.4 * torch.sin(2 * xy[:, :1]) * torch.cos(xy[:, 1:])
    random = random_splats(len(xy), degree, seed=1)
    splats = Splats.fresh(torch.cat([xy, height], dim=1), texture(xy), torch.zeros(len(xy), 3), degree)
    splats.log_scale = random.log_scale.detach() * 0.6 - 0.3
    splats.rotation, splats.sh_rest = random.rotation.detach(), random.sh_rest.detach() * 0.1
    splats.opacity = torch.full((len(xy), 1), 2.0)
    return splats.as_leaves()


def tilted(name: str) -> Camera:
    """A view from the side: rolled, with two focal lengths and the principal point off the centre."""
    quat = torch.tensor([[0.35, 0.9, 0.2, 0.1]], dtype=torch.float64)
    rotation = quat_to_matrix(quat)[0]
    center = torch.tensor([0.5, -2.5, 3.0], dtype=torch.float64)
    return Camera(name, 48, 36, 40.0, 44.0, 27.0, 16.0, rotation, -rotation @ center)


def cameras() -> list[Camera]:
    """Views of 96x72 pixels."""
    views = [nadir_camera("a/1.png", 0, 0), nadir_camera(HOSTILE, 2, -2), tilted("tilted.png")]
    return [camera.resized(96, 72) for camera in views]


def table() -> PartitionTable:
    """Four cells, turned by 30 degrees."""
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    rotation = torch.tensor([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return PartitionTable((-3.0, -2.0, -5.0, 3.0, 2.0, 5.0), (2, 2, 1), rotation, [[]] * 4)


def write(path: Path, degree: int = 3, **options: Any) -> list[Path]:
    settings: dict[str, Any] = {"title": HOSTILE, "up": UP, "cells": table(), "scores": {0: 20.0, 3: 25.5}}
    return write_page(path, plane(degree), cameras(), **(settings | options))


# ---- Without a browser -----------------------------------------------------------------------------------------------


def test_spz_holds_the_gaussians_to_its_precision() -> None:
    """Read back by the format's description, independently of how it is written."""
    splats, origin = random_splats(300, 2), torch.tensor([100.0, -50.0, 0.0], dtype=torch.float64)
    data = gzip.decompress(spz_bytes(splats, origin))
    magic, version, count, degree, fraction, flags, _ = struct.unpack("<IIIBBBB", data[:16])
    assert (magic, version, count, degree, flags) == (0x5053474E, 3, 300, 2, 0)
    parts, start = [], 16
    for width in (9, 1, 3, 3, 4, 8 * 3):
        parts.append(np.frombuffer(data, np.uint8, 300 * width, start).reshape(300, width).astype(np.int64))
        start += 300 * width
    assert start == len(data)
    position, alpha, color, scale, rotation, sh = parts
    fixed = position.reshape(300, 3, 3) @ [1, 256, 65536]
    fixed -= (fixed >= 2**23) * 2**24
    expected = splats.position.detach().double() - origin
    assert np.abs(fixed / 2**fraction - expected.numpy()).max() <= 0.5001 / 2**fraction
    assert fraction >= 15  # 24 bits for coordinates below 128
    assert np.abs(alpha / 255 - splats.opacity.detach().sigmoid().numpy()).max() <= 0.501 / 255
    inside = splats.sh_dc.detach().flatten(1).numpy()
    assert np.abs((color / 255 - 0.5) / 0.15 - inside)[np.abs(inside) < 3.2].max() <= 0.501 / 255 / 0.15
    assert np.abs(scale / 16 - 10 - splats.log_scale.detach().numpy()).max() <= 0.501 / 16
    values = np.clip(splats.sh_rest.detach().numpy().reshape(300, 24), -1, 127 / 128)
    assert np.abs(sh / 128 - 1 - values).max() <= 0.51 / 128
    word = rotation @ [1, 256, 65536, 2**24]
    quats = np.zeros((300, 4))
    for row, bits in enumerate(word.tolist()):
        largest = bits >> 30
        for i in (3, 2, 1, 0):
            if i != largest:
                quats[row, i] = (bits & 511) / 511 / math.sqrt(2) * (-1 if bits & 512 else 1)
                bits >>= 10
        quats[row, largest] = math.sqrt(1 - (quats[row] ** 2).sum())
    wanted = torch.nn.functional.normalize(splats.rotation.detach()).numpy()[:, [1, 2, 3, 0]]
    assert np.abs((quats * wanted).sum(axis=1)).min() > 0.99999


@pytest.mark.parametrize("one_file", [ONE_FILE, 0], ids=["in the page", "beside it"])
def test_a_page_is_read_back(tmp_path: Path, one_file: int) -> None:
    """By gsply, which did not write it."""
    files = write(tmp_path / "index.html", one_file=one_file)
    assert len(files) == (1 if one_file else 2)
    found, expected = read_page(files, cameras()), plane(3)
    assert (found.position - expected.position).abs().max() < 1e-4
    assert (found.log_scale - expected.log_scale).abs().max() <= 0.501 / 16
    assert (found.opacity.sigmoid() - expected.opacity.sigmoid()).abs().max() <= 0.501 / 255
    assert (found.sh_dc - expected.sh_dc).abs().max() <= 0.501 / 255 / 0.15
    assert (found.sh_rest - expected.sh_rest).abs().max() <= 0.51 / 128


def test_the_page_holds_all_and_names_nothing_outside(tmp_path: Path) -> None:
    (page,) = write(tmp_path / "new" / "index.html")
    text = page.read_text(encoding="utf-8")
    own = re.sub(r'<script type="text/plain"[^>]*>[^<]*</script>', "", text)  # Without renderer and Gaussians.
    assert "http" not in own.replace("http-equiv", "")
    assert "default-src 'none'" in own and "'self'" not in own
    assert not re.search(r"""\b(src|href)=["'](?!data:,)""", own)
    assert "<script>document.title='hostile'" not in own
    values = json.loads(re.search(r'id="scene">(.*?)</script>', text, re.DOTALL).group(1))  # type: ignore[union-attr]
    assert values["title"] == HOSTILE and values["cameras"][1]["name"] == HOSTILE
    assert values["gaussians"] == 441 and len(values["cells"]) == 4
    part = re.search(r'class="part">([^<]*)<', text).group(1)  # type: ignore[union-attr]
    assert len(base64.b64decode(part)) == values["bytes"]


def test_the_same_scene_gives_the_same_page(tmp_path: Path) -> None:
    (one,), (other,) = write(tmp_path / "one.html"), write(tmp_path / "other.html")
    assert one.read_bytes() == other.read_bytes()


def test_what_is_too_large_for_one_file_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "city_files").mkdir()
    (tmp_path / "city_files" / "001.js").touch()  # Of a larger model.
    page, part = write(tmp_path / "city.html", one_file=1000)
    assert [*part.parent.iterdir()] == [part]
    assert part == tmp_path / "city_files" / "000.js"
    assert page.stat().st_size < 1.5 * (VENDOR / "renderer.js.gz").stat().st_size
    assert '"files":["city_files/000.js"]' in page.read_text(encoding="utf-8")


def test_nothing_to_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found no cameras, expected at least one"):
        write_page(tmp_path / "x.html", plane(), [], title="x", up=UP)
    with pytest.raises(UserError, match="found no Gaussians, expected at least one"):
        write_page(tmp_path / "x.html", random_splats(0), cameras(), title="x", up=UP)
    lost = random_splats(2)
    lost.position.data[1, 2] = math.nan
    with pytest.raises(UserError, match="1 of 2 Gaussians are at NaN or infinity"):
        write_page(tmp_path / "x.html", lost, cameras(), title="x", up=UP)
    assert not (tmp_path / "x.html").exists()


def test_cells_are_drawn_where_they_are() -> None:
    grid, zero = table(), torch.zeros(3, dtype=torch.float64)
    shown = torch.tensor([6.0, 6.0, 2.0], dtype=torch.float64)
    found = cell_values(grid, {2: 21.0}, -shown, shown, zero)
    assert [(cell["block"], cell["psnr"]) for cell in found] == [(0, None), (1, None), (2, 21.0), (3, None)]
    for cell in found:
        corners = torch.tensor(cell["corners"], dtype=torch.float64)
        assert grid.cell_of(corners.mean(dim=0, keepdim=True)).item() == cell["block"]
        sides = grid.to_grid(corners)
        assert torch.allclose(sides[7] - sides[0], shown * torch.tensor([1, 1, 2]))  # Two by two fill what is shown.


def test_a_camera_looks_at_the_surface_that_it_sees() -> None:
    points = torch.rand(5000, 3, dtype=torch.float64) * torch.tensor([10.0, 10.0, 0.0]) - torch.tensor([5.0, 5.0, 0.0])
    away = nadir_camera("away", 50, 50, 3.0)
    assert focus_distances([nadir_camera("a", 0, 0, 4.0), away], points) == [4.0, 4.0]
    assert focus_distances([away], points) == [1.0]


def test_the_overview_is_above_and_sees_every_camera() -> None:
    views = [nadir_camera(f"{x} {y}", x, y) for x in (-9, 0, 9) for y in (-9, 0, 9)]
    found = overview(views, [4.0] * 9, UP.double(), torch.zeros(3, dtype=torch.float64))
    eye, target = (torch.tensor(found[name]) for name in ("eye", "target"))
    assert target.abs().max() < 1e-6 and eye[2] > found["radius"] > 9


def test_the_renderer_is_the_one_that_its_version_file_names() -> None:
    version = json.loads((VENDOR / "VERSION.json").read_text())
    assert version.pop("sha256") == hashlib.sha256((VENDOR / "renderer.js.gz").read_bytes()).hexdigest()
    script = (ROOT / "scripts" / "vendor_page.sh").read_text()
    for name, number in version.items():
        assert f"{name.rpartition('/')[2].upper()}={number}" in script
    for name in ("spark", "three", "fflate"):
        assert "MIT License" in (VENDOR / f"LICENSE.{name}").read_text()


# ---- In a browser ----------------------------------------------------------------------------------------------------


@dataclass
class Opened:
    """A page in a browser, and what it did."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def still(self) -> None:
        """Waits until nothing moves."""
        self.page.wait_for_selector("body[data-state=ready][data-still=yes]", timeout=PATIENCE)

    def pixels(self) -> np.ndarray:
        """[H,W,3] in [0, 1]."""
        self.still()
        data = np.frombuffer(self.page.screenshot(timeout=PATIENCE), np.uint8)
        return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) / 255

    def value(self, expression: str) -> Any:
        return self.page.evaluate(expression)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-background-networking", "--use-angle=swiftshader",
                 "--enable-unsafe-swiftshader"]  # fmt: skip
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, headless=True, timeout=PATIENCE)
        yield found
        found.close()


def open_page(browser: Any, file: Path, script: str | None = None) -> Opened:
    """The page from disk, offline, as large as the cameras' images. Flights are instant (reduced motion)."""
    context = browser.new_context(viewport={"width": 96, "height": 72}, reduced_motion="reduce", offline=True)
    opened = Opened(context.new_page())
    if script is not None:
        opened.page.add_init_script(script)
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.on("console", lambda m: opened.errors.append(m.text) if m.type in ("error", "warning") else None)
    opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.page.goto(file.as_uri(), timeout=PATIENCE)
    opened.page.wait_for_selector("body:not([data-state=loading])", timeout=PATIENCE)
    return opened


@pytest.fixture(scope="module")
def shown(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """One page for all tests of it, its panel hidden."""
    file = tmp_path_factory.mktemp("page") / "index.html"
    write(file)
    opened = open_page(browser, file)
    assert opened.page.text_content("#message") == ""
    opened.page.keyboard.press("h")
    return opened


def psnr(image: np.ndarray, camera: Camera, degree: int = 3) -> float:
    """Of the browser's image against our rasterizer's, dB."""
    ours = render_image(plane(degree), Harmonics(degree), camera, torch.zeros(3)).permute(1, 2, 0).numpy()
    assert image.shape == ours.shape
    return float(-10 * np.log10(((image - ours) ** 2).mean()))


@in_browser
@pytest.mark.slow
class TestInBrowser:
    """All with one page, which each test leaves at the camera where it began."""

    def test_every_camera_shows_what_our_rasterizer_shows(self, shown: Opened) -> None:
        first = shown.pixels()
        assert psnr(first, cameras()[0]) > 30
        for index, camera in enumerate(cameras()):
            shown.page.dispatch_event(f"#cameras button[data-index='{index}']", "click")
            image = shown.pixels()
            assert psnr(image, camera) > 30, camera.name
            if index:
                assert psnr(first, camera) < 20, "the views are alike, so that the test finds nothing"
        shown.value("momentumPage.goTo(0)")
        assert np.array_equal(shown.pixels(), first)

    def test_cells_and_cameras_are_shown_and_hidden(self, shown: Opened) -> None:
        shown.value("momentumPage.overview()")
        without = shown.pixels()
        for key, name in (("c", "cells"), ("f", "frusta")):
            shown.page.keyboard.press(key)
            assert shown.value(f"document.getElementById('{name}').checked")
            assert np.abs(shown.pixels() - without).max() > 0.3
            shown.page.keyboard.press(key)
            assert np.array_equal(shown.pixels(), without)
        assert shown.page.text_content("#legend") == "PSNR 20.0025.50 dB"
        shown.value("momentumPage.goTo(0)")

    def test_a_click_on_a_camera_in_the_scene_goes_there(self, shown: Opened) -> None:
        shown.value("momentumPage.overview(); momentumPage.show('frusta', true)")
        shown.still()
        x, y = shown.value(
            "(() => { const p = momentumPage.poses[2].position.clone().project(momentumPage.view.camera);"
            "return [(p.x + 1) / 2 * innerWidth, (1 - p.y) / 2 * innerHeight]; })()"
        )
        shown.page.mouse.click(x, y)
        assert shown.value("momentumPage.current") == 2
        shown.value("momentumPage.show('frusta', false); momentumPage.goTo(0)")

    def test_mouse_and_keys_move_the_view(self, shown: Opened) -> None:
        pivot = "momentumPage.view.pivot().toArray()"
        position = "momentumPage.view.camera.position.toArray()"
        before, start = shown.value(pivot), shown.value(position)
        shown.page.mouse.move(48, 36)
        shown.page.mouse.down()
        shown.page.mouse.move(70, 20, steps=3)
        shown.page.mouse.up()
        assert shown.value(pivot) == pytest.approx(before, abs=1e-6)  # Orbits about what the camera looks at,
        assert math.dist(shown.value(position), before) == pytest.approx(math.dist(start, before))
        assert math.dist(shown.value(position), start) > 0.1
        shown.page.mouse.wheel(0, 200)
        shown.still()
        assert shown.value(pivot) == pytest.approx(before, abs=1e-6)  # zooms away from it,
        assert math.dist(shown.value(position), before) > 1.1 * math.dist(start, before)
        shown.page.keyboard.press("l")
        level = shown.value("momentumPage.view.axis(1, 0, 0).dot(momentumPage.view.up)")
        assert level == pytest.approx(0, abs=1e-6)  # and puts the horizon level.
        shown.page.keyboard.press("n")
        assert shown.value("momentumPage.current") == 1
        shown.page.keyboard.press("p")
        assert shown.value("momentumPage.current") == 0

    def test_the_scene_never_stands_on_its_head(self, shown: Opened) -> None:
        """From straight down, however far one drags."""
        for drag in (-700, 1400):
            shown.value(f"for (let i = 0; i < 50; i++) momentumPage.view.orbit(3, {drag} / 50)")
            assert shown.value("momentumPage.view.axis(0, 1, 0).dot(momentumPage.view.up)") > -1e-6
        shown.value("momentumPage.goTo(0)")

    def test_names_are_text(self, shown: Opened) -> None:
        assert shown.page.title().startswith("\"'></script>")
        assert shown.page.text_content("h1") == HOSTILE
        assert shown.page.text_content("#cameras button[data-index='1']") == HOSTILE
        assert shown.page.text_content("#facts") == "441 Gaussians, 3 cameras, 4 cells"

    def test_the_list_of_cameras_is_filtered(self, shown: Opened) -> None:
        shown.page.evaluate(
            "const f = document.getElementById('filter'); f.value = 'TILT'; f.dispatchEvent(new Event('input'))"
        )
        hidden = "[...document.getElementById('cameras').children].map((item) => item.hidden)"
        assert shown.value(hidden) == [True, True, False]

    def test_nothing_was_requested_and_nothing_went_wrong(self, shown: Opened) -> None:
        """Last, for all that the tests above did."""
        page, *others = shown.requests
        assert page.startswith("file://")
        assert all(url.startswith(("blob:", "data:")) for url in others)
        assert shown.errors == []


@in_browser
@pytest.mark.slow
def test_a_page_with_its_data_beside_it_opens_from_disk(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("momentum_gs.export.html.page.PART", 2000)
    page, *parts = write(tmp_path / "a b#c.html", degree=0, one_file=1000)
    assert len(parts) > 1
    opened = open_page(browser, page)
    opened.page.keyboard.press("h")
    assert psnr(opened.pixels(), cameras()[0], degree=0) > 30
    assert [url for url in opened.requests if not url.startswith("blob:")] == [file.as_uri() for file in (page, *parts)]
    parts[1].unlink()
    message = open_page(browser, page).page.text_content("#message")
    assert message == "The scene cannot be shown. The file a b#c_files/001.js is missing beside the page."


@in_browser
@pytest.mark.slow
def test_a_browser_without_webgl_is_told_so(browser: Any, tmp_path: Path) -> None:
    (page,) = write(tmp_path / "index.html")
    opened = open_page(browser, page, "HTMLCanvasElement.prototype.getContext = () => null")
    assert opened.page.get_attribute("body", "data-state") == "error"
    assert "offers no WebGL 2: switch hardware acceleration on" in opened.page.text_content("#message")
