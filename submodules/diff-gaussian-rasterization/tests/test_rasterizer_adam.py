"""Adam on the rows that are visible: against the readable reference, torch's own, and facts about it."""

import copy
import sys
from collections.abc import Iterator

import pytest
import torch
from diff_gaussian_rasterization import _C, SparseGaussianAdam, adam_update
from diff_gaussian_rasterization.reference import adam_reference
from emulated_as_float import EMULATOR, NAME, ROOT
from torch import Tensor

SHAPES = ((3,), (1, 3), (15, 3), (), (4,), (32,))


@pytest.fixture(params=["cpu", pytest.param("emulated", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "cpu":
        yield
        return
    if not EMULATOR.joinpath("cuda_emulator").is_dir():
        pytest.skip(f"no CUDA emulator in {EMULATOR}: the rasterizer is tested outside of its repository")
    sys.path.insert(0, str(EMULATOR))
    import cuda_emulator

    if reason := cuda_emulator.why_not():
        pytest.skip(reason)
    cuda_emulator.load(ROOT / "csrc")
    with cuda_emulator.instead_of_cpu(NAME):
        yield


def tensors(count: int, dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[list[Tensor]]:
    """Parameters, gradients, first and second moments."""
    generator = torch.Generator().manual_seed(count)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    made = [[normal(count, *shape) for shape in shapes] for _ in range(4)]
    made[3] = [square.abs() for square in made[3]]
    return made


def visible_of(count: int) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(1)) < 0.4


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("steps", [None, [1, 2, 3, 50, 1000, 30000]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_reference(dtype: torch.dtype, masked: bool, steps: list[int] | None) -> None:
    ours, expected = tensors(70, dtype), tensors(70, dtype)
    settings = {"lrs": [1e-3, 2e-3, 1e-4, 0.05, 5e-3, 1.0], "steps": steps}
    settings["visible"] = visible_of(70) if masked else None
    for _ in range(3):
        adam_update(*ours, **settings)
        adam_reference(*expected, **settings)
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6
    for group, other in zip(ours, expected, strict=True):
        for a, b in zip(group, other, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("backend")
def test_rows_that_are_not_visible_keep_their_bits() -> None:
    made, visible = tensors(70, torch.float32), visible_of(70)
    before = copy.deepcopy(made)
    for grad in made[1]:
        grad[~visible] = torch.nan
    adam_update(*made, lrs=[0.1] * 6, steps=[5] * 6, visible=visible)
    for group, old in ((made[i], before[i]) for i in (0, 2, 3)):
        for a, b in zip(group, old, strict=True):
            assert torch.equal(a[~visible], b[~visible]) and a.isfinite().all()
            assert not (a[visible] == b[visible]).any()


@pytest.mark.parametrize("count", [0, 1, 7, 3001])
def test_with_all_rows_it_is_the_adam_of_torch(count: int) -> None:
    params, grads, _, _ = tensors(count, torch.float32, ((3,), (15, 3)))
    leaves = [param.clone().requires_grad_() for param in params]
    optimizer = torch.optim.Adam(leaves, lr=0.01, eps=1e-15)
    moments, squares = ([torch.zeros_like(param) for param in params] for _ in range(2))
    for step in range(1, 6):
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad * step
        optimizer.step()
        adam_update(params, [g * step for g in grads], moments, squares, lrs=[0.01] * 2, steps=[step] * 2)
    for leaf, param in zip(leaves, params, strict=True):
        torch.testing.assert_close(param, leaf.detach(), rtol=2e-6, atol=2e-6)


def test_same_bits_for_any_number_of_threads() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            made = tensors(9001, torch.float32)
            adam_update(*made, lrs=[0.1] * 6, steps=[3] * 6, visible=visible_of(9001))
            results.append(made)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for group, same in zip(results[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(group, same, strict=True))


def test_the_optimizer_of_3dgs_codebases() -> None:
    params, grads, _, _ = tensors(70, torch.float32)
    visible = visible_of(70)
    leaves = [param.clone().requires_grad_() for param in params]
    lrs = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    groups = [{"params": [leaf], "lr": lr, "name": str(lr)} for leaf, lr in zip(leaves, lrs, strict=True)]
    optimizer = SparseGaussianAdam(groups, lr=0.0, eps=1e-15)
    for leaf, grad in zip(leaves[:-1], grads, strict=False):  # the last has none
        leaf.grad = grad.clone()
    optimizer.step(visible, 70)
    moments, squares = ([torch.zeros_like(param) for param in params[:-1]] for _ in range(2))
    adam_reference(params[:-1], grads[:-1], moments, squares, lrs=lrs[:-1], steps=None, visible=visible)
    for leaf, param in zip(leaves, params, strict=True):
        torch.testing.assert_close(leaf.detach(), param, rtol=2e-6, atol=2e-6)
    assert set(optimizer.state[leaves[0]]) == {"step", "exp_avg", "exp_avg_sq"}  # densification edits these
    with pytest.raises(ValueError, match="visibility has 69 entries, expected N=70"):
        optimizer.step(visible[1:], 70)


def test_the_function_of_the_compiled_module() -> None:
    made = [group[2] for group in tensors(70, torch.float32)]
    expected = copy.deepcopy(made)
    _C.adamUpdate(*made, visible_of(70), 0.1, 0.8, 0.99, 1e-8, 70, 45)
    adam_reference(*([t] for t in expected), lrs=[0.1], steps=None, visible=visible_of(70), betas=(0.8, 0.99), eps=1e-8)
    for a, b in zip(made, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("at", "change", "message"),
    [
        (0, lambda t: t.half(), "parameter 0 is Half, expected float32 or float64"),
        (1, lambda t: t[:-1], r"a gradient or moment of parameter 0 is Float \[69, 3\] on cpu, expected contiguous"),
        (2, lambda t: t.double(), "a gradient or moment of parameter 0 is Double"),
        (3, lambda t: t.T.contiguous().T, "a gradient or moment of parameter 0"),
        (None, lambda t: t[:-1], r"parameter 0 has shape \[70, 3\] .*as many as visible has entries"),
        (None, lambda t: t.int(), "visible is Int"),
    ],
)
def test_what_would_be_written_out_of_bounds_is_refused(at: int | None, change, message: str) -> None:
    made, visible = tensors(70, torch.float32, ((3,),)), visible_of(70)
    if at is None:
        visible = change(visible)
    else:
        made[at] = [change(made[at][0])]
    with pytest.raises(RuntimeError, match=f"adam_update: {message}"):
        adam_update(*made, lrs=[0.1], steps=None, visible=visible)
