"""The parts of scripts/gpu_check.sh, one after the other until the minutes are over; those that are done are kept.

A part is a function from ``Check`` to its figures. It runs programs, each with a log and the time that is left, and
reads figures from what they print. With ``--rehearse`` the same programs run with the same flags on a CPU: tests are
skipped for want of a GPU, the CUDA sources run on the emulator, and the tools of NVIDIA are stand-ins.
"""

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from programs import EXTENSIONS, HERE, RESULT, ROOT, Check, Cut, Failed, Figures, packages

LOG = 200_000
"""Characters of each part's log, its last ones, in the log of all."""


# --------------------------------------------------------------------------------------------------------------- parts


def machine(check: Check) -> Figures:
    said = check.run("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    nvcc = check.run("nvcc", "--version") if shutil.which("nvcc") else ""
    found = re.search(r"release ([\d.]+)", nvcc)
    return {"GPU": said.strip(), "nvcc": found[1] if found else "none"} | check.tool("versions", check.device)


def build(check: Check) -> Figures:
    """Without TORCH_CUDA_ARCH_LIST, torch builds for the GPUs that it sees."""
    figures = {}
    for folder in EXTENSIONS:
        start = time.monotonic()
        flags = ("--help",) if check.rehearse else ()
        where = ROOT / "submodules" / folder
        check.run(sys.executable, "setup.py", "build_ext", "--inplace", *flags, folder=where, FORCE_CUDA=_cuda(check))
        figures[f"{folder}, s"] = round(time.monotonic() - start, 1)
    return figures


def _cuda(check: Check) -> str:
    return "0" if check.rehearse else "1"


def tests(check: Check) -> Figures:
    report = check.log.with_suffix(".xml")
    # Tests of programs that the machine lacks cannot be collected; they need no GPU.
    flags = ["-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors", f"--junitxml={report}"]
    command = ["-m", "pytest", "-q", *flags, *check.load.tests]
    failure = None
    try:
        check.python(*command)
    except Failed as failed:
        failure = failed
    if not report.exists():
        raise failure or Failed(f"pytest wrote no report; see {check.log.name}")
    suite = next(ElementTree.parse(report).iter("testsuite"))
    figures: Figures = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    bad = [case for case in suite.iter("testcase") if {child.tag for child in case} & {"failure", "error"}]
    figures["failed"] = [f"{case.get('classname')}.{case.get('name')}" for case in bad]
    if not check.rehearse and figures["tests"] == figures["skipped"]:
        raise Failed(f"all {figures['tests']} tests were skipped; see {check.log.name}")
    return figures


def sanitize(tool: str) -> Callable[[Check], Figures]:
    def part(check: Check) -> Figures:
        printed = check.run(
            "compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20",
            sys.executable, HERE / "small_scenes.py", *(("--emulated",) if check.rehearse else ()),
            # Each tensor in an allocation of its own, so that reading past one is seen.
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )  # fmt: skip
        return {"summary": [line for line in printed.splitlines() if "SUMMARY" in line]}

    return part


def kernels(check: Check) -> Figures:
    """Without gsplat: it compiles for minutes when it is first used (the part ``gsplat``)."""
    figures: Figures = {}
    for what in ("raster", "ssim", "knn"):
        figures[what] = _lines(check.momentum_gs("bench", what, *check.load.bench, f"device={check.device}"))
    return figures


def gsplat(check: Check) -> Figures:
    site = check.state / "site_gsplat"
    path = os.pathsep.join([str(site), *packages(), os.environ.get("PYTHONPATH", "")])
    command = ("-m", "momentum_gs", "bench", "raster", *check.load.bench, f"device={check.device}")
    return {"raster": _lines(check.python(*command, PYTHONPATH=path))}


def bandwidth(check: Check) -> Figures:
    return check.tool("bandwidth", "--device", check.device, "--scale", "0.001" if check.rehearse else "1")


def city(check: Check) -> Figures:
    return _train(check, _city(check), check.device)


def city_on_cpu(check: Check) -> Figures:
    return _train(check, _city(check), "cpu")


def scene(check: Check) -> Figures:
    assert check.scene is not None
    return _train(check, check.scene, check.device)


def step(check: Check) -> Figures:
    """Times of the parts of a step; launches, waits and memory of a whole one."""
    run = _run_of(check, check.device)
    printed = check.momentum_gs("bench", "step", *_settings(check, _city(check), run, check.device),
                                "--steps", str(check.load.timed))  # fmt: skip
    profile = check.tool("profile_step", "--scene", _city(check), "--out", check.work / "profile", "--device",
                         check.device, "--steps", str(check.load.timed),
                         *(("--emulated",) if check.rehearse else ()))  # fmt: skip
    return {"parts": _lines(printed)} | profile


def ranks(check: Check) -> Figures:
    """As many ranks as GPUs; in a rehearsal two. One rank tries NCCL too."""
    count = "2" if check.rehearse else str(check.tool("versions", check.device)["GPUs"])
    launch = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}")
    printed = check.python(*launch, HERE / "all_reduce.py", check.device, "1000" if check.rehearse else "10000000")
    return {"ranks": count} | json.loads(printed.rpartition(RESULT)[2].splitlines()[0])


