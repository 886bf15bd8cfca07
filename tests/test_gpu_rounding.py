"""Decisions that two kernels share are rounded by the sources, not by what nvcc makes of them.

Forward and backward pass decide alike which pixels a Gaussian covers, where it is capped, when a pixel is finished and
where a projection is clamped, and a box of points that is skipped holds no nearer one, only if both copies of a formula
round alike. By default nvcc fuses products and sums as it likes in each copy. What this promises: in the PTX of two
kernels with different surroundings, everything that leads to a decision is the same, and does not change where fusing
is switched off. Instructions that name their rounding are left alone by all later passes.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NVCC is None, reason="no nvcc to compile the CUDA sources with")]

BLEND = """
#include "submodules/diff-gaussian-rasterization/csrc/common/blend.h"
using namespace dgr;
template <class S> __device__ Opacity<S> opacity(const S* r) {
  return opacity_at(exponent(r[2], row_terms(r[5], r[3], r[4], r[1]), r[0]));
}
template <class S> __device__ void forward(const S* r, int n, S* out) {
  S t = 1, sum = 0;
#pragma unroll 1
  for (int i = 0; i < n; ++i, r += 8) sum += blend(opacity(r), t) * r[6];
  out[0] = sum, out[1] = t;
}
template <class S> __device__ void backward(const S* r, int n, S* out) {
  S t = 1, rest = out[7], sums[5] = {};
#pragma unroll 1
  for (int i = 0; i < n; ++i, r += 8) {
    S weight;
    const S v = blend_vjp(opacity(r), out[2] * r[6] + out[3] * r[7], t, rest, weight), x = v * r[0], y = v * r[1];
    sums[0] += weight * r[6], sums[1] += x * r[0], sums[2] += x * r[1], sums[3] += y * r[1], sums[4] += v;
  }
  for (int k = 0; k < 5; ++k) out[k] = sums[k] * t;
}
extern "C" __global__ void forward_f32(const float* r, int n, float* out) { forward(r, n, out); }
extern "C" __global__ void backward_f32(const float* r, int n, float* out) { backward(r, n, out); }
extern "C" __global__ void forward_f64(const double* r, int n, double* out) { forward(r, n, out); }
extern "C" __global__ void backward_f64(const double* r, int n, double* out) { backward(r, n, out); }
"""

PROJECT = """
#include "submodules/diff-gaussian-rasterization/csrc/common/project.h"
using namespace dgr;
template <class S> struct Values { Camera<S> camera; Vec3<S> m; Symmetric3<S> s; Projected<S> conic, grad; };
template <class S> __device__ void forward(const Values<S>& v, S* out) {
  Projected<S> to;
  out[0] = project(v.camera, v.m, v.s, to) ? to.a + to.b + to.c + to.x + to.y : S(0);
}
template <class S> __device__ void backward(const Values<S>& v, S* out) {
  Vec3<S> m;
  Symmetric3<S> s;
  CameraGrad<S> c;
  project_vjp(v.camera, v.m, v.s, v.conic, v.grad, m, s, c);
  out[0] = m.x, out[1] = m.y, out[2] = s.xx + s.xy, out[3] = c.r0.x + c.r1.y, out[4] = c.p.z;
}
extern "C" __global__ void forward_f32(const Values<float> v, float* out) { forward(v, out); }
extern "C" __global__ void backward_f32(const Values<float> v, float* out) { backward(v, out); }
extern "C" __global__ void forward_f64(const Values<double> v, double* out) { forward(v, out); }
extern "C" __global__ void backward_f64(const Values<double> v, double* out) { backward(v, out); }
"""

NEAREST = """
#include "submodules/simple-knn/csrc/common/nearest.h"
using namespace simple_knn;
template <class S> __device__ void points(const S* p, S* out) {
  Nearest<S> nearest = {out[0], out[1], out[2]};
  nearest.insert(squared_norm(p[0] - p[3], p[1] - p[4], p[2] - p[5]));
  out[0] = nearest.first, out[1] = nearest.second, out[2] = nearest.third;
}
template <class S> __device__ void boxes(const Box<S>* b, S* out) {
  out[3] = squared_distance(b[0], b[1]) < out[2] ? out[0] * out[1] + out[2] : 0;
}
extern "C" __global__ void forward_f32(const float* p, float* out) { points(p, out); }
extern "C" __global__ void backward_f32(const Box<float>* b, float* out) { boxes(b, out); }
extern "C" __global__ void forward_f64(const double* p, double* out) { points(p, out); }
extern "C" __global__ void backward_f64(const Box<double>* b, double* out) { boxes(b, out); }
"""

COMMUTES = re.compile(r"(mul|add|fma)\.")


def ptx(folder: Path, source: str, *flags: str) -> str:
    file = folder / "probe.cu"
    file.write_text(source)
    command = [str(NVCC), "-std=c++20", "-O3", "-ptx", "-arch=compute_80", f"-I{ROOT}", *flags, str(file)]
    subprocess.run([*command, "-o", str(folder / "probe.ptx")], check=True, capture_output=True, text=True)
    return (folder / "probe.ptx").read_text()


def formulas(text: str, kernel: str) -> tuple[set[str], set[str]]:
    """Every number of the kernel as the formula it is computed by, and those among them that are compared.

    What is loaded, or carried around a loop, is ``x``; numbers that are spelled out stay.
    """
    body = text[text.index(f".entry {kernel}(") :]
    body = body[: body.index("\n}")]
    defined: dict[str, list[tuple[str, list[str]]]] = {}
    compared = []
    for line in body.splitlines():
        match = re.fullmatch(r"\s*([a-z][\w.]*)\s+(%\w+)(?:\|%\w+)?,\s*(.*);", line)
        if match is None:
            continue
        operation, target, rest = match.groups()
        operands = [part.strip() for part in rest.split(",")]
        defined.setdefault(target, []).append((operation, operands))
        if operation.startswith("setp"):
            compared.append(operands[0])

    def formula(operand: str) -> str:
        if not operand.startswith("%"):
            return operand
        found = defined.get(operand, [])
        if len(found) != 1 or re.match(r"ld|mov|cvt|selp|set", found[0][0]):
            return "x"
        operation, operands = found[0]
        parts = [formula(part) for part in operands]
        if COMMUTES.match(operation):
            parts[:2] = sorted(parts[:2])
        return f"{operation}({', '.join(parts)})"

    return {formula(target) for target in defined}, {formula(operand) for operand in compared}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Every probe with fusing and without."""
    folder = tmp_path_factory.mktemp("ptx")
    probes = {"blend": BLEND, "project": PROJECT, "nearest": NEAREST}
    flags = ("-fmad=true", "-fmad=false")
    return {name: [ptx(folder, probe, flag) for flag in flags] for name, probe in probes.items()}


