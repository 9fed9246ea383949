"""1,000 bootstrap samples over the seven English tasks (18,850 pairs), against ``scipy`` on each resample.

The pairs are made up (gold scores on the half-point scale, continuous similarities); only their number matters. The
peer resamples and calls ``scipy.stats.spearmanr`` in a loop; it runs 20 resamples and is scaled up::

    python evaluation/benchmarks/bootstrap.py
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.stats import spearmanr

from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text
from st_plugins.data.pairs import Pairs
from st_plugins.evaluation.scoring import score_task

# Pairs of each sub-dataset, as in the published test sets.
SUBSETS = {
    "sts12": (750, 750, 459, 750, 399),
    "sts13": (189, 750, 561),
    "sts14": (450, 300, 750, 750, 750, 750),
    "sts15": (375, 750, 375, 750, 750),
    "sts16": (254, 249, 230, 244, 209),
    "stsb": (1379,),
    "sickr": (4927,),
}
PEER_SAMPLES = 20


def main(
    samples: int = 1000,
    runs: int = 5,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print seconds for all conventions of Spearman and Pearson, and the ratio to the loop."""
    rng = np.random.default_rng(0)
    tasks = []
    for name, sizes in SUBSETS.items():
        total = sum(sizes)
        labels = [f"{name}-{index}" for index, size in enumerate(sizes) for _ in range(size)]
        gold = rng.integers(0, 11, total) / 2
        tasks.append((Pairs(name, ["a"] * total, ["b"] * total, gold, labels), gold + rng.normal(size=total)))
    seconds, peer = [], []
    for _ in range(runs):
        start = time.perf_counter()
        for pairs, similarities in tasks:
            score_task(pairs, similarities[None], bootstrap_samples=samples, seed=0)
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        for pairs, similarities in tasks:
            for _ in range(PEER_SAMPLES):
                drawn = rng.integers(len(pairs), size=len(pairs))
                spearmanr(pairs.scores[drawn], similarities[drawn])
        peer.append((time.perf_counter() - start) * samples / PEER_SAMPLES)
    result = {
        "benchmark": "bootstrap: Spearman and Pearson, three conventions, seven tasks",
        "pairs": sum(len(pairs) for pairs, _ in tasks),
        "samples": samples,
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "scipy_loop_seconds_spearman_all_only": peer,
        "times_faster_than_scipy_loop": statistics.median(b / a for a, b in zip(seconds, peer, strict=True)),
        "versions": library_versions(),
    }
    print(json.dumps(result, indent=1))
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
