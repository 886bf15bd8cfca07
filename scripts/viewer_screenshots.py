"""Writes the images of docs/viewer.md and prints what the two renderers cost, in a browser that draws in software.

    python scripts/viewer_screenshots.py OUT [--images docs/images] [--seconds 8]

OUT is a merged and scored run whose scene is there. Needs the extra 'dev' and Debian's chromium.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import PATIENCE, open_browser, wait  # noqa: E402

from momentum_gs.viewer.controls import BROWSER, SERVER  # noqa: E402
from momentum_gs.viewer.image_renderer import BLOCK, COLOR  # noqa: E402
from momentum_gs.viewer.run import open_run  # noqa: E402
from momentum_gs.viewer.server import ViewerServer  # noqa: E402
from momentum_gs.viewer.session import Session  # noqa: E402

WIDTH, HEIGHT = 1200, 750
SMALL = 400, 300
"""Window in which the renderers are timed."""
COUNT_FRAMES = """seconds => new Promise(done => {
    let count = 0;
    const end = performance.now() + 1000 * seconds;
    const tick = now => { count += 1; now < end ? requestAnimationFrame(tick) : done(count / seconds); };
    requestAnimationFrame(tick);
})"""


def shoot(page: Any, session: Session, file: Path) -> None:
    """Writes what the page shows once the full image has arrived."""
    sent, quiet = -1, 0
    while quiet < 4:
        quiet = quiet + 1 if session.images_sent == sent else 0
        sent = session.images_sent
        page.wait_for_timeout(500)
    bgr = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    file.write_bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes())
    print(file)


def moving_rate(page: Any, session: Session, seconds: float) -> tuple[float, float]:
    """(Images from the server, frames of the browser) per second while the camera is dragged."""
    page.mouse.move(SMALL[0] / 3, SMALL[1] / 2)
    page.mouse.down()
    sent, begun, drawn, step = session.images_sent, time.monotonic(), [], 0
    while time.monotonic() < begun + seconds:
        step += 1
        page.mouse.move(SMALL[0] / 3 + 60 * np.sin(step / 3), SMALL[1] / 2 + 20 * np.cos(step / 3))
        drawn.append(page.evaluate(COUNT_FRAMES, 0.3))
    page.mouse.up()
    return (session.images_sent - sent) / (time.monotonic() - begun), float(np.mean(drawn))


def main() -> None:
    """Parses and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=Path, default=Path(__file__).parents[1] / "docs" / "images")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    args = parser.parse_args()
    with open_browser() as browser, ViewerServer([open_run(args.out)], port=0) as server:
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(server.url)
        wait(page, lambda: server.sessions and server.sessions[0].images_sent)
        page.locator(".mantine-Notification-closeButton").click()
        session = server.sessions[0]
        session.choose_renderer(SERVER)
        shoot(page, session, args.images / "viewer_overview.jpg")
        sent = session.images_sent
        session.open_camera(session.run.cameras[-1])
        wait(page, lambda: session.images_sent > sent)
        shoot(page, session, args.images / "viewer_camera.jpg")
        session.go_home()
        for layer in ("cells", "cameras", "grid"):
            session.show_layer(layer, False)
        session.choose_mode(BLOCK)
        shoot(page, session, args.images / "viewer_blocks.jpg")
        session.choose_mode(COLOR)
        page.set_viewport_size({"width": SMALL[0], "height": SMALL[1]})
        for renderer in (SERVER, BROWSER):  # At last the one that takes a browser without a GPU minutes.
            session.choose_renderer(renderer)
            page.wait_for_timeout(3000)
            images, frames = moving_rate(page, session, args.seconds)
            rates = f"{images:.1f} images/s from the server, {frames:.1f} frames/s in the browser"
            print(f"{renderer}: {rates}", flush=True)


if __name__ == "__main__":
    main()