def swap(check: Check) -> Figures:
    settings = (f"store.folder={check.work / 'swap'}", f"device={check.device}")
    load = ("--anchors", str(check.load.anchors), "--repeats", "1" if check.rehearse else "11")
    return {"swap": _lines(check.momentum_gs("bench", "swap", *load, *settings))}


def _city(check: Check) -> Path:
    folder = check.work / "city"
    if not (folder / "synth.json").exists():
        check.momentum_gs("synth", folder, *check.load.city, "--force")
    return folder


def _settings(check: Check, scene: Path, run: Path, device: str) -> tuple[str, ...]:
    return ("-c", str(ROOT / "configs" / "demo.yaml"), "-s", str(scene), "-m", str(run), "stage=coarse",
            f"steps={check.load.steps}", f"device={device}")  # fmt: skip


def _run_of(check: Check, device: str, name: str = "city") -> Path:
    return check.work / f"run_{name}_{device}"


def _train(check: Check, where: Path, device: str) -> Figures:
    run = _run_of(check, device, "city" if where == check.work / "city" else "scene")
    # What a cut call left is no measurement.
    shutil.rmtree(run, ignore_errors=True)
    start = time.monotonic()
    check.momentum_gs("train", *_settings(check, where, run, device))
    seconds = time.monotonic() - start
    check.momentum_gs("render", run, "--device", device)
    printed = check.momentum_gs("eval", run, "--lpips", "none", "--device", device)
    return {"steps": check.load.steps, "training, s": round(seconds, 1), "scores": _lines(printed)}


def _lines(printed: str) -> list[str]:
    """What a command says, without its settings."""
    return [line.rstrip() for line in printed.splitlines() if line.strip() and not line.startswith("settings")]


@dataclass(frozen=True)
class Part:
    name: str
    minutes: float
    """It is begun only where so much is left."""
    run: Callable[[Check], Figures]
    needs: tuple[str, ...] = ()
    """Parts that must be done before."""


PARTS = (  # in order of worth
    Part("machine", 0.3, machine),
    Part("build", 2.5, build, ("machine",)),
    Part("tests", 2.0, tests, ("build",)),
    Part("memcheck", 0.7, sanitize("memcheck"), ("build",)),
    Part("kernels", 0.7, kernels, ("build",)),
    Part("city", 1.0, city, ("build",)),
    Part("step", 0.8, step, ("city",)),
    Part("racecheck", 0.7, sanitize("racecheck"), ("build",)),
    Part("bandwidth", 0.4, bandwidth, ("build",)),
    Part("swap", 0.5, swap, ("build",)),
    Part("ranks", 0.5, ranks, ("build",)),
    Part("initcheck", 0.7, sanitize("initcheck"), ("build",)),
    Part("synccheck", 0.7, sanitize("synccheck"), ("build",)),
    Part("gsplat", 4.0, gsplat, ("build",)),
    Part("city_on_cpu", 3.0, city_on_cpu, ("build",)),
    Part("scene", 2.0, scene, ("build",)),
)


# --------------------------------------------------------------------------------------------------------------- calls


