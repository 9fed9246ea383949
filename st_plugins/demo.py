"""The demo: evaluate and whiten a small encoder in a miniature world, on a fresh and offline machine."""

from __future__ import annotations

from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_plugins.adapt import first_last_avg, whiten
from st_plugins.data import miniature
from st_plugins.evaluators import STSSuiteEvaluator, SuiteResult, write_reports

__all__ = ["BANNER", "run_demo"]

BANNER = (
    "This is a miniature world: sentences from a small hand-written grammar, and a tiny encoder trained on them. "
    "It shows that the machinery works; it proves nothing about English."
)


def run_demo(output: str | Path = "st-plugins-demo", *, seed: int = 0) -> dict[str, SuiteResult]:
    """Pretrain (or load from the cache) the miniature encoder, evaluate several pipelines, write their reports.

    Args:
        output: Folder for one report folder per pipeline.
        seed: Seed of the world, the encoder and the resamples.

    Returns:
        The evaluations by name of the pipeline, in the order of the table.
    """
    output = Path(output)
    encoder = miniature.pretrained_encoder(seed=seed)
    texts = miniature.corpus(seed=seed)
    first_last = first_last_avg(encoder)
    dimension = encoder.get_embedding_dimension() or 0

    pipelines: dict[str, SentenceTransformer] = {"mean pooling": encoder, "first-last-avg": first_last}
    for size in (None, dimension // 2, dimension // 4):
        label = f"mean pooling + whitening {size or ''}".rstrip()
        pipelines[label] = whiten(encoder, texts, size, source="miniature corpus")
    pipelines["first-last-avg + whitening"] = whiten(first_last, texts, None, source="miniature corpus")

    evaluator = STSSuiteEvaluator(tasks=miniature.sts_tasks(seed=seed), floor_texts=texts, seed=seed)
    results = {}
    for name, model in pipelines.items():
        result = evaluator.evaluate(model, model_name=f"miniature encoder, {name}")
        result.settings["banner"] = BANNER
        write_reports(result, output / name.replace(" + ", "-").replace(" ", "-"))
        results[name] = result
    return results
