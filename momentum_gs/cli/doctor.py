"""``momentum-gs doctor``: finds what is wrong with a scene, and estimates memory, disk and time of its training."""

import argparse
import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from momentum_gs.cli.common import add_run_arguments, resolve_config
from momentum_gs.config.schema import Config
from momentum_gs.core.log import info
from momentum_gs.doctor.estimate import Estimate
from momentum_gs.doctor.findings import SEVERITIES, Finding
from momentum_gs.doctor.fix import Fix, apply_fixes
from momentum_gs.doctor.look import estimate
from momentum_gs.doctor.scene import examine

HELP = "find what is wrong with a scene before training, and estimate memory, disk and time"
DESCRIPTION = """\
Checks a scene before training: files, images, poses, points, settings, partition. Every finding names the file or
setting, what was found, what was expected and what to do. Then estimates memory, disk and time for the given settings
from a few training steps on the scene's images.

  momentum-gs doctor SCENE -c base -m OUT -r 4

Exit status: 0 if training will accept the scene, 1 if it would refuse it or fail, 2 if there is no scene to check.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_run_arguments(parser, scene_first=True)
    parser.add_argument("--quick", action="store_true", help="read only the headers of images, and measure no steps")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--fix", action="store_true", help="apply safe fixes: write links and lists into SCENE/doctor, "
        "and print the settings that use them; no other file is changed")


def run(args: argparse.Namespace) -> int:
    """Prints findings and estimates; returns the exit status."""
    fixes: list[Fix] = []
    # With --json, what loading prints goes to stderr, so that stdout holds the JSON object only.
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
        config = resolve_config(args, own=True, refuse=False, announce=True)
        examination = examine(config, quick=args.quick)
        if args.fix:
            fixes, config = apply_fixes(config, examination)
            if fixes:
                examination = examine(config, quick=args.quick)
        found = estimate(config, examination, args.quick)
    rows, more = ([], [found]) if isinstance(found, Finding) else found
    findings = [*examination.findings, *more]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    if args.json:
        print(json.dumps({
            "scene": config.scene.path,
            "fixes": [asdict(fix) for fix in fixes],
            "findings": [asdict(finding) for finding in findings],
            "estimates": [asdict(row) for row in rows],
        }, ensure_ascii=False, indent=1))  # fmt: skip
    else:
        _print(config, fixes, findings, rows)
    return int(any(finding.severity == "error" for finding in findings))


def _print(config: Config, fixes: list[Fix], findings: list[Finding], rows: list[Estimate]) -> None:
    for fix in fixes:
        info(f"fixed    {fix.done}; use it with {fix.setting}")
    for finding in findings:
        info(f"{finding.severity:<8} {finding}")
    if rows:
        info("")
        info(f"estimates for stage={config.stage}, one process:")
        for row in rows:
            info(f"  {row.what:<40}{_shown(row):>12}   {row.basis}")
        info("")
    counts = ", ".join(f"{sum(f.severity == s for f in findings)} {s}s" for s in SEVERITIES[:2])
    info(f"{Path(config.scene.path or '').name}: {counts}")


def _shown(row: Estimate) -> str:
    if row.unit == "bytes":
        return f"{row.value / 2**30:.2f} GiB" if row.value >= 2**30 else f"{row.value / 2**20:.1f} MiB"
    if row.unit == "seconds":
        minutes, seconds = divmod(round(row.value), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
    return f"{row.value:,.0f}"
