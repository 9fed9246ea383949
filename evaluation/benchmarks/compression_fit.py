"""Time and memory of choosing smaller vectors on many embeddings, beside scikit-learn's PCA and the OPQ of faiss.

Ours is everything that `st_plugins.compress` does after encoding: the moments of the embeddings block by block, every
candidate of six sizes judged on texts that it was not fitted on, the map and the ranges of the winners. The peers fit
one map to one size. Each runs in a fresh process; the extra memory is the peak of its resident set less what was
resident before, with everything imported and the embeddings there (Linux)::

    python -m evaluation.benchmarks.compression_fit --output compression_fit.json
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from evaluation.benchmarks import harness
from st_plugins.compression.choice.candidates import Maps, Trial, of_size
from st_plugins.compression.choice.certificate import Certificate
from st_plugins.compression.choice.copies import TEXTS
from st_plugins.compression.choice.fidelity import unit
from st_plugins.compression.choice.sample import Sample, applied
from st_plugins.core.quantization import BITS, Quantization

Array = NDArray[np.floating]

_BLOCK = 4096
_OPQ_ROWS = 16_384
_OPQ = f"faiss OPQ, 1 of 50 rounds on {_OPQ_ROWS:,} rows"
_PARTS = (2, 4, 8, 16, 32, 64)  # the sizes that are chosen for, as parts of the float32 vectors


def main(
    rows: int = 100_000,
    dimension: int = 768,
    threads: harness.Threads = 1,
    output: harness.Output = None,
    memory_of: harness.MemoryOf = "",
) -> None:
    """Print the seconds and the extra memory."""
    torch.set_num_threads(threads)
    methods: dict[str, Callable[[Array], object]] = {"ours": ours, "sklearn PCA": pca, _OPQ: opq}
    if memory_of:  # in the fresh process
        points = embeddings(rows, dimension)
        seconds, extra = harness.timed(lambda: harness.extra_bytes(lambda: methods[memory_of](points), gpu=False))
        print(json.dumps({"seconds": seconds, "extra_peak_mib": extra / harness.MIB}))
        return
    figures = {name: harness.in_fresh_process("--memory-of", name) for name in methods}
    harness.report(f"compression fit, {rows} x {dimension} float32", figures, output)


def embeddings(rows: int, dimension: int) -> Array:
    """Return points with a falling spectrum, a mean far from zero, and many that are near to others."""
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((rows // 50 + 1, dimension), dtype=np.float32)
    points = centers[generator.integers(len(centers), size=rows)]
    points += 0.5 * generator.standard_normal((rows, dimension), dtype=np.float32)
    points *= np.geomspace(1.0, 0.03, dimension, dtype=np.float32)
    points += 0.3 * generator.standard_normal(dimension, dtype=np.float32)
    return points


def ours(points: Array) -> list[Certificate]:
    """Choose and fit vectors of every size."""
    dimension = points.shape[1]
    sample = Sample(dimension)
    for start in range(0, len(points), _BLOCK):
        sample.add(points[start : start + _BLOCK])
    # What copies are does not matter for the time: a few texts, and others of the same kind.
    copies = [(held[:TEXTS], held[-TEXTS:]) for held in sample.held]
    trial, maps, certificates = Trial(sample, copies), Maps(sample.whole), []
    for part in _PARTS:
        best = trial.best(of_size(trial.limits, 4 * dimension // part, BITS))
        Quantization.fit(best.precision, unit(applied(np.concatenate(sample.held), maps.of(best))))
        certificates.append(Certificate.of(trial.measure(best, errors=True)))
    return certificates


def pca(points: Array) -> object:
    """Fit a sixteenth of the dimensions, by the fastest exact solver."""
    return PCA(points.shape[1] // 16, svd_solver="covariance_eigh").fit(points)


def opq(points: Array) -> object:
    """Fit a byte for eight numbers: one of the 50 rounds that faiss has by default, on some of the rows."""
    import faiss  # a peer of the study and of this benchmark alone

    matrix: Any = faiss.OPQMatrix(points.shape[1], points.shape[1] // 8)
    matrix.niter = 1
    matrix.train(points[:_OPQ_ROWS])
    return matrix


if __name__ == "__main__":
    typer.run(main)
