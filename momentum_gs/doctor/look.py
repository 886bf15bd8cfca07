"""All findings and estimates for a scene and its settings."""

from momentum_gs.config.schema import Config
from momentum_gs.core.device import pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.memory import peak_memory
from momentum_gs.doctor.estimate import Estimate, estimates, expect, probe
from momentum_gs.doctor.findings import SEVERITIES, Finding
from momentum_gs.doctor.scene import Examination, examine


def look(config: Config, *, quick: bool = False) -> list[Finding]:
    """All findings for a scene and its settings, the worst first; ``quick``: images are not decoded.

    No training steps are measured: memory and disk are estimated without the memory of a view.
    """
    examination = examine(config, quick=quick)
    found = estimate(config, examination, quick=True)
    more = [found] if isinstance(found, Finding) else found[1]
    return sorted([*examination.findings, *more], key=lambda finding: SEVERITIES.index(finding.severity))


def estimate(
    config: Config, examination: Examination, quick: bool
) -> tuple[list[Estimate], list[Finding]] | Finding:
    """Estimates for a scene that can be trained, and their findings; nothing if it cannot. A single finding if the
    primitive or the numbers of blocks do not allow estimates."""
    scene, scale = examination.scene, examination.scale
    if scene is None or scale is None or examination.refused:
        return [], []
    if config.model.primitive == "gaussians":
        return Finding("info", "estimates", "model.primitive", "gaussians; memory and time are estimated for anchors")
    device, own = pick_device(config.device), peak_memory()
    try:
        expected = expect(config, scene, scale, examination.table)
        counts = expected.start + expected.around[0], expected.largest + expected.around[1]
        probes = [] if quick else probe(config, scene, counts, device)
    except UserError as error:
        return Finding.of_error("settings", error)
    return estimates(config, scene, expected, probes, own, device)
