"""What `st_plugins.scale.plan` predicts beside what `encode` then takes, and its curve to 10^9 texts.

One measurement of each engine, then runs of so many workers; the prediction of all of them comes from that one
measurement. Machines of the curve are like this one, with a worker a core. The machine must do nothing else
meanwhile::

    python -m evaluation.benchmarks.scale_plan all-MiniLM-L6-v2 --output scale_plan.json --figure scale_plan.svg
"""

from __future__ import annotations

import math
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import typer
from sentence_transformers import SentenceTransformer

from evaluation.benchmarks import harness
from evaluation.engine.tables import svg
from st_plugins.core.writing.atomic import write_text
from st_plugins.miniature import corpus
from st_plugins.scale import Local, Plan, Ray, Texts, encode, plan
from st_plugins.scale.engines import ray_library

_WORKERS = (1, 4, 16, 64)
_COUNTS = np.geomspace(1e5, 1e9, 33).round().astype(int).tolist()


def main(
    model: Annotated[str, typer.Argument(help="A model folder.")],
    texts: Annotated[int, typer.Option(help="Texts that are encoded in each run.")] = 20_000,
    block_size: Annotated[int, typer.Option(help="Texts of a block.")] = 1000,
    seconds: Annotated[float, typer.Option(help="How long a plan measures.")] = 30,
    local: Annotated[list[int], typer.Option(help="Workers of runs on this machine.")] = [1, 2, 4],  # noqa: B006 - typer's
    ray: Annotated[list[int], typer.Option(help="Workers of runs by Ray, up to the cores.")] = [1, 2],  # noqa: B006 - typer's
    rays: Annotated[bool, typer.Option("--ray-too/--no-ray-too", help="Whether Ray runs as well.")] = True,
    output: harness.Output = None,
    figure: Annotated[Path | None, typer.Option(help="SVG file of the curve.")] = None,
) -> None:
    """Print predicted and measured seconds."""
    loaded = SentenceTransformer(model, device="cpu")
    figures: dict[str, Any] = {"texts": texts, "block_size": block_size, "dimension": loaded.get_embedding_dimension()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "texts.txt")
        path.write_text("\n".join(corpus(texts)) + "\n", encoding="utf-8")
        settings: dict[str, Any] = {"sample": path, "block_size": block_size, "seconds": seconds}
        found, figures["local"] = _checked(loaded, "local", local, texts, settings)
        if rays:
            found, figures["ray"] = _checked(loaded, "ray", ray, texts, settings)
    curves = {workers: _curve(found, workers) for workers in _WORKERS}
    figures["curve"] = {
        f"{workers} workers": {f"{count:.0e}": seconds for count, seconds in points if math.log10(count) % 1 == 0}
        for workers, points in curves.items()
    }
    if figure is not None:
        write_text(figure, _drawn(curves, Path(model).name, found))
    harness.report("plan of a large run", figures, output)


def _checked(
    model: SentenceTransformer, name: str, counts: list[int], texts: int, settings: dict[str, Any]
) -> tuple[Plan, dict[str, Any]]:
    """Make a plan, run what it is about with several numbers of workers, and return both."""
    # "local" starts a cluster; without it Ray would join any that runs on this machine.
    engine = Local if name == "local" else partial(Ray, "local")
    took, found = harness.timed(partial(plan, model, texts, engine=engine(workers=max(counts)), **settings))
    figures: dict[str, Any] = {"plan_seconds": took, "rates": found.rates}
    path: Path = settings["sample"]
    for workers in counts:
        if name == "ray":  # a run of its own starts Ray, which is part of the start
            ray_library().shutdown()
        given = Texts(path, block_size=settings["block_size"])
        target = path.with_name(f"{name}-{workers}")
        measured, _ = harness.timed(partial(encode, model, given, target, engine=engine(workers=workers)))
        told = found.at(workers=workers)
        figures[f"{workers} workers"] = {
            "predicted_seconds": told.encode_seconds,
            "measured_seconds": measured,
            "predicted_to_measured": told.encode_seconds / measured,
            "stages": told.seconds,
        }
    return found, figures


def _curve(found: Plan, workers: int) -> list[tuple[int, float]]:
    """Return the seconds of a cluster with a worker a core, with blocks as they are by default."""
    cores = os.cpu_count() or 1
    cluster = found.at(engine="ray", machines=math.ceil(workers / cores), workers=workers, block_size=16384)
    return cluster.curve(_COUNTS)


def _drawn(curves: dict[int, list[tuple[int, float]]], name: str, found: Plan) -> str:
    drawing, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for workers, points in curves.items():
        counts, times = zip(*points, strict=True)
        axes.plot(counts, times, label=f"{workers} worker{'s' if workers > 1 else ''}")
    scan = [count * found.rates["scan"] for count in _COUNTS]
    axes.plot(_COUNTS, scan, color="gray", linestyle=":", label="first reading, by one process")
    for label, seconds in (("1 minute", 60), ("1 hour", 3600), ("1 day", 86_400), ("30 days", 2_592_000)):
        axes.axhline(seconds, color="lightgray", linewidth=0.8, zorder=0)
        axes.annotate(label, (_COUNTS[-1], seconds), fontsize=8, color="gray", va="bottom", ha="right")
    axes.set(xscale="log", yscale="log", xlabel="texts", ylabel="seconds")
    axes.set_title(f"{name}, {found.rates['tokens']:.0f} tokens a text, a core a worker: predicted")
    axes.legend(fontsize=8)
    return svg(drawing, "scale_plan")


if __name__ == "__main__":
    typer.run(main)
