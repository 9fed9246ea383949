"""Time of fitting a normalising flow, and how exact it is, beside whitening on the same embeddings.

One float32 array of correlated, slightly curved points stands for the embeddings. For each architecture: seconds of
`NormalizingFlow.fit` with its defaults (early stopping included), seconds for each epoch, the likelihood before and
after, seconds to transform all rows, and two errors: how far the inverse is from the input, relative to its largest
entry, and how far the log-determinant is from that of autograd's Jacobian (in float64, three rows, in nats)::

    python -m evaluation.benchmarks.flow_fit --output flow_fit.json
    python -m evaluation.benchmarks.flow_fit --rows 300 --dimension 16 --epochs 2   # a dry run of seconds
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from evaluation.benchmarks.harness import Output, Threads, count_parameters, report, timed
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
    threads: Threads = 2,
    output: Output = None,
) -> None:
    """Print the seconds, the likelihoods and the errors."""
    torch.set_num_threads(threads)
    points = embeddings(rows, dimension)
    whitening, _ = timed(lambda: Whitening(dimension).fit(points).affine())
    flows = {}
    for name, options in ARCHITECTURES.items():
        flows[name] = measure(NormalizingFlow.from_preset(embedding_dimension=dimension, **options), points, epochs)
        flows[name]["times_whitening"] = flows[name]["fit_seconds"] / whitening
    figures = {"flows": flows, "whitening_fit_seconds": whitening}
    report(f"flow fit, {rows} x {dimension} float32, at most {epochs} epochs", figures, output)


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
    fit, _ = timed(lambda: module.fit(points, epochs=epochs, show_progress_bar=False))
    transform, latents = timed(lambda: module.transform(points))
    history = module.history
    best = min(history, key=lambda entry: entry["held_out"])
    # Three rows, for autograd's Jacobian takes a backward pass for each dimension of each.
    doubles = torch.from_numpy(points[:3].astype(np.float64))
    _, log_determinants = module.flow(doubles)
    errors = []
    for row, log_determinant in zip(doubles, log_determinants, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda given: module.flow(given[None])[0][0], row)
        errors.append(abs(float(torch.linalg.slogdet(jacobian).logabsdet - log_determinant)))
    return {
        "fit_seconds": fit,
        "epochs": len(history) - 1,  # the first entry is from before training
        "seconds_per_epoch": fit / (len(history) - 1),
        "best_epoch": best["epoch"],
        "held_out_nats_per_dimension": {"before": history[0]["held_out"], "after": best["held_out"]},
        "transform_seconds": transform,
        "parameters": count_parameters(module.parameters()),
        "largest_error_of_inverse": float(np.abs(module.inverse(latents) - points).max() / np.abs(points).max()),
        "largest_error_of_log_determinant": max(errors),
    }


if __name__ == "__main__":
    typer.run(main)
