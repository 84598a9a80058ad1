"""ipdiff: input perturbation for diffusion models (arXiv 2301.11706), as a reproducible pipeline."""

__version__ = "0.1.0"
