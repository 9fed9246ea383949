"""How embeddings lie in space, and how far apart two sets of them are. Everything is computed in float64.

Single sets (:mod:`st_plugins.geometry.embeddings`): alignment, uniformity, cosine of random pairs, spectrum, effective
rank, participation ratio, IsoScore. Two sets (:mod:`st_plugins.geometry.gaussians`): Kullback-Leibler divergence,
Bhattacharyya distance and 2-Wasserstein distance between the Gaussians fitted to them.
"""

from __future__ import annotations

from st_plugins.geometry.embeddings import (
    alignment,
    effective_rank,
    geometry,
    isoscore,
    mean_random_cosine,
    participation_ratio,
    spectrum,
    uniformity,
)
from st_plugins.geometry.gaussians import Gaussian, bhattacharyya_distance, kl_divergence, wasserstein_distance

__all__ = [
    "Gaussian",
    "alignment",
    "bhattacharyya_distance",
    "effective_rank",
    "geometry",
    "isoscore",
    "kl_divergence",
    "mean_random_cosine",
    "participation_ratio",
    "spectrum",
    "uniformity",
    "wasserstein_distance",
]
