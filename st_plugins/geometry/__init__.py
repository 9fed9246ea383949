"""How embeddings lie in space, and how far apart two sets of them are. Everything is computed in float64.

Single sets (:mod:`st_plugins.geometry.embeddings`): alignment, uniformity, cosine of random pairs, spectrum, effective
rank, participation ratio, IsoScore. Two sets (:mod:`st_plugins.geometry.gaussians`): Kullback-Leibler divergence,
Bhattacharyya distance and 2-Wasserstein distance between the Gaussians fitted to them. During training:
:class:`GeometryCallback`, imported on first use because it needs the host, whose import takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st_plugins.geometry.embeddings import (
    alignment,
    describe,
    effective_rank,
    isoscore,
    mean_random_cosine,
    participation_ratio,
    spectrum,
    uniformity,
)
from st_plugins.geometry.gaussians import Gaussian, bhattacharyya_distance, kl_divergence, wasserstein_distance

if TYPE_CHECKING:
    from st_plugins.geometry.callback import GeometryCallback

__all__ = [
    "Gaussian",
    "GeometryCallback",
    "alignment",
    "bhattacharyya_distance",
    "describe",
    "effective_rank",
    "isoscore",
    "kl_divergence",
    "mean_random_cosine",
    "participation_ratio",
    "spectrum",
    "uniformity",
    "wasserstein_distance",
]


def __getattr__(name: str) -> Any:
    if name == "GeometryCallback":
        from st_plugins.geometry.callback import GeometryCallback

        return GeometryCallback
    raise AttributeError(f"module 'st_plugins.geometry' has no attribute {name!r}")