def of_both_kernels(texts: list[str], bits: str) -> list[tuple[set[str], set[str]]]:
    return [formulas(text, f"{kernel}_{bits}") for kernel in ("forward", "backward") for text in texts]


@pytest.mark.parametrize("bits", ["f32", "f64"])
def test_both_passes_decide_by_the_same_exponent_and_transmittance(compiled: dict[str, list[str]], bits: str) -> None:
    b = f"rn.{bits}"
    row = f"fma.{b}(mul.{b}(x, x), x, x)"
    exponent = f"fma.{b}(fma.{b}(x, x, mul.{b}(x, x)), x, {row})"
    left = f"sub.{b}(x, mul.{b}(x, x))"
    for numbers, compared in of_both_kernels(compiled["blend"], bits):
        assert exponent in numbers and exponent in compared, compared
        assert left in compared, compared


@pytest.mark.parametrize("bits", ["f32", "f64"])
def test_both_passes_clamp_the_same_projections(compiled: dict[str, list[str]], bits: str) -> None:
    b = f"rn.{bits}"
    along = f"fma.{b}(x, x, fma.{b}(x, x, mul.{b}(x, x)))"
    ratio = re.compile(rf"mul\.{re.escape(b)}\(add\.{bits}\({re.escape(along)}, x\), (div|rcp)\..*\)")
    both = of_both_kernels(compiled["project"], bits)
    # The sum with the translation has no product that could be fused with it: its rounding need not be named.
    plain = [{formula.replace("add.rn.", "add.") for formula in compared} for _, compared in both]
    found = [{formula for formula in named if ratio.fullmatch(formula)} for named in plain]
    assert found[0] and all(other == found[0] for other in found), both


@pytest.mark.parametrize("bits", ["f32", "f64"])
def test_boxes_and_points_are_measured_alike(compiled: dict[str, list[str]], bits: str) -> None:
    b = f"rn.{bits}"
    for numbers, _ in of_both_kernels(compiled["nearest"], bits):
        shapes = {re.sub(r"(sub|max|selp)[\w.]*\([^()]*\)", "x", formula) for formula in numbers}
        assert f"fma.{b}(x, x, fma.{b}(x, x, mul.{b}(x, x)))" in shapes, shapes
