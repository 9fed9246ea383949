"""Seven English tasks in one pass against seven runs of the host's ``EmbeddingSimilarityEvaluator``.

Same model, batch size and process, and the Spearman correlations of both are compared. By default the suite computes
the model's scores only, as the host does; ``--everything`` times it with what it adds: intervals, floor and geometry.
``--shape`` puts random weights of MiniLM-L6's or BERT-base's shape behind the model's tokenizer, for sizes that are
not at hand::

    python -m evaluation.benchmarks.suite MODEL --data DATA
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertModel

from evaluation.benchmarks.harness import Data, Output, report, take_turns
from evaluation.benchmarks.random_models import bert_config
from st_plugins import load
from st_plugins.data import load_tasks
from st_plugins.evaluation import STSSuiteEvaluator

# Hidden size, layers, heads.
SHAPES = {"minilm": (384, 6, 12), "base": (768, 12, 12)}


def main(
    model: Annotated[str, typer.Argument(help="Model folder.")],
    data: Data,
    batch_size: int = 32,
    runs: int = 3,
    everything: bool = False,
    shape: Annotated[
        Literal["", "minilm", "base"], typer.Option(help="'', 'minilm' (6 layers, 384) or 'base' (12 layers, 768).")
    ] = "",
    output: Output = None,
) -> None:
    """Print the ratio of times and the largest difference of the Spearman correlations."""
    encoder = reshaped(model, shape) if shape else load(model)
    tasks = load_tasks("en", data)
    extras: Any = {} if everything else {"bootstrap_samples": 0, "floor": False, "geometry": False}
    suite = STSSuiteEvaluator(tasks, batch_size=batch_size, show_progress_bar=False, **extras)
    stock = [
        EmbeddingSimilarityEvaluator(
            task.first, task.second, task.scores.tolist(), batch_size=batch_size, name=task.name
        )
        for task in tasks
    ]

    def host() -> dict[str, float]:
        return {key: value for evaluator in stock for key, value in evaluator(encoder).items()}

    # To warm up, instead of a whole turn, which takes minutes.
    encoder.encode(tasks[0].first[:200])
    turns = take_turns({"ours": lambda: suite(encoder), "stock": host}, runs, warm_up=0)
    ours, theirs = turns.results["ours"], turns.results["stock"]
    scores = [f"{task.name}_spearman_cosine" for task in tasks]
    figures = {
        "model": Path(model).name + (f", random weights of shape {shape}" if shape else ""),
        "batch_size": batch_size,
        "runs": runs,
        "pairs": sum(map(len, tasks)),
        "distinct_sentences": len(suite.sentences),
        "suite_seconds": turns.seconds["ours"],
        "stock_seconds": turns.seconds["stock"],
        "times_faster": turns.ratio("stock", "ours"),
        "largest_spearman_difference": max(abs(ours[score] - theirs[score]) for score in scores),
    }
    report("suite" + (" with intervals, floor and geometry" if everything else ""), figures, output)


def reshaped(folder: str, shape: str) -> SentenceTransformer:
    """Return a model with the folder's tokenizer and a BERT of another shape, with random weights."""
    transformer = Transformer(folder)
    torch.manual_seed(0)
    transformer.model = BertModel(bert_config(*SHAPES[shape], vocab_size=len(transformer.tokenizer)))
    return SentenceTransformer(modules=[transformer, Pooling(SHAPES[shape][0], pooling_mode="mean")]).eval()


if __name__ == "__main__":
    typer.run(main)
