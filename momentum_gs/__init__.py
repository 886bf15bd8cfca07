"""momentum-gs: large scenes as blocks of anchored 3D Gaussians that share one decoder."""

__version__ = "0.1.0"
