"""1,000 bootstrap samples over the seven English tasks (18,850 pairs), against ``scipy`` on each resample.

The pairs are made up (gold scores on the half-point scale, continuous similarities); only their number matters. The
peer resamples and calls ``scipy.stats.spearmanr`` in a loop; it runs 20 resamples and is scaled up::

    python -m evaluation.benchmarks.bootstrap
"""

from __future__ import annotations

import statistics

import numpy as np
import typer
from scipy.stats import spearmanr

from evaluation.benchmarks.harness import Output, report, take_turns
from st_plugins.data import Pairs
from st_plugins.evaluation.measuring.scoring import score_task

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


def main(samples: int = 1000, runs: int = 5, output: Output = None) -> None:
    """Print seconds for all conventions of Spearman and Pearson, and the ratio to the loop."""
    rng = np.random.default_rng(0)
    tasks = []
    for name, sizes in SUBSETS.items():
        total = sum(sizes)
        labels = [f"{name}-{index}" for index, size in enumerate(sizes) for _ in range(size)]
        # Gold scores have ties, as real ones have; similarities hardly any.
        gold = rng.integers(0, 11, total) / 2
        tasks.append((Pairs(name, ["a"] * total, ["b"] * total, gold, labels), gold + rng.normal(size=total)))

    def ours() -> None:
        for pairs, similarities in tasks:
            score_task(pairs, similarities[None], bootstrap_samples=samples, seed=0)

    def peer() -> None:
        for pairs, similarities in tasks:
            for _ in range(PEER_SAMPLES):
                drawn = rng.integers(len(pairs), size=len(pairs))
                spearmanr(pairs.scores[drawn], similarities[drawn])

    turns = take_turns({"ours": ours, "peer": peer}, runs, warm_up=0)
    # The loop does the same for every sample, so that fewer of them tell what all would take.
    turns.seconds["peer"] = [seconds * samples / PEER_SAMPLES for seconds in turns.seconds["peer"]]
    figures = {
        "pairs": sum(len(pairs) for pairs, _ in tasks),
        "samples": samples,
        "seconds": turns.seconds["ours"],
        "median_seconds": statistics.median(turns.seconds["ours"]),
        "scipy_loop_seconds_spearman_all_only": turns.seconds["peer"],
        "times_faster_than_scipy_loop": turns.ratio("peer", "ours"),
    }
    report("bootstrap: Spearman and Pearson, three conventions, seven tasks", figures, output)


if __name__ == "__main__":
    typer.run(main)
