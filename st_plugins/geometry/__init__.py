"""How embeddings lie in space, and how far apart two sets of them are. Everything is computed in float64.

Single sets (:mod:`st_plugins.geometry.embeddings`): alignment, uniformity, cosine of random pairs, spectrum, effective
rank, participation ratio, IsoScore. Two sets (:mod:`st_plugins.geometry.gaussians`): Kullback-Leibler divergence,
Bhattacharyya distance and 2-Wasserstein distance between the Gaussians fitted to them. During training:
:class:`GeometryCallback`, and :class:`Probe`, which it measures with.
"""

from __future__ import annotations

import importlib
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
    from st_plugins.geometry.probe import Probe

# They need the host, whose import takes seconds, and the measures only numpy.
_LAZY = {"GeometryCallback": "st_plugins.geometry.callback", "Probe": "st_plugins.geometry.probe"}

__all__ = [
    "Gaussian",
    "GeometryCallback",
    "Probe",
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


if not TYPE_CHECKING:  # which would take any name for one that is here

    def __getattr__(name: str) -> Any:
        if name in _LAZY:
            return getattr(importlib.import_module(_LAZY[name]), name)
        raise AttributeError(f"module 'st_plugins.geometry' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
