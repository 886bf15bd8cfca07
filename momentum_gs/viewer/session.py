"""One browser: what it has chosen, and what it is shown for that."""

import threading
from copy import copy
from dataclasses import replace

import cv2
import torch
import viser
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera
from momentum_gs.render.view import render_image
from momentum_gs.viewer.camera_panel import CameraPanel
from momentum_gs.viewer.camera_path import PATH_FILE, KeyFrame, save_path
from momentum_gs.viewer.controls import AUTOMATIC, BROWSER, NOTHING, SHOWN_AT_FIRST, Controls
from momentum_gs.viewer.crop import CropBox, box_of
from momentum_gs.viewer.fly import fly_home, fly_to, stand_upright
from momentum_gs.viewer.gaussian_layer import GaussianLayer
from momentum_gs.viewer.image_renderer import COLOR, ERRORS, Image, beside, range_of, render
from momentum_gs.viewer.image_stream import ImageStream
from momentum_gs.viewer.models import LIVE, Measured, Models
from momentum_gs.viewer.run import ViewerRun
from momentum_gs.viewer.scene_layers import LAYERS, SceneLayers
from momentum_gs.viewer.shown import Shown
from momentum_gs.viewer.upright import vertical_fov


class Session:
    """All that belongs to one browser; another one has its own. Implements ``Actions``."""

    def __init__(self, client: viser.ClientHandle, models: Models) -> None:
        self._client, self._models = client, models
        self._lock = threading.RLock()  # viser calls from several threads.
        self._number = 0
        self._label = self._newest = self._wanted = NOTHING
        self._mode, self._renderer = COLOR, AUTOMATIC
        self._errors_seen: list[Measured] = []
        self._error_range: tuple[float, float] | None = None
        self._in_browser = False
        self._beside: tuple[int, str] | None = None
        self._split = 0.5
        self._path: list[KeyFrame] = []
        self._hidden: frozenset[int] = frozenset()
        self._box: CropBox | None = None
        self._whole: Shown | None = None
        self._shown: Shown | None = None
        """``_whole`` without what is hidden."""
        self._visible = {layer: SHOWN_AT_FIRST.get(layer, True) for layer in LAYERS}
        self._controls = Controls(client, models.runs, self)
        self._panel = CameraPanel(client, self._render_view)
        self._gaussians = GaussianLayer(client.scene)
        self._layers = self._make_layers()
        self._stream = ImageStream(client, lambda: self.run.upright, self._draw)
        self._show_newest()
        client.camera.on_update(self._stream.look)
        self._stream.look(client.camera)

    @property
    def run(self) -> ViewerRun:
        """The run that is shown."""
        return self._models.runs[self._number]

    @property
    def camera(self) -> viser.CameraHandle:
        """The browser's camera."""
        return self._client.camera

    @property
    def panel_text(self) -> str:
        """What the panel says of the view that was flown to; empty before."""
        return self._panel.text

    @property
    def images_sent(self) -> int:
        """Rendered images that this browser was sent."""
        return self._stream.sent

    def close(self) -> None:
        """Called once the browser is gone."""
        self._stream.close()

    def choose_run(self, name: str) -> None:
        """Shows another run, from where the camera stands."""
        with self._lock:
            self._number = [run.name for run in self._models.runs].index(name)
            self._layers.remove()
            self._layers = self._make_layers()
            self._panel.close()
            self._show_newest()

    def choose_state(self, label: str) -> None:
        """Shows another state of the run. While one loads, only the last of those chosen meanwhile will be loaded."""
        self._wanted = label
        with self._lock:
            if label == self._wanted:
                self._label = label
                self._controls.show_state(label)
                self._load()

    def take_news(self, number: int) -> None:
        """A run has newer states. Who looks at its newest one is shown the new one; hidden blocks stay hidden."""
        with self._lock:
            if number != self._number:
                return
            labels = self._models.labels(number)
            follows = self._label in (NOTHING, LIVE) or (self._label == self._newest and LIVE in labels)
            self._newest = labels[-1] if labels else NOTHING
            self._label = self._newest if follows else self._label
            self._controls.show_states(labels, self._label)
            if follows:
                self._load(keep_hidden=True)

    def choose_mode(self, mode: str) -> None:
        """Colours the model in another way."""
        with self._lock:
            self._mode, self._errors_seen = mode, []
            self._filter()

    def take_errors(self) -> None:
        """Shows the errors that have been measured meanwhile, if they are what is shown."""
        if self._mode in ERRORS and self._label != NOTHING:
            with self._lock:
                states = [(self._number, self._label), *([] if self._beside is None else [self._beside])]
                found = [copy(self._models.errors(*state, self._mode)) for state in states]
                if found != self._errors_seen:
                    self._errors_seen = found
                    self._filter()

    def choose_beside(self, name: str, split: float) -> None:
        """Shows another state of any run right of a line."""
        self._beside, self._split = self._models.named(name), split
        self._update()

    def choose_renderer(self, renderer: str) -> None:
        """Draws on the server or in the browser."""
        self._renderer = renderer
        self._in_browser = renderer == BROWSER
        self._update()

    def show_layer(self, layer: str, visible: bool) -> None:
        """Switches an overlay on or off."""
        self._visible[layer] = visible
        self._layers.show(layer, visible)

    def hide_blocks(self, hidden: frozenset[int]) -> None:
        """Hides these blocks and no others."""
        with self._lock:
            self._hidden = hidden
            self._filter()

    def crop(self, box: CropBox | None) -> None:
        """Hides what is outside a box; None: nothing."""
        with self._lock:
            self._box = box
            self._layers.show_box(box)
            self._filter()

    def choose_camera(self, name: str) -> None:
        """Flies to a view and opens its panel."""
        for camera in self.run.cameras:
            if camera.name == name:
                self.open_camera(camera)

    def open_camera(self, camera: Camera) -> None:
        """As ``choose_camera``, for a frustum that was clicked."""
        self._controls.show_camera(camera.name)
        fly_to(self._client, self.run, camera)
        self._panel.open(self.run, camera)

    def go_home(self) -> None:
        """Flies to the overview and closes the panel."""
        self._panel.close()
        self._controls.show_camera(NOTHING)
        fly_home(self._client, self.run)

    def stand_upright(self) -> None:
        """Makes z the axis about which the camera turns."""
        stand_upright(self._client)

    def next_run(self) -> None:
        """Shows the next run."""
        runs = self._models.runs
        self.choose_run(runs[(self._number + 1) % len(runs)].name)

    def add_key_frame(self) -> None:
        """Adds where the camera stands to the path, which is saved in the run's folder."""
        x, y, z = self.camera.position.tolist()
        w, i, j, k = self.camera.wxyz.tolist()
        self._path.append(KeyFrame((x, y, z), (w, i, j, k), float(self.camera.fov)))
        file = (self.run.path if self.run.path.is_dir() else self.run.path.parent) / PATH_FILE
        try:
            save_path(file, self._path)
            text = f"momentum-gs video {self.run.path} --path {file} -o tour.mp4"
        except OSError as error:
            text = f"{file}: cannot be written ({error.strerror})"
        self._client.add_notification(f"{len(self._path)} key frames", text)

    def start_path(self) -> None:
        """Forgets the key frames, for another path; the saved file stays until the next one is added."""
        self._path.clear()

    def take_screenshot(self) -> None:
        """Sends the browser a PNG of the view, without overlays, at the size of its window."""
        shown, state = self._shown, self.camera
        if shown is None:
            return
        camera = self.run.upright.camera(state.wxyz, state.position, state.fov, state.image_width, state.image_height)
        with self._models.rendering:
            image = self._image(shown, camera, self._number)
        png = cv2.imencode(".png", cv2.cvtColor(image.rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
        self._client.send_file_download(f"{self.run.path.stem}.png", png)

    def _make_layers(self) -> SceneLayers:
        return SceneLayers(self._client.scene, self.run, self._visible, self.open_camera)

    def _show_newest(self) -> None:
        labels = self._models.labels(self._number)
        self._label = self._newest = labels[-1] if labels else NOTHING
        self._box = None
        self._controls.show_box(box_of(self.run))
        self._controls.show_run(self.run, labels, self._label)
        self._controls.show_beside(self._models.names)
        self._load()

    def _load(self, keep_hidden: bool = False) -> None:
        if self._label == NOTHING:
            self._controls.status = "No model is saved yet."
            return
        try:
            self._whole = self._models.get(self._number, self._label)
        except UserError as error:
            self._controls.status = f"**{error}**"
            return
        if not keep_hidden:
            self._hidden = frozenset()
        self._controls.show_blocks(self._whole.blocks, self._hidden)
        model = self._whole.model
        step = f"step {self._models.live_step(self._number)}, " if self._label == LIVE else ""
        self._controls.status = f"{step}{len(model):,} {model.NOUN}, on {self._models.device(self._number)}"
        self._filter()

    def _filter(self) -> None:
        if self._whole is not None:
            self._controls.legend = self._find_errors() if self._mode in ERRORS else ""
            whole = replace(self._whole, error=self._errors(self._number, self._label))
            shown = (self._whole if whole.error is None else whole).without(self._hidden)
            self._shown = shown if self._box is None else self._box.crop(shown, self.run)
        self._update()

    def _find_errors(self) -> str:
        """Sets the range of the errors that are shown; returns what the colours mean."""
        measured = self._models.errors(self._number, self._label, self._mode)
        if measured.why or measured.found is None:
            self._error_range = None
            return measured.why or "Errors are being measured ..."
        low, high = self._error_range = range_of(measured.found.mean)
        kind = self._mode.partition(", ")[2]
        return (
            f"Mean error where a part is seen in {measured.found.views} of {measured.views} {kind}, of a range of 1: "
            f"blue {low:.3f}, red {high:.3f}; grey: not seen."
        )

    def _errors(self, number: int, label: str) -> Tensor | None:
        found = self._models.errors(number, label, self._mode).found if self._mode in ERRORS else None
        return None if found is None else found.mean

    def _image(self, shown: Shown, camera: Camera, number: int) -> Image:
        psnr = self._models.runs[number].block_psnr
        return render(shown, camera, self._models.background(number), self._mode, psnr, self._error_range)

    def _update(self) -> None:
        """Shows the choices in the browser."""
        shown = self._shown
        if shown is not None and self._in_browser:
            self._gaussians.show(shown, self.run)
        else:
            self._gaussians.hide()
        self._stream.refresh()

    def _draw(self, camera: Camera) -> Image | None:
        shown = self._shown
        if shown is None or self._in_browser:
            return None
        with self._models.rendering:
            image = self._image(shown, camera, self._number)
            if self._beside is not None:
                image = beside(image, self._draw_other(camera, *self._beside), self._split)
        if self._renderer == AUTOMATIC and self._stream.is_too_slow:
            self._in_browser = True
            self._update()
        return image

    def _draw_other(self, camera: Camera, number: int, label: str) -> Image:
        """A state of any run, from the same place of the viewer."""
        run, pose = self._models.runs[number], self.run.upright.pose(camera)
        moved = run.upright.camera(pose.wxyz, pose.position, vertical_fov(camera), camera.width, camera.height)
        other = replace(self._models.get(number, label), error=self._errors(number, label))
        return self._image(other, moved, number)

    def _render_view(self, camera: Camera) -> Float[Tensor, "3 h w"]:
        if self._shown is None:
            return torch.zeros(3, camera.height, camera.width)
        with self._models.rendering:
            shown = self._shown
            return render_image(shown.model, shown.decoder, camera, self._models.background(self._number)).cpu()
