"""The word embeddings of an encoder as token vectors, as they are or changed, and what their cosine tells."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.engine.pairs import Answer, Array, Examples
from evaluation.engine.pipelines import Pipeline, build_model
from st_plugins.matching import WordVectors

FORMS = ("raw", "whitened")
# Thresholds are looked for among so many quantiles of the dev cosines.
_QUANTILES = 100
_BATCH = 512


def word_embeddings(folder: str, form: str, dimensions: int, texts: list[str], models: Path) -> WordVectors:
    """Return the table of an encoder's word embeddings, the first layer that its own tokenizer looks tokens up in."""
    if form == "whitened":
        return WordVectors.from_encoder(models / folder, texts, dimensions or None)
    return WordVectors.from_static(build_model(Pipeline(folder, folder, pooling="static"), models, seed=0))


def cosine_answer(source: WordVectors, chosen_on: Examples, classes: int, ranked: bool, max_length: int) -> Answer:
    """Judge by the cosine of the texts' mean vectors alone; its thresholds are those that are best on some pairs."""

    def cosine(examples: Examples) -> Array:
        first, second = (_means(source, texts, max_length) for texts in (examples.first, examples.second))
        return np.asarray((first * second).sum(axis=1), dtype=np.float64)

    if ranked:
        return cosine
    gold = np.array(chosen_on.gold, dtype=np.int64)
    order, borders = thresholds(cosine(chosen_on), gold, classes)

    def answer(examples: Examples) -> Array:
        found = order[np.searchsorted(borders, cosine(examples), side="right")]
        one_hot: Array = np.eye(classes)[found]
        return one_hot

    return answer


def thresholds(cosines: Array, gold: Any, classes: int) -> tuple[Any, Array]:
    """Return the classes by rising mean cosine, and the borders between them that judge most pairs right."""
    order = np.argsort([cosines[gold == label].mean() for label in range(classes)])
    candidates = np.quantile(cosines, np.linspace(0, 1, _QUANTILES + 1)[1:-1])
    # How many of a class are below each candidate; the rest of the work is sums of these.
    below = np.stack([(cosines[gold == label, None] < candidates).sum(axis=0) for label in order])
    totals = np.array([(gold == label).sum() for label in order])

    def right(borders: tuple[int, ...]) -> int:
        edges = [np.zeros(classes, dtype=np.int64), *(below[:, border] for border in borders), totals]
        return int(sum(edges[place + 1][place] - edges[place][place] for place in range(classes)))

    best = max(combinations(range(len(candidates)), classes - 1), key=right)
    return order, candidates[list(best)]


def _means(source: WordVectors, texts: list[str], max_length: int) -> Array:
    """Return the mean vector of each text, of length 1; of a text without tokens it is zero."""
    rows = []
    for begin in range(0, len(texts), _BATCH):
        with torch.no_grad():
            vectors, mask = source(source.tokenize(texts[begin : begin + _BATCH], max_length))
            total = (vectors * mask[..., None]).sum(dim=1).double()
        rows.append(torch.nn.functional.normalize(total, dim=1).numpy())
    return np.concatenate(rows)
