"""Explaining every result of a search, against encoding its texts with the host's ``encode``.

A query and ``--texts`` sentences of STS-B (test), all of which are explained; and ``--corpus`` sentences, of which the
ten found first are explained. The peer encodes the query and the same texts, in the same batches of 32. The largest
gap is how far the contributions of a query's words are from adding up to a score::

    python -m evaluation.benchmarks.explain_query MODEL --data DATA
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from sentence_transformers import SentenceTransformer

from evaluation.benchmarks.harness import Data, Output, Threads, Turns, report, take_turns
from st_plugins.data import load_task
from st_plugins.explain import QueryExplanation, explain_query

TOP = 10


def main(
    model: Annotated[str, typer.Argument(help="Model folder.")],
    data: Data,
    texts: Annotated[int, typer.Option(help="Texts of which all are explained.")] = 100,
    corpus: Annotated[int, typer.Option(help="Texts of which ten are explained.")] = 1000,
    runs: int = 15,
    threads: Threads = 1,
    output: Output = None,
) -> None:
    """Print how many times as long as encoding the explanation takes."""
    torch.set_num_threads(threads)
    encoder = SentenceTransformer(model, device="cpu")
    pairs = load_task("stsb", data)
    query, *sentences = dict.fromkeys([*pairs.first, *pairs.second])
    cases = {"every text": (sentences[:texts], texts), "the first ten": (sentences[:corpus], TOP)}
    figures = {name: compare(encoder, query, found, top_k, runs) for name, (found, top_k) in cases.items()}
    report("explain_query", {"model": Path(model).name, "threads": threads, **figures}, output)


def compare(encoder: SentenceTransformer, query: str, texts: list[str], top_k: int, runs: int) -> dict[str, object]:
    """Time encoding and explaining in turn."""
    turns: Turns = take_turns(
        {
            "encode": lambda: encoder.encode([query, *texts]),
            "explain": lambda: explain_query(encoder, query, texts, top_k),
        },
        runs,
    )
    found: QueryExplanation = turns.results["explain"]
    gaps = [abs(float(hit.contributions.sum()) - hit.score) for hit in found.hits if hit.contributions is not None]
    return {
        "texts": len(texts),
        "explained": len(found.hits),
        "seconds": turns.seconds,
        "median_seconds": turns.medians(),
        "times_as_long_as_encoding": turns.ratio("explain", "encode"),
        "largest_of_the_turns": max(turns.ratios("explain", "encode")),
        "largest_gap": max(gaps),
    }


if __name__ == "__main__":
    typer.run(main)
