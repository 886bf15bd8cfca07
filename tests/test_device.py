"""The choice of the device with and without GPUs; it does not matter whether this machine has one."""

import re
import shutil

import fused_ssim
import pytest
import torch

from momentum_gs.core.device import pick_device, print_device
from momentum_gs.core.errors import UserError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if torch had two GPUs and the extensions were built for them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(fused_ssim, "has_cuda", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return monkeypatch


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_auto_takes_the_gpu_of_its_rank(two_gpus: pytest.MonkeyPatch) -> None:
    assert pick_device("auto") == torch.device("cuda", 0)
    two_gpus.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")


def test_auto_falls_back_where_the_kernels_lack_cuda(two_gpus: pytest.MonkeyPatch) -> None:
    two_gpus.setattr(fused_ssim, "has_cuda", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="the extensions were built without it"):
        pick_device("cuda")


def test_more_ranks_than_gpus_is_refused(two_gpus: pytest.MonkeyPatch) -> None:
    two_gpus.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="local rank 2 has no GPU of its own, 2 found; lower --nproc_per_node to 2"):
        pick_device("auto")


def test_without_a_gpu(no_gpu: None) -> None:
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="torch finds no usable GPU; set device=auto"):
        pick_device("cuda")


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(UserError, match="device: 'tpu', expected auto, cpu or cuda"):
        pick_device("tpu")


def test_the_first_line_names_device_and_kernels(no_gpu: None, capsys: pytest.CaptureFixture[str]) -> None:
    print_device("cpu")
    printed = capsys.readouterr()
    assert re.fullmatch(r"device   cpu, \d+ threads?, kernels .+, built for (CPUs only|GPUs, too)\n", printed.out)
    assert printed.err == ""


def test_a_gpu_that_the_kernels_do_not_support_is_reported(
    two_gpus: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two_gpus.setattr(fused_ssim, "has_cuda", lambda: False)
    print_device("auto")
    printed = capsys.readouterr()
    assert printed.out.startswith("device   cpu, ")
    assert "a GPU is visible but not used" in printed.err and "; run: FORCE_CUDA=1 bash " in printed.err
    print_device("cpu")  # No warning if the user asks for the CPU.
    assert capsys.readouterr().err == ""


def test_a_gpu_that_torch_does_not_support_is_reported(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    print_device("auto")
    assert (
        "is built without CUDA, so it is not used; install a CUDA build of torch, then run: " in capsys.readouterr().err
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # It was hidden on purpose.
    print_device("auto")
    assert capsys.readouterr().err == ""
