"""Seven English tasks in one pass against seven runs of the host's ``EmbeddingSimilarityEvaluator``.

Same model, batch size and process; the two take turns, and the median ratio counts. The Spearman correlations of both
are compared. By default the suite computes the model's scores only, as the host does; ``--everything`` times it with
what it adds: intervals, floor and geometry::

    python evaluation/benchmarks/suite.py MODEL --data DATA
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import typer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from st_plugins import load
from st_plugins.atomic import write_text
from st_plugins.data import load_tasks
from st_plugins.evaluators import STSSuiteEvaluator
from st_plugins.evaluators.describe import library_versions


def main(
    model: Annotated[str, typer.Argument(help="Model folder.")],
    data: Annotated[Path, typer.Option(envvar="ST_PLUGINS_DATA", help="Folder of the data.")],
    batch_size: int = 32,
    runs: int = 3,
    everything: bool = False,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print the ratio of times and the largest difference of the Spearman correlations."""
    encoder = load(model)
    tasks = load_tasks("en", data)
    extras = {} if everything else {"bootstrap_samples": 0, "floor": False, "geometry": False}
    suite = STSSuiteEvaluator(tasks, batch_size=batch_size, show_progress_bar=False, **extras)  # type: ignore[arg-type]
    stock = [
        EmbeddingSimilarityEvaluator(
            task.sentences1, task.sentences2, task.scores.tolist(), batch_size=batch_size, name=task.name
        )
        for task in tasks
    ]
    encoder.encode(tasks[0].sentences1[:200])
    ours, theirs = [], []
    worst = 0.0
    for _ in range(runs):
        start = time.perf_counter()
        metrics = suite(encoder)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        host = {key: value for evaluator in stock for key, value in evaluator(encoder).items()}
        theirs.append(time.perf_counter() - start)
        worst = max(abs(metrics[f"{t.name}_spearman_cosine"] - host[f"{t.name}_spearman_cosine"]) for t in tasks)
    result = {
        "benchmark": "suite" + (" with intervals, floor and geometry" if everything else ""),
        "model": Path(model).name,
        "batch_size": batch_size,
        "runs": runs,
        "pairs": sum(map(len, tasks)),
        "distinct_sentences": len(suite.sentences),
        "suite_seconds": ours,
        "stock_seconds": theirs,
        "times_faster": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        "largest_spearman_difference": worst,
        "versions": library_versions(),
    }
    print(json.dumps(result, indent=1))
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
