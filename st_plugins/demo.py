"""The demo: evaluate and whiten a small encoder in a miniature world, on a fresh and offline machine."""

from __future__ import annotations

from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_plugins import miniature
from st_plugins.evaluation.report import report_targets, write_reports
from st_plugins.evaluation.result import Difference, SuiteResult
from st_plugins.evaluation.suite import STSSuiteEvaluator
from st_plugins.recipes import first_last_avg, whiten

__all__ = ["BANNER", "conclusion", "run_demo"]

BANNER = (
    "This is a miniature world: sentences from a small hand-written grammar, and a tiny encoder trained on them. "
    "It shows that the machinery works; it proves nothing about English."
)


def run_demo(
    output: str | Path = "st-plugins-demo", *, seed: int = 0, overwrite: bool = False
) -> dict[str, SuiteResult]:
    """Pretrain (or load from the cache) the miniature encoder, evaluate several pipelines, write their reports.

    Args:
        output: Folder for one report folder per pipeline.
        seed: Seed of the world, the encoder and the resamples.
        overwrite: Whether reports of an earlier demo may be replaced.

    Returns:
        The evaluations by name of the pipeline, in the order of the table.
    """
    output = Path(output)
    report_targets(output / "mean-pooling", name="output", overwrite=overwrite)
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
        write_reports(result, output / name.replace(" + ", "-").replace(" ", "-"), overwrite=overwrite)
        results[name] = result
    return results


def conclusion(results: dict[str, SuiteResult]) -> str:
    """Say in words what the demo's table implies.

    Args:
        results: What :func:`run_demo` returned.

    Returns:
        Two sentences: where the raw encoder and the best pipeline stand against the floor.
    """
    raw = next(iter(results))
    best = max(results, key=lambda name: results[name].average["spearman_all"].value)
    sentences = []
    for name, whitened in ((raw, False), (best, True)):
        floor = results[name].floor
        if floor is not None:
            above = (floor.above_whitened if whitened else floor.above_raw)["avg"]
            kind = "random token vectors" + (" whitened on the same corpus" if whitened else "")
            sentences.append(f"'{name}' is {_words(above)} {kind} ({100 * above.value:+.1f} points).")
    return " ".join(sentences)


def _words(difference: Difference) -> str:
    words = {"better": "better than", "worse": "worse than", "undefined": "of undefined distance from"}
    return words.get(difference.verdict, "not separable from")
