"""Time and memory of fitting a whitening, against the published recipe and scikit-learn.

Time: all take turns on one float32 array, and the median of the ratios counts. The peers are ``np.cov`` followed by
``np.linalg.svd`` (the published code) and scikit-learn's ``PCA(whiten=True, svd_solver="covariance_eigh")``, its
fastest exact solver, on the array as it is and converted to float64 beforehand. Accuracy: how far ``W Σ Wᵀ`` is from
the identity for each fitted W, with Σ in float64. It matters for the reading: on float32 input scikit-learn computes
``XᵀX - N μμᵀ`` in float32, which cancels, and the result does not whiten; only its float64 row is a peer.

Memory: a fresh process streams rows block by block (the same block again and again, so that it is allocated once); the
extra memory is the peak of its resident set (VmHWM, reset through /proc/self/clear_refs; Linux) less what was resident
before, with everything imported and the block allocated::

    python evaluation/benchmarks/whitening_fit.py --output whitening_fit.json
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text
from st_plugins.modules import Whitening

Array = NDArray[np.floating]

_STREAM = """
import itertools, re, sys, time
from pathlib import Path
import numpy as np
from st_plugins.modules import Whitening

def resident(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

rows, dimension, block_rows = map(int, sys.argv[1:])
block = np.random.default_rng(0).standard_normal((block_rows, dimension), dtype=np.float32)
Path("/proc/self/clear_refs").write_text("5")
before, start = resident("VmRSS"), time.perf_counter()
Whitening(dimension).fit(itertools.repeat(block, rows // block_rows)).affine()
print(resident("VmHWM") - before, time.perf_counter() - start)
"""


def main(
    rows: int = 200_000,
    dimension: int = 768,
    runs: int = 5,
    stream_rows: int = 1_000_000,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print the seconds and their ratios, and the extra memory of streaming."""
    generator = np.random.default_rng(0)
    points = generator.standard_normal((rows, dimension), dtype=np.float32)
    points *= np.geomspace(1.0, 0.03, dimension, dtype=np.float32)
    points += generator.standard_normal(dimension, dtype=np.float32)
    methods: dict[str, Callable[[], Array]] = {
        "ours": lambda: Whitening(dimension).fit(points).affine()[1].numpy(),
        "np.cov + np.linalg.svd": lambda: published(points),
        "sklearn PCA, float32": lambda: pca(points),
        "sklearn PCA, float64": lambda: pca(double),
    }
    double = points.astype(np.float64)
    covariance = np.cov(double.T, ddof=0)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    errors: dict[str, float] = {}
    for _ in range(runs):
        for name, method in methods.items():
            start = time.perf_counter()
            weight = method()
            seconds[name].append(time.perf_counter() - start)
            errors[name] = float(np.abs(weight @ covariance @ weight.T - np.eye(len(weight))).max())
    ours = seconds["ours"]
    result: dict[str, Any] = {
        "benchmark": f"whitening fit, {rows} x {dimension} float32",
        "seconds": seconds,
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "median_ratio": {
            name: statistics.median(peer / own for peer, own in zip(times, ours, strict=True))
            for name, times in seconds.items()
        },
        "largest_deviation_of_whitened_covariance_from_identity": errors,
        "stream": [stream(stream_rows, dimension, block_rows) for block_rows in (10_000, 50_000)],
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load_1_minute": os.getloadavg()[0]},
        "versions": library_versions(),
    }
    print(json.dumps(result, indent=1))
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")


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
    """Stream rows in a process of its own and return what it measured."""
    arguments = [str(rows), str(dimension), str(block_rows)]
    done = subprocess.run([sys.executable, "-c", _STREAM, *arguments], capture_output=True, check=True, text=True)
    megabytes, seconds = map(float, done.stdout.split())
    return {"rows": rows, "block_rows": block_rows, "extra_peak_mib": megabytes, "seconds": seconds}


if __name__ == "__main__":
    typer.run(main)
