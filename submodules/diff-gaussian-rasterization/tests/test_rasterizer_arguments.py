"""The raw operators with arguments of every shape, dtype, device and layout: an error, or the right result.

A call that is right is changed in one to three places. What comes back without an error must be what the same values
give as fresh contiguous tensors: an operator that reads past a tensor gives what lay behind it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import ops  # noqa: F401  (loads the operators)
from emulated_as_float import EMULATOR, NAME, ROOT, Drawn, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterizer_scenes import make_scene
from torch import Tensor

Backend = Callable[[], AbstractContextManager[Any]]
Call = dict[str, Any]

COUNT = 12
WIDTH, HEIGHT = 37, 21


@pytest.fixture(scope="module", params=["cpu", pytest.param("emulated", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    if request.param == "cpu":
        yield nullcontext
        return
    if not EMULATOR.joinpath("cuda_emulator").is_dir():
        pytest.skip(f"no CUDA emulator in {EMULATOR}: the rasterizer is tested outside of its repository")
    sys.path.insert(0, str(EMULATOR))
    import cuda_emulator

    if reason := cuda_emulator.why_not():
        pytest.skip(reason)
    cuda_emulator.load(ROOT / "csrc")
    yield lambda: cuda_emulator.instead_of_cpu(NAME)


def calls() -> dict[str, Call]:
    """A right call of every operator: its arguments by name. Made on the driver that is called."""
    scene = make_scene(COUNT, width=WIDTH, height=HEIGHT, dtype=torch.float32)
    camera = {k: scene[k] for k in ("fx", "fy", "cx", "cy", "width", "height")} | {"scale_modifier": 1.0, "near": 0.2}
    shape: Call = {k: scene[k] for k in ("means", "scales", "quats", "world_view")} | {"cov3d": None}
    library = torch.ops.diff_gaussian_rasterization
    project = shape | {"screen": None} | camera | {"window": None, "tiles": torch.ones(2, 3, dtype=torch.bool)}
    screen = dict(zip(("means2d", "conics", "depths", "radii"), library.project(**project), strict=True))
    size = {"width": WIDTH, "height": HEIGHT}
    composite = screen | {k: scene[k] for k in ("opacities", "colors", "background")} | size
    drawn = draw(scene)
    generator = torch.Generator().manual_seed(0)

    def like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator)

    sh = {"degree": 2, "dirs": like(scene["means"]), "sh": torch.randn(COUNT, 9, 3, generator=generator)}
    return {
        "project": project,
        "visible_radii": shape | camera | {"window": [3, 2, 20, 10], "tiles": torch.ones(1, 2, dtype=torch.bool)},
        "project_backward": {f"grad_{k}": like(screen[k]) for k in ("means2d", "conics", "depths")}
        | shape | {k: screen[k] for k in ("conics", "radii")} | camera | {"need_view": True},
        "composite": composite | {"window": None, "tiles": torch.ones(2, 3, dtype=torch.bool), "absolute": None}
        | {"fixed": 0, "capacity": 9},
        "composite_backward": {f"grad_{k}": like(getattr(drawn, k)) for k in ("image", "alpha", "depth")}
        | drawn._asdict() | {"gaussians": COUNT, "left": 0, "top": 0, "tiles": torch.ones(2, 3, dtype=torch.bool)},
        "absolute_gradient": {f"grad_{k}": like(getattr(drawn, k)) for k in ("image", "alpha", "depth")}
        | drawn._asdict() | {"gaussians": COUNT, "left": 0, "top": 0, "tiles": torch.ones(2, 3, dtype=torch.bool)},
        "median": {k: v for k, v in drawn._asdict().items() if k not in ("image", "depth", "pair_start")}
        | {"left": 0, "top": 0},
        "antialias": {"conics": screen["conics"], "opacities": scene["opacities"]},
        "antialias_backward": {"grad": like(scene["opacities"])}
        | {"conics": screen["conics"], "opacities": scene["opacities"]},
        "spherical_harmonics": sh,
        "spherical_harmonics_backward": {"grad": like(scene["means"])} | sh,
    }  # fmt: skip


def layouts(tensor: Tensor) -> list[Tensor]:
    """The same values with other strides."""
    apart = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype)[..., 0].copy_(tensor)
    turned = tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.dim() > 1 else apart
    return [apart, turned]


def shapes(tensor: Tensor) -> list[Tensor]:
    """Other shapes, with values that were in the tensor."""
    return [
        tensor[:-1],
        torch.cat([tensor, tensor[:1]]),
        tensor[..., :-1],
        tensor.flatten(),
        tensor.unsqueeze(0),
        tensor.unsqueeze(-1),
        tensor.transpose(0, -1),
        tensor[:0],
        tensor.new_zeros(()),
    ]


DTYPES = (torch.float16, torch.float64, torch.float32, torch.int32, torch.int64, torch.bool, torch.uint8)


@st.composite
def changes(draw_from: st.DrawFn, name: str) -> list[tuple[str, str, Any]]:
    """One to three of (argument, kind of change, which)."""
    kinds = st.sampled_from(["layout", "shape", "dtype", "meta", "absent", "number"])
    return [
        (draw_from(st.sampled_from(ARGUMENTS[name])), draw_from(kinds), draw_from(st.integers(0, 99)))
        for _ in range(draw_from(st.integers(1, 3)))
    ]


NUMBERS = (-1, 0, 1, 5, 17, 2**20 + 1, 2**31, -(2**40))


def changed(call: Call, argument: str, kind: str, which: int) -> None:
    value = call[argument]
    if isinstance(value, Tensor) and value.device.type == "cpu":
        if kind in ("layout", "shape") and value.dim() and value.numel():
            options = layouts(value) if kind == "layout" else shapes(value)
            call[argument] = options[which % len(options)]
        elif kind == "dtype":
            call[argument] = value.to(DTYPES[which % len(DTYPES)])
        elif kind == "meta":
            call[argument] = value.to("meta")
        elif kind == "absent":
            call[argument] = None
    elif kind == "number" and isinstance(value, int):
        call[argument] = NUMBERS[which % len(NUMBERS)]
    elif kind == "number" and isinstance(value, list):
        call[argument] = [*value[: which % 4], NUMBERS[which % len(NUMBERS)], *value[which % 4 + 1 :]]


def fresh(call: Call) -> Call:
    return {k: v.clone(memory_format=torch.contiguous_format) if isinstance(v, Tensor) else v for k, v in call.items()}


def tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


ARGUMENTS = {name: list(call) for name, call in calls().items()}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_refused_or_right(backend: Backend, name: str) -> None:
    operator = getattr(torch.ops.diff_gaussian_rasterization, name)
    with backend():
        right = calls()[name]
        expected = tensors(operator(**right))

        @settings(max_examples=100, derandomize=True, deadline=None)
        @given(made=changes(name))
        def check(made: list[tuple[str, str, Any]]) -> None:
            # Changes that fit together name rows that are not there, for which a GPU does not look: it would wait.
            unread = name in ("composite_backward", "absolute_gradient", "median") and backend is not nullcontext
            made = made[:1] if unread else made
            call = dict(right)
            for change in made:
                changed(call, *change)
            if call.get("width", 1) * call.get("height", 1) > 10**8:  # refused, or an image that fills the memory
                call["width"] = call["height"] = 2**20 + 1
            try:
                found = tensors(operator(**call))
            except (RuntimeError, ValueError, TypeError, AttributeError):
                return
            if any(tensor.device.type == "meta" for tensor in found):
                return  # shapes alone
            again = tensors(operator(**fresh(call)))
            for a, b in zip(found, again, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
            if all(kind == "layout" for _, kind, _ in made):
                for a, b in zip(found, expected, strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)

        check()


WRONG_SHAPES: dict[str, tuple[str, str, Callable[[Tensor], Any]]] = {
    "a short gradient of harmonics": ("spherical_harmonics_backward", "grad", lambda t: t[:-1]),
    "a narrow gradient of harmonics": ("spherical_harmonics_backward", "grad", lambda t: t[:, :1]),
    "a gradient in double": ("spherical_harmonics_backward", "grad", lambda t: t.double()),
    "too few tiles": ("composite_backward", "tile_start", lambda t: t[:-1]),
    "long tile_start": ("composite_backward", "tile_start", lambda t: t.long()),
    "too few records": ("composite_backward", "records", lambda t: t[:-1]),
    "narrow records": ("composite_backward", "records", lambda t: t[:, :-4].contiguous()),
    "records in double": ("composite_backward", "records", lambda t: t.double()),
    "long order": ("composite_backward", "order", lambda t: t.long()),
    "short pair_start": ("composite_backward", "pair_start", lambda t: t[:-1]),
    "long lists": ("composite_backward", "lists", lambda t: t.long()),
    "flat lists": ("composite_backward", "lists", lambda t: t.flatten()),
    "too few tiles of a median": ("median", "tile_start", lambda t: t[:-1]),
    "too few records of a median": ("median", "records", lambda t: t[:-1]),
    "records of no header": ("median", "records", lambda t: t[:, :4].contiguous()),
    "an alpha in double": ("median", "alpha", lambda t: t.double()),
    "half a mask of tiles": ("composite_backward", "tiles", lambda t: t[:1]),
}


@pytest.mark.parametrize("kind", WRONG_SHAPES)
def test_what_would_be_read_out_of_bounds_is_refused(backend: Backend, kind: str) -> None:
    name, argument, change = WRONG_SHAPES[kind]
    with backend():
        call = calls()[name]
        call[argument] = change(call[argument])
        with pytest.raises(RuntimeError, match=r"(rasterize|spherical_harmonics): .*"):
            getattr(torch.ops.diff_gaussian_rasterization, name)(**call)


@pytest.mark.parametrize("name", ["composite_backward", "absolute_gradient", "median"])
def test_lists_without_their_last_pair_are_refused_or_read_within_their_bounds(backend: Backend, name: str) -> None:
    # The tensors' sizes fit, but pairs are named that are not there. A CPU looks; a GPU skips them.
    with backend():
        call = calls()[name]
        call["lists"] = call["lists"][:, :-1]
        try:
            found = tensors(getattr(torch.ops.diff_gaussian_rasterization, name)(**call))
        except RuntimeError as error:
            assert "rasterize: " in str(error)
        else:
            assert all(tensor.isfinite().all() for tensor in found)


@pytest.mark.parametrize(("left", "top"), [(-1, 0), (0, -5), (2**20, 0), (0, 2**40)])
def test_a_window_outside_of_every_image_is_refused(backend: Backend, left: int, top: int) -> None:
    with backend():
        call = calls()["composite_backward"] | {"left": left, "top": top}
        with pytest.raises(RuntimeError, match="rasterize: window of 37x21 pixels at"):
            torch.ops.diff_gaussian_rasterization.composite_backward(**call)


@pytest.mark.parametrize("gaussians", [-1, 0, COUNT // 2, 2**31])
def test_a_number_of_gaussians_below_those_drawn_is_refused(backend: Backend, gaussians: int) -> None:
    with backend():
        call = calls()["composite_backward"] | {"gaussians": gaussians}
        with pytest.raises(RuntimeError, match="rasterize: order has"):
            torch.ops.diff_gaussian_rasterization.composite_backward(**call)


def test_the_cpu_reads_the_lists_before_it_follows_them() -> None:
    call = calls()["composite_backward"]
    drawn = Drawn(*(call[name] for name in Drawn._fields))
    for name in ("order", "pair_start", "tile_start", "lists"):
        for value in (-1, 10**6):
            wrong = getattr(drawn, name).clone()
            wrong.view(-1)[wrong.numel() // 2] = value
            with pytest.raises(RuntimeError, match="rasterize: "):
                torch.ops.diff_gaussian_rasterization.composite_backward(**(call | {name: wrong}))
