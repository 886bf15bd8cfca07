"""A scene, its settings and what training it will take, in one look."""

from momentum_gs.config.schema import Config
from momentum_gs.core.device import pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.memory import peak_memory
from momentum_gs.doctor.estimate import Estimate, estimates, expect, probe
from momentum_gs.doctor.findings import SEVERITIES, Finding
from momentum_gs.doctor.scene import Examination, examine


def look(config: Config, *, quick: bool = False) -> list[Finding]:
    """What there is to say of a scene and its settings, the worst first; ``quick``: images are not decoded.

    Nothing is measured: memory and disk are estimated without a view in work.
    """
    examination = examine(config, quick=quick)
    found = estimate(config, examination, quick=True)
    more = [found] if isinstance(found, Finding) else found[1]
    return sorted([*examination.findings, *more], key=lambda finding: SEVERITIES.index(finding.severity))


def estimate(
    config: Config, examination: Examination, quick: bool
) -> tuple[list[Estimate], list[Finding]] | Finding:
    """Of a scene that trains; a finding where the numbers of blocks do not."""
    scene, scale = examination.scene, examination.scale
    if scene is None or scale is None or examination.refused:
        return [], []
    if config.model.primitive == "gaussians":
        return Finding("info", "estimates", "model.primitive", "gaussians; memory and time are estimated for anchors")
    device, own = pick_device(config.device), peak_memory()
    try:
        expected = expect(config, scene, scale, examination.table)
        probes = [] if quick else probe(config, scene, (expected.start, expected.largest), device)
    except UserError as error:
        return Finding.of_error("settings", error)
    return estimates(config, scene, expected, probes, own, device)
