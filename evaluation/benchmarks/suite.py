"""Seven English tasks in one pass against seven runs of the host's ``EmbeddingSimilarityEvaluator``.

Same model, batch size and process; the two take turns, and the median ratio counts. The Spearman correlations of both
are compared. By default the suite computes the model's scores only, as the host does; ``--everything`` times it with
what it adds: intervals, floor and geometry. ``--shape`` puts random weights of MiniLM-L6's or BERT-base's shape
behind the model's tokenizer, for sizes that are not at hand::

    python evaluation/benchmarks/suite.py MODEL --data DATA
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel

from st_plugins import load
from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text
from st_plugins.data import load_tasks
from st_plugins.evaluation import STSSuiteEvaluator

SHAPES = {"minilm": (6, 384), "base": (12, 768)}


def main(
    model: Annotated[str, typer.Argument(help="Model folder.")],
    data: Annotated[Path, typer.Option(envvar="ST_PLUGINS_DATA", help="Folder of the data.")],
    batch_size: int = 32,
    runs: int = 3,
    everything: bool = False,
    shape: Annotated[str, typer.Option(help="'', 'minilm' (6 layers, 384) or 'base' (12 layers, 768).")] = "",
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print the ratio of times and the largest difference of the Spearman correlations."""
    encoder = reshaped(model, *SHAPES[shape]) if shape else load(model)
    tasks = load_tasks("en", data)
    extras = {} if everything else {"bootstrap_samples": 0, "floor": False, "geometry": False}
    suite = STSSuiteEvaluator(tasks, batch_size=batch_size, show_progress_bar=False, **extras)  # type: ignore[arg-type]
    stock = [
        EmbeddingSimilarityEvaluator(
            task.first, task.second, task.scores.tolist(), batch_size=batch_size, name=task.name
        )
        for task in tasks
    ]
    encoder.encode(tasks[0].first[:200])
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
        "model": Path(model).name + (f", random weights of shape {shape}" if shape else ""),
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


def reshaped(folder: str, layers: int, hidden: int) -> SentenceTransformer:
    """Return a model with the folder's tokenizer and a BERT of another shape, with random weights."""
    transformer = Transformer(folder)
    heads = hidden // (32 if hidden == 384 else 64)
    torch.manual_seed(0)
    transformer.model = BertModel(
        BertConfig(
            vocab_size=len(transformer.tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
        )
    )
    return SentenceTransformer(modules=[transformer, Pooling(hidden, pooling_mode="mean")]).eval()


if __name__ == "__main__":
    typer.run(main)
