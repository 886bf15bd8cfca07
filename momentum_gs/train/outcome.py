"""How a training ended."""

from dataclasses import dataclass

from momentum_gs.train.work import Work


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    """Global steps done."""
    work: Work
    """All work since step 0, that of interrupted processes included."""
    waited: float
    """Seconds in which this process waited for blocks."""
    stopped_early: bool
    """True if the run ended because it reached ``log.stop_psnr_ssim``."""
    interrupted: bool
    """True if the run was asked to stop: a checkpoint was written, but no model."""
    bad_images: dict[str, str]
    """The images that this rank skipped (``scene.bad_images``): name -> reason."""
