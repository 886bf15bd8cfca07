"""The variants of the CPU kernels: which one runs, that they agree, and that nothing else needs their CPU."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import diff_gaussian_rasterization
import pytest
import torch
from diff_gaussian_rasterization import cpu_kernels
from torch import Tensor

LIBRARY = next(Path(diff_gaussian_rasterization.__file__).parent.glob("_kernels*.so"))
PYTHONPATH = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
V3 = "avx2 fma bmi bmi2 popcnt"
V4 = f"{V3} avx512f avx512cd avx512bw avx512dq avx512vl"
choice = torch.ops.diff_gaussian_rasterization.cpu_kernels_for

by_cpu = pytest.mark.skipif(not cpu_kernels().startswith("x86-64"), reason="built without a choice between variants")

CALL = """
import sys, torch
from diff_gaussian_rasterization import cpu_kernels, rasterize, spherical_harmonics
from rasterizer_scenes import screen_scene
results = [cpu_kernels()]
for dtype in (torch.float32, torch.float64):
    for channels in (3, 6):
        scene = screen_scene(3000, 131, 97) | {"background": torch.full((channels,), 0.5)}
        scene["colors"] = torch.rand(3000, channels, generator=torch.Generator().manual_seed(1))
        scene = {k: v.to(dtype).requires_grad_() if isinstance(v, torch.Tensor) else v for k, v in scene.items()}
        sh = torch.randn(3000, 16, 3, generator=torch.Generator().manual_seed(2), dtype=dtype, requires_grad=True)
        leaves = [v for v in scene.values() if isinstance(v, torch.Tensor)]
        out, harmonics = rasterize(**scene), spherical_harmonics(3, scene["means"], sh)
        loss = (out.image.square().sum(), out.depth.sum(), out.alpha.sum(), harmonics.square().sum())
        results.append([t.detach() for t in (*out, harmonics)])
        results.append(list(torch.autograd.grad(loss, [*leaves, sh])))
torch.save(results, sys.argv[1])
"""


def called(variant: str, target: Path) -> tuple[str, list[list[Tensor]]]:
    """Runs ``CALL`` in a process with this variant: its name; results and gradients alternately, float32 first."""
    environment = {**os.environ, "MOMENTUM_GS_CPU": variant, "PYTHONPATH": PYTHONPATH}
    subprocess.run([sys.executable, "-c", CALL, str(target)], env=environment, check=True)
    name, *results = torch.load(target, weights_only=True)
    return name, results


@pytest.mark.slow
@by_cpu
def test_the_variants_agree(tmp_path: Path) -> None:
    name, narrow = called("v3", tmp_path / "v3.pt")
    assert name == "x86-64-v3"
    if cpu_kernels() != "x86-64-v4":
        pytest.skip("this CPU runs x86-64-v3 alone")
    name, wide = called("v4", tmp_path / "v4.pt")
    assert name == "x86-64-v4"
    for at, (a, b) in enumerate(zip(narrow, wide, strict=True)):
        single, gradients = at < 4, at % 2 == 1
        for mine, other in zip(a, b, strict=True):
            # Only 1 / (1 - alpha) in float32 differs: each instruction set has its own first estimate of a reciprocal.
            tolerance = 5e-6 * float(other.abs().max()) if single and gradients else 0
            torch.testing.assert_close(mine, other, rtol=0, atol=tolerance)


@by_cpu
def test_the_fastest_that_runs_is_chosen() -> None:
    assert choice(V4, "") == "x86-64-v4"
    assert choice(V3, "") == "x86-64-v3"
    assert choice(V4.replace("avx512dq", ""), "") == "x86-64-v3"  # AVX-512, but not all of x86-64-v4
    assert choice(V4, "v3") == choice(V4, "x86-64-v3") == "x86-64-v3"


@by_cpu
def test_refusals_say_what_is_missing() -> None:
    with pytest.raises(
        RuntimeError, match=r"diff_gaussian_rasterization: .* need AVX2 and FMA \(x86-64-v3\), .* lacks avx2, fma; "
    ):
        choice("bmi bmi2 popcnt", "")
    with pytest.raises(
        RuntimeError,
        match="diff_gaussian_rasterization: MOMENTUM_GS_CPU is v4, but this CPU lacks avx512f, .*; unset it",
    ):
        choice(V3, "v4")
    with pytest.raises(RuntimeError, match="MOMENTUM_GS_CPU is v5, .* built as x86-64-v4 or x86-64-v3; unset it"):
        choice(V4, "v5")


@pytest.mark.slow
def test_an_unknown_variant_is_refused_by_the_first_call() -> None:
    environment = {**os.environ, "MOMENTUM_GS_CPU": "fastest", "PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, "-c", CALL, os.devnull], env=environment, capture_output=True, text=True)
    assert (
        done.returncode == 1 and "RuntimeError: diff_gaussian_rasterization: MOMENTUM_GS_CPU is fastest" in done.stderr
    )


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
            variant = re.search(r"dgr::(v[34])::", function)
            variants.add(variant[1]) if variant else guilty.add(function)
    if not variants:
        pytest.skip("the library was stripped of its functions' names")
    assert variants == {"v3", "v4"} and not guilty
