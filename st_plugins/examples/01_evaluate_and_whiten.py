"""Does an encoder know more than which words two texts share? Evaluate and whiten one, and write the reports."""

from __future__ import annotations

from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_plugins import first_last_avg, miniature, whiten
from st_plugins.evaluation import Difference, STSSuiteEvaluator, SuiteResult, write_reports
from st_plugins.evaluation.report import report_targets

BANNER = (
    "This is a miniature world: sentences from a small hand-written grammar, and a tiny encoder trained on them. "
    "It shows that the machinery works; it proves nothing about English."
)


def run(output: str | Path = "st-plugins-demo", *, seed: int = 0, overwrite: bool = False) -> dict[str, SuiteResult]:
    """Return the evaluations by name of the pipeline; ``output`` gets a folder with the report of each."""
    output = Path(output)
    report_targets(output / "mean-pooling", name="output", overwrite=overwrite)  # before anything is trained
    encoder = miniature.pretrained_encoder(seed=seed)  # or SentenceTransformer("path/to/your/model")
    texts = miniature.corpus(seed=seed)  # your unlabeled texts
    dimension = encoder.get_embedding_dimension() or 0

    first_last = first_last_avg(encoder)
    pipelines: dict[str, SentenceTransformer] = {"mean pooling": encoder, "first-last-avg": first_last}
    for size in (None, dimension // 2, dimension // 4):
        name = f"mean pooling + whitening {size or ''}".rstrip()
        pipelines[name] = whiten(encoder, texts, size, source="miniature corpus")
    pipelines["first-last-avg + whitening"] = whiten(first_last, texts, source="miniature corpus")

    evaluator = STSSuiteEvaluator(tasks=miniature.sts_tasks(seed=seed), floor_texts=texts, seed=seed)
    results = {}
    for name, model in pipelines.items():
        result = evaluator.evaluate(model, model_name=f"miniature encoder, {name}")
        result.settings["banner"] = BANNER
        write_reports(result, output / name.replace(" + ", "-").replace(" ", "-"), overwrite=overwrite)
        results[name] = result
    return results


def conclusion(results: dict[str, SuiteResult]) -> str:
    """Say where the raw encoder and the best pipeline stand against random token vectors."""
    best = max(results, key=lambda name: results[name].average["spearman_all"].value)
    sentences = []
    for name, whitened in ((next(iter(results)), False), (best, True)):
        floor = results[name].floor
        if floor is not None:
            above = (floor.above_whitened if whitened else floor.above_raw)["avg"]
            kind = "random token vectors" + (" whitened on the same corpus" if whitened else "")
            sentences.append(f"'{name}' is {_words(above)} {kind} ({100 * above.value:+.1f} points).")
    return " ".join(sentences)


def _words(difference: Difference) -> str:
    words = {"better": "better than", "worse": "worse than", "undefined": "of undefined distance from"}
    return words.get(difference.verdict, "not separable from")


if __name__ == "__main__":
    print(conclusion(run()))
