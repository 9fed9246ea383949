"""Time of fitting a normalising flow, and how exact it is, beside whitening on the same embeddings.

One float32 array of correlated, slightly curved points stands for the embeddings. For each architecture: seconds of
`NormalizingFlow.fit` with its defaults (early stopping included), seconds for each epoch, the likelihood before and
after, seconds to transform all rows, and two errors: how far the inverse is from the input, relative to its largest
entry, and how far the log-determinant is from that of autograd's Jacobian (in float64, three rows, in nats)::

    python evaluation/benchmarks/flow_fit.py --output flow_fit.json
    python evaluation/benchmarks/flow_fit.py --rows 300 --dimension 16 --epochs 2   # a dry run of seconds
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text
from st_plugins.modules import NormalizingFlow, Whitening

Array = NDArray[np.floating]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "paper": {"preset": "paper"},
    "code": {"preset": "code"},
    "paper, affine": {"preset": "paper", "coupling": "affine"},
    "paper, learned permutation in LU factors": {"preset": "paper", "permutation": "learned-lu"},
    "paper, learned permutation": {"preset": "paper", "permutation": "learned"},
}


def main(
    rows: int = 20_000,
    dimension: int = 256,
    epochs: Annotated[int, typer.Option(help="At most; early stopping may end sooner.")] = 30,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 2,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print the seconds, the likelihoods and the errors."""
    torch.set_num_threads(threads)
    points = embeddings(rows, dimension)
    start = time.perf_counter()
    Whitening(dimension).fit(points).affine()
    whitening = time.perf_counter() - start
    flows = {}
    for name, options in ARCHITECTURES.items():
        flows[name] = measure(NormalizingFlow.from_preset(embedding_dimension=dimension, **options), points, epochs)
        flows[name]["times_whitening"] = flows[name]["fit_seconds"] / whitening
    result: dict[str, Any] = {
        "benchmark": f"flow fit, {rows} x {dimension} float32, at most {epochs} epochs",
        "flows": flows,
        "whitening_fit_seconds": whitening,
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load_1_minute": os.getloadavg()[0]},
        "versions": library_versions(),
    }
    print(json.dumps(result, indent=1))
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")


def embeddings(rows: int, dimension: int) -> Array:
    """Return points with a falling spectrum, a mean far from zero, and a bend that whitening cannot undo."""
    generator = np.random.default_rng(0)
    points = generator.standard_normal((rows, dimension), dtype=np.float32)
    points[:, 1:] += 0.3 * points[:, :-1] ** 2
    points *= np.geomspace(1.0, 0.03, dimension, dtype=np.float32)
    rotation, _ = np.linalg.qr(generator.standard_normal((dimension, dimension)))
    return np.asarray(points @ rotation.astype(np.float32) + generator.standard_normal(dimension, dtype=np.float32))


def measure(module: NormalizingFlow, points: Array, epochs: int) -> dict[str, Any]:
    """Fit one flow, and return what was measured."""
    start = time.perf_counter()
    module.fit(points, epochs=epochs, show_progress_bar=False)
    fit = time.perf_counter() - start
    start = time.perf_counter()
    latents = module.transform(points)
    transform = time.perf_counter() - start
    history = module.history
    trained = len(history) - 1
    doubles = torch.from_numpy(points[:3].astype(np.float64))
    _, log_determinants = module.flow(doubles)
    errors = []
    for row, log_determinant in zip(doubles, log_determinants, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda given: module.flow(given[None])[0][0], row)
        errors.append(abs(float(torch.linalg.slogdet(jacobian).logabsdet - log_determinant)))
    return {
        "fit_seconds": fit,
        "epochs": trained,
        "seconds_per_epoch": fit / trained,
        "best_epoch": min(history, key=lambda entry: entry["held_out"])["epoch"],
        "held_out_nats_per_dimension": {
            "before": history[0]["held_out"],
            "after": min(entry["held_out"] for entry in history),
        },
        "transform_seconds": transform,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "largest_error_of_inverse": float(np.abs(module.inverse(latents) - points).max() / np.abs(points).max()),
        "largest_error_of_log_determinant": max(errors),
    }


if __name__ == "__main__":
    typer.run(main)