def kept(check: Check, part: Part) -> Figures:
    """What earlier calls left of a part: ``status`` is done, failed, or cut. A rehearsal is none, and the reverse."""
    file = check.state / f"{part.name}.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    of_this_kind = record.get("rehearsed", check.rehearse) == check.rehearse
    return record if record and of_this_kind else {"status": "open"}


def applies(check: Check, part: Part) -> bool:
    """Not what was not given; and in a rehearsal the city is trained on the CPU anyway."""
    if part.run is scene:
        return check.scene is not None
    if part.run is gsplat:
        return (check.state / "site_gsplat").exists() or (not check.rehearse and find_spec("gsplat") is not None)
    return not (part.run is city_on_cpu and check.rehearse)


def keep(check: Check, part: Part, record: Figures) -> None:
    file = check.state / f"{part.name}.json"
    file.with_suffix(".part").write_text(json.dumps(record, indent=1))
    file.with_suffix(".part").replace(file)
    write_tables(check)


def do(check: Check, part: Part) -> None:
    """Runs one part and keeps what came of it."""
    if missing := [name for name in part.needs if kept(check, BY_NAME[name])["status"] != "done"]:
        print(f"{part.name}: waits for {', '.join(missing)}", flush=True)
        return
    if check.left() < 60 * part.minutes and not check.rehearse:
        left = check.left() / 60
        print(f"{part.name}: not begun, it takes {part.minutes} minutes and {left:.1f} are left", flush=True)
        return
    check.log = check.state / f"{part.name}.log"
    check.log.write_text("")
    keep(check, part, {"status": "cut"})  # until it ends: whoever kills this call leaves it so
    start = time.monotonic()
    try:
        record: Figures = {"status": "done", "figures": part.run(check)}
    except Cut:
        record = {"status": "cut"}
    except Failed as failed:
        end = check.log.read_text(errors="replace")[-2000:].splitlines()
        record = {"status": "failed", "figures": {"why": str(failed), "end": end}}
    record |= {"seconds": round(time.monotonic() - start, 1), "rehearsed": check.rehearse}
    keep(check, part, record)
    print(f"{part.name}: {record['status']} in {record['seconds']} s", flush=True)


def write_tables(check: Check) -> None:
    records = {part.name: kept(check, part) for part in PARTS}
    (check.out / "gpu_check.json").write_text(json.dumps(records, indent=1) + "\n")
    lines = ["# GPU check", "", "| part | status | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {r['status']}{' (rehearsed)' * bool(r.get('rehearsed'))} | {r.get('seconds', '')} |"
              for name, r in records.items()]  # fmt: skip
    for name, record in records.items():
        for key, value in record.get("figures", {}).items():
            lines += ["", f"**{name}, {key}**: {value}" if not isinstance(value, list) else f"**{name}, {key}**"]
            lines += ["```", *value, "```"] if isinstance(value, list) and value else []
    (check.out / "gpu_check.md").write_text("\n".join(lines) + "\n")
    logs = {part.name: check.state / f"{part.name}.log" for part in PARTS}
    ends = [f"===== {name}\n{log.read_text(errors='replace')[-LOG:]}" for name, log in logs.items() if log.exists()]
    (check.out / "gpu_check.log").write_text("\n".join(ends))


BY_NAME = {part.name: part for part in PARTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "output" / "gpu_check"))
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--only", metavar="PART,...", help=", ".join(BY_NAME))
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    only = args.only.split(",") if args.only else []
    if unknown := set(only) - set(BY_NAME):
        parser.error(f"--only: no part {', '.join(sorted(unknown))}; there are {', '.join(BY_NAME)}")
    ends = time.monotonic() + 60 * args.minutes
    check = Check(args.out.resolve(), args.state.resolve(), args.rehearse, ends, args.scene)
    for folder in (check.out, check.state, check.work):
        folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        wanted = part.name in only if only else kept(check, part)["status"] != "done"
        if wanted and applies(check, part):
            do(check, part)
    write_tables(check)
    statuses = [kept(check, part)["status"] for part in PARTS if applies(check, part)]
    done, failed = statuses.count("done"), statuses.count("failed")
    print(f"{done} of {len(statuses)} done, {failed} failed; {check.out / 'gpu_check.md'}", flush=True)
    sys.exit(1 if "failed" in statuses else 0)


if __name__ == "__main__":
    main()
