"""The variants of the CPU kernels: which one runs, that they agree, and that nothing else needs their CPU."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fused_ssim
import pytest
import torch
from fused_ssim import cpu_kernels
from torch import Tensor

LIBRARY = Path(fused_ssim.__file__).parent / "_kernels.so"
V3 = "avx2 fma bmi bmi2 popcnt"
V4 = f"{V3} avx512f avx512cd avx512bw avx512dq avx512vl"
choice = torch.ops.fused_ssim.cpu_kernels_for

by_cpu = pytest.mark.skipif(not cpu_kernels().startswith("x86-64"), reason="built without a choice between variants")

CALL = """
import sys, torch
from fused_ssim import cpu_kernels, fused_ssim
results = [cpu_kernels()]
for dtype in (torch.float32, torch.float64):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 3, 83, 147, generator=generator, dtype=dtype).requires_grad_() for _ in range(2))
    for weights in (None, torch.rand(83, 147, generator=generator, dtype=dtype)):
        value = fused_ssim(a, b, weights=weights)
        results += [value.detach(), *torch.autograd.grad(value, (a, b))]
torch.save(results, sys.argv[1])
"""


def called(variant: str, target: Path) -> tuple[str, list[Tensor]]:
    """Runs ``CALL`` in a process with this variant: its name, values and gradients."""
    environment = {**os.environ, "MOMENTUM_GS_CPU": variant}
    subprocess.run([sys.executable, "-c", CALL, str(target)], env=environment, check=True)
    name, *tensors = torch.load(target, weights_only=True)
    return name, tensors


@pytest.mark.slow
@by_cpu
def test_the_variants_have_the_same_bits(tmp_path: Path) -> None:
    name, narrow = called("v3", tmp_path / "v3.pt")
    assert name == "x86-64-v3"
    if cpu_kernels() != "x86-64-v4":
        pytest.skip("this CPU runs x86-64-v3 alone")
    name, wide = called("v4", tmp_path / "v4.pt")
    assert name == "x86-64-v4"
    assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))


@by_cpu
def test_the_fastest_that_runs_is_chosen() -> None:
    assert choice(V4, "") == "x86-64-v4"
    assert choice(V3, "") == "x86-64-v3"
    assert choice(V4.replace("avx512dq", ""), "") == "x86-64-v3"  # AVX-512, but not all of x86-64-v4
    assert choice(V4, "v3") == choice(V4, "x86-64-v3") == "x86-64-v3"


@by_cpu
def test_refusals_say_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match=r"fused_ssim: .* need AVX2 and FMA \(x86-64-v3\), .* lacks avx2, fma; "):
        choice("bmi bmi2 popcnt", "")
    with pytest.raises(
        RuntimeError, match="fused_ssim: MOMENTUM_GS_CPU is v4, but this CPU lacks avx512f, .*; unset it"
    ):
        choice(V3, "v4")
    with pytest.raises(RuntimeError, match="MOMENTUM_GS_CPU is v5, .* built as x86-64-v4 or x86-64-v3; unset it"):
        choice(V4, "v5")


@pytest.mark.slow
def test_an_unknown_variant_is_refused_by_the_first_call() -> None:
    environment = {**os.environ, "MOMENTUM_GS_CPU": "fastest"}
    done = subprocess.run([sys.executable, "-c", CALL, os.devnull], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "RuntimeError: fused_ssim: MOMENTUM_GS_CPU is fastest" in done.stderr


@by_cpu
@pytest.mark.skipif(not shutil.which("objdump"), reason="no objdump")
def test_only_the_variants_need_more_than_any_x86_64() -> None:
    """VEX, EVEX and BMI instructions occur only in functions of the variants' namespaces."""
    listing = ["objdump", "-dC", "--no-show-raw-insn", str(LIBRARY)]
    beyond = re.compile(
        r"\t(v[a-z]|k(mov|or|and|test)|[abr]?(andn(?!p)|bextr|bls|bzhi|mulx|pdep|pext|rorx|sarx|shlx|shrx|popcnt))"
    )
    guilty, variants, function = set(), set(), ""
    for line in subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines():
        if line.endswith(">:"):
            function = line.split(" <", 1)[1]
        elif beyond.search(line):
            variant = re.search(r"fused_ssim::(v[34])::", function)
            variants.add(variant[1]) if variant else guilty.add(function)
    if not variants:
        pytest.skip("the library was stripped of its functions' names")
    assert variants == {"v3", "v4"} and not guilty


def test_the_extensions_have_the_same_code_to_choose_a_variant() -> None:
    """Each has a copy, as each is built on its own."""
    csrc = Path(__file__).parents[1] / "csrc/cpu"
    siblings = [path for path in Path(__file__).parents[2].glob("*/csrc/cpu") if path != csrc]
    for name in ("choose.h", "cpu_variants.h"):
        assert all((path / name).read_text() == (csrc / name).read_text() for path in siblings)
