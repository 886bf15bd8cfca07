"""The control panel of one browser."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import viser

from momentum_gs.viewer.colors import heat
from momentum_gs.viewer.crop import CropBox
from momentum_gs.viewer.image_renderer import MODES
from momentum_gs.viewer.run import ViewerRun
from momentum_gs.viewer.scene_layers import LAYERS, POINTS

AUTOMATIC, SERVER, BROWSER = "automatic", "images from the server", "Gaussians in the browser"
RENDERERS = (AUTOMATIC, SERVER, BROWSER)
MOST_SWITCHES = 64
"""Blocks that get a switch; more would not fit on a screen."""
SHOWN_AT_FIRST = {POINTS: False}
"""Layers that cover the model are off; the others are on."""
NOTHING = "-"
"""A choice of nothing."""


@runtime_checkable
class Actions(Protocol):
    """What the controls call."""

    def choose_run(self, name: str) -> None:
        """Shows another run."""

    def choose_state(self, label: str) -> None:
        """Shows another saved state."""

    def choose_mode(self, mode: str) -> None:
        """Colours the model in another way."""

    def choose_beside(self, name: str, split: float) -> None:
        """Shows another state right of a line, which is at this share of the width."""

    def choose_renderer(self, renderer: str) -> None:
        """Draws on the server or in the browser."""

    def show_layer(self, layer: str, visible: bool) -> None:
        """Switches an overlay on or off."""

    def hide_blocks(self, hidden: frozenset[int]) -> None:
        """Hides these blocks and no others."""

    def crop(self, box: CropBox | None) -> None:
        """Hides what is outside a box; None: nothing."""

    def choose_camera(self, name: str) -> None:
        """Flies to a camera and opens its panel."""

    def go_home(self) -> None:
        """Flies to the overview and closes the panel."""

    def stand_upright(self) -> None:
        """Makes z up again."""

    def next_run(self) -> None:
        """Shows the next run."""

    def add_key_frame(self) -> None:
        """Adds the view to the camera path."""

    def start_path(self) -> None:
        """Begins another path."""

    def take_screenshot(self) -> None:
        """Downloads the view."""


class Controls:
    """Handles of the panel's elements; what is chosen in the browser goes to ``actions``."""

    def __init__(self, client: viser.ClientHandle, runs: Sequence[ViewerRun], actions: Actions) -> None:
        gui, self._gui, self._actions = client.gui, client.gui, actions
        names = tuple(run.name for run in runs)
        with gui.add_folder("Model"):
            self._run = gui.add_dropdown("Run", names, visible=len(runs) > 1, hint="key N: the next run")
            self._state = gui.add_dropdown("State", (NOTHING,), hint="checkpoints and saved models of the run")
            self._time = gui.add_slider("Timeline", 0, 1, 1, 0, visible=False, hint="the states in order of time")
            self._renderer = gui.add_dropdown("Renderer", RENDERERS)
            self._mode = gui.add_dropdown("Colors", MODES)
            self._scale = gui.add_image(np.tile(heat(np.linspace(0, 1, 256)), (12, 1, 1)), visible=False)
            self._legend = gui.add_markdown("", visible=False)
            self._beside = gui.add_dropdown("Beside", (NOTHING,), hint="another state, right of a line")
            self._split = gui.add_slider("Line", 0.0, 1.0, 0.01, 0.5, visible=False)
            self._status = gui.add_markdown("")
        with gui.add_folder("Overlays"):
            for layer in LAYERS:
                box = gui.add_checkbox(layer, SHOWN_AT_FIRST.get(layer, True))
                _on_choice(box, partial(actions.show_layer, layer))
        with gui.add_folder("Camera"):
            self._camera = gui.add_dropdown("View", (NOTHING,))
            for label, hint, action in (
                ("Overview", "back to where the camera stood at first", actions.go_home),
                ("Upright", "make z the axis about which the camera turns", actions.stand_upright),
                ("Screenshot", "download the view as PNG, without overlays", actions.take_screenshot),
                ("Add key frame", "add the view to OUT/camera_path.json, for 'momentum-gs video'",
                 actions.add_key_frame),
                ("New path", "forget the key frames", actions.start_path),
            ):  # fmt: skip
                gui.add_button(label, hint=hint).on_click(partial(_pressed, action))
        with gui.add_folder("Crop box", expand_by_default=False):
            self._crops = gui.add_checkbox("hide what is outside", False)
            self._low = gui.add_vector3("low", (0.0, 0.0, 0.0), step=0.05)
            self._high = gui.add_vector3("high", (0.0, 0.0, 0.0), step=0.05)
        for handle in (self._crops, self._low, self._high):
            _on_choice(handle, lambda _: actions.crop(self._box()))
        self._blocks = gui.add_folder("Blocks", expand_by_default=False, visible=False)
        self._switches: dict[int, viser.GuiCheckboxHandle] = {}
        if len(runs) > 1:
            gui.add_command("Next run", hotkey="N").on_trigger(partial(_pressed, actions.next_run))
        _on_choice(self._beside, lambda _: self._choose_beside())
        _on_choice(self._split, lambda _: self._choose_beside())
        _on_choice(self._run, actions.choose_run)
        _on_choice(self._state, actions.choose_state)
        _on_choice(self._time, self._choose_time)
        _on_choice(self._renderer, actions.choose_renderer)
        _on_choice(self._mode, actions.choose_mode)
        _on_choice(self._camera, actions.choose_camera)

    @property
    def status(self) -> str:
        """The line below the choices."""
        return str(self._status.content)

    @status.setter
    def status(self, text: str) -> None:
        self._status.content = text

    @property
    def legend(self) -> str:
        """What the colours mean; empty: what they mean needs no words."""
        return str(self._legend.content)

    @legend.setter
    def legend(self, text: str) -> None:
        self._legend.content = text
        self._legend.visible = self._scale.visible = bool(text)

    def show_run(self, run: ViewerRun, states: Sequence[str], chosen: str) -> None:
        """Offers the states and views of a run."""
        _assign(self._run, run.name)
        self._camera.options = (NOTHING, *(camera.name for camera in run.cameras))
        self.show_states(states, chosen)

    def show_states(self, states: Sequence[str], chosen: str) -> None:
        """Offers these states; they change while a run trains. One that is shown and gone meanwhile comes first."""
        options = tuple(states) if chosen in states else (chosen, *states)
        self._time.visible = len(options) > 1
        self._time.max = max(1, len(options) - 1)
        self._state.options = options
        self.show_state(chosen)

    def show_state(self, chosen: str) -> None:
        """Which of the states is shown."""
        _assign(self._state, chosen)
        _assign(self._time, self._state.options.index(chosen))

    def _choose_time(self, place: int) -> None:
        if place < len(self._state.options):
            self._actions.choose_state(self._state.options[place])

    def show_beside(self, names: Sequence[str]) -> None:
        """Offers these states to stand beside the one that is shown."""
        self._beside.options = (NOTHING, *names)

    def show_blocks(self, blocks: Sequence[int], hidden: frozenset[int]) -> None:
        """Offers a switch for each block; none for a model of one block."""
        if [*self._switches] == [*blocks[:MOST_SWITCHES]]:
            for block, switch in self._switches.items():
                _assign(switch, block not in hidden)
            return
        for switch in self._switches.values():
            switch.remove()
        self._switches = {}
        self._blocks.visible = len(blocks) > 1
        if len(blocks) > 1:
            with self._blocks:
                for block in blocks[:MOST_SWITCHES]:
                    self._switches[block] = self._gui.add_checkbox(f"block {block}", block not in hidden)
                    _on_choice(self._switches[block], self._hide)

    def show_box(self, box: CropBox) -> None:
        """Offers a box, which is off."""
        for handle, value in ((self._crops, False), (self._low, box.low), (self._high, box.high)):
            _assign(handle, value)

    def show_camera(self, name: str) -> None:
        """The view that was flown to in another way."""
        _assign(self._camera, name)

    def _choose_beside(self) -> None:
        self._split.visible = self._beside.value != NOTHING
        self._actions.choose_beside(self._beside.value, self._split.value)

    def _box(self) -> CropBox | None:
        return CropBox(self._low.value, self._high.value) if self._crops.value else None

    def _hide(self, _: bool) -> None:
        self._actions.hide_blocks(frozenset(b for b, switch in self._switches.items() if not switch.value))


def _pressed(action: Callable[[], None], _: object) -> None:
    action()


def _on_choice(handle: Any, action: Callable[[Any], None]) -> None:
    """Calls ``action`` with the new value once a user has changed it; not when this program has."""

    def changed(event: viser.GuiEvent[Any]) -> None:
        if event.client_id is not None:
            action(event.target.value)

    handle.on_update(changed)


def _assign(handle: Any, value: Any) -> None:
    """Sets an element; typed loosely, as viser's property is one that type checkers take for read-only."""
    handle.value = value
