"""Frechet distances and the features they are taken on."""

from ipdiff.metrics.frechet import frechet_distance

__all__ = ["frechet_distance"]
