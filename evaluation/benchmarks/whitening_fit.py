"""Time and memory of fitting a whitening, against the published recipe and scikit-learn.

Time: all get one float32 array. The peers are ``np.cov`` followed by
``np.linalg.svd`` (the published code) and scikit-learn's ``PCA(whiten=True, svd_solver="covariance_eigh")``, its
fastest exact solver, on the array as it is and converted to float64 beforehand. Accuracy: how far ``W Σ Wᵀ`` is from
the identity for each fitted W, with Σ in float64. It matters for the reading: on float32 input scikit-learn computes
``XᵀX - N μμᵀ`` in float32, which cancels, and the result does not whiten; only its float64 row is a peer.

Memory: a fresh process streams rows block by block (the same block again and again, so that it is allocated once); the
extra memory is the peak of its resident set less what was resident before, with everything imported and the block
allocated (Linux)::

    python -m evaluation.benchmarks.whitening_fit --output whitening_fit.json
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from evaluation.benchmarks import harness
from st_plugins.modules import Whitening

Array = NDArray[np.floating]


def main(
    rows: int = 200_000,
    dimension: int = 768,
    runs: int = 5,
    stream_rows: int = 1_000_000,
    output: harness.Output = None,
    stream_block: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Print the seconds and their ratios, and the extra memory of streaming."""
    if stream_block:  # in the fresh process
        print(json.dumps(stream(stream_rows, dimension, stream_block)))
        return
    generator = np.random.default_rng(0)
    points = generator.standard_normal((rows, dimension), dtype=np.float32)
    points *= np.geomspace(1.0, 0.03, dimension, dtype=np.float32)
    points += generator.standard_normal(dimension, dtype=np.float32)
    # Converted beforehand, in favor of the peer that gets it.
    double = points.astype(np.float64)
    methods: dict[str, Callable[[], Array]] = {
        "ours": lambda: Whitening(dimension).fit(points).affine()[1].numpy(),
        "np.cov + np.linalg.svd": lambda: published(points),
        "sklearn PCA, float32": lambda: pca(points),
        "sklearn PCA, float64": lambda: pca(double),
    }
    turns = harness.take_turns(methods, runs, warm_up=0)
    covariance = np.cov(double.T, ddof=0)
    figures = {
        "seconds": turns.seconds,
        "median_seconds": turns.medians(),
        "median_ratio": {name: turns.ratio(name, "ours") for name in methods},
        "largest_deviation_of_whitened_covariance_from_identity": {
            name: float(np.abs(weight @ covariance @ weight.T - np.eye(len(weight))).max())
            for name, weight in turns.results.items()
        },
        "stream": [harness.in_fresh_process(f"--stream-block={block_rows}") for block_rows in (10_000, 50_000)],
    }
    harness.report(f"whitening fit, {rows} x {dimension} float32", figures, output)


def published(points: Array) -> Array:
    """Return W as the published code computes it."""
    u, values, _ = np.linalg.svd(np.cov(points.T))
    return np.asarray((u / np.sqrt(values)).T)


def pca(points: Array) -> Array:
    """Return W of scikit-learn, with the covariance divided by N."""
    fitted = PCA(whiten=True, svd_solver="covariance_eigh").fit(points)
    values = fitted.explained_variance_ * (1 - 1 / len(points))
    return np.asarray(fitted.components_ / np.sqrt(values)[:, None])


def stream(rows: int, dimension: int, block_rows: int) -> dict[str, float]:
    """Fit to rows that come block by block, and return what it took."""
    # One block again and again, so that its own memory does not grow with the rows.
    block = np.random.default_rng(0).standard_normal((block_rows, dimension), dtype=np.float32)

    def fit() -> None:
        Whitening(dimension).fit(itertools.repeat(block, rows // block_rows)).affine()

    seconds, extra = harness.timed(lambda: harness.extra_bytes(fit, gpu=False))
    return {"rows": rows, "block_rows": block_rows, "extra_peak_mib": extra / harness.MIB, "seconds": seconds}


if __name__ == "__main__":
    typer.run(main)
