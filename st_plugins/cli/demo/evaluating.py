"""The first step: how well does the model search, and how well would random vectors?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_plugins.cli.demo.documentation import Documentation
from st_plugins.cli.demo.found import Found
from st_plugins.cli.demo.resampling import difference_of, percents
from st_plugins.evaluation.measuring.floor import bag_of_random_vectors, token_ids, whiten_bag
from st_plugins.evaluation.report import write_reports
from st_plugins.evaluation.retrieval import RetrievalEvaluator, score_retrieval
from st_plugins.evaluation.task_result import MeasuredTask

FOLDER = "evaluation"


@dataclass(frozen=True, kw_only=True)
class Evaluated(Found):
    """The model's search."""

    task: MeasuredTask


def evaluate(model: SentenceTransformer, name: str, texts: Documentation, folder: Path, seed: int) -> Evaluated:
    """Measure the search and its floor; ``folder`` gets the report with both."""
    result = RetrievalEvaluator(texts.search, seed=seed).evaluate(model, name)
    task = dataclasses.replace(result.tasks[0], title="Python's documentation")
    below = floor(model, texts, seed)
    result.tasks = [task, below]
    write_reports(result, folder / FOLDER)
    above = difference_of(task.per_unit[task.main], below.per_unit[task.main], task.name, seed)
    sentence = (
        f"Given the first line of a docstring, the model finds the rest of it with nDCG@10 {percents(task.score)}; "
        f"random token vectors, whitened, have {percents(below.score)}, and the difference is "
        f"{percents(above, sign=True)}."
    )
    short = f"search: nDCG@10 {100 * task.score.value:.1f}, random token vectors {100 * below.score.value:.1f}"
    pages = {"Evaluation beside its floor": f"{FOLDER}/report.html"}
    return Evaluated(sentence=sentence, short=short, pages=pages, task=task)


def floor(model: SentenceTransformer, texts: Documentation, seed: int) -> MeasuredTask:
    """Return what random vectors of the model's tokens reach, whitened on the unlabelled sentences."""
    search, width = texts.search, model.get_embedding_dimension() or 1
    bags = [
        bag_of_random_vectors(token_ids(model, list(some)), width, seed)
        for some in (search.queries.values(), search.corpus.values(), texts.sentences)
    ]
    queries, documents = (whiten_bag(bag, bags[2]) for bag in bags[:2])
    task = score_retrieval(queries, documents, search, seed=seed)
    return dataclasses.replace(task, name="floor", title="Floor: random token vectors, whitened")
