"""For all tests: the same examples every time, no GPU unless a test asks for one, and a table of skipped tests."""

import os
from collections.abc import Generator, Iterator

# As the program sets it, also for the workers and for processes that tests start; read when torch is loaded. Threads
# that spin while they wait for each other take three times the time when as many test processes run as there are cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import fused_ssim  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from skip_table import GPU_REASON, SkipTable  # noqa: E402

# derandomize: a failure on one machine is a failure on all. No deadline: a busy machine is slow, not wrong.
settings.register_profile("momentum-gs", derandomize=True, deadline=None)
settings.load_profile("momentum-gs")


# Files that take half a minute or more, the longest first: else one of them, begun last, keeps one process alone.
LONGEST = [
    "test_wheel.py", "test_sweep_smoke.py", "test_rasterizer_cuda.py", "test_appearance.py", "test_training.py",
    "test_prepare_sfm.py", "test_broken_scenes.py", "test_failing_together.py", "test_run.py", "test_export.py",
    "test_appearance_smooth.py", "test_distillation_student.py", "test_modes.py", "test_checkpoint.py",
    "test_anchor_decode.py", "test_rasterizer_emulated.py",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--check-skips", action="store_true", help="fail for skips that tests/skip_table.py lacks")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # Of several processes (pytest-xdist), the one that gets all reports.
        config.pluginmanager.register(SkipTable(config.getoption("check_skips")))


def why_no_gpu() -> str | None:
    """Why tests with the marker ``gpu`` cannot run; None where they can. As momentum_gs/core/device.py decides."""
    if not torch.cuda.is_available():
        return f"{GPU_REASON}: torch finds none that it can use"
    if not fused_ssim.has_cuda():
        return f"{GPU_REASON}: there is one, but the extensions were built without CUDA"
    return None


# Asked once, before any test hides the GPUs: CUDA remembers which ones it saw first.
WHY_NO_GPU = why_no_gpu()
GPUS = 0 if WHY_NO_GPU else torch.cuda.device_count()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Without the marker ``gpu`` a test, its fixtures and every process it starts find no GPU: ``auto`` is the CPU.

    So the tests that compare bits, or start more ranks than there are GPUs, mean the same on every machine.
    """
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("gpu") is None:
            patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """``gpu`` asks for one GPU, ``gpu(n)`` for n of them."""
    marker = item.get_closest_marker("gpu")
    if marker is None:
        return
    needed = marker.args[0] if marker.args else 1
    if WHY_NO_GPU is not None:
        pytest.skip(WHY_NO_GPU)
    if needed > GPUS:
        pytest.skip(f"{GPU_REASON}: {needed} of them, found {GPUS}")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As torchrun gives each of several processes; matrix products may round differently with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
