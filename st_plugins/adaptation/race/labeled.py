"""Labeled pairs as the judge: what an entry gains on them, by a paired bootstrap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_plugins.compression.choice.judge import check_graded
from st_plugins.core.rows import refuse_non_finite
from st_plugins.data.pairs import Pairs
from st_plugins.evaluation.measuring.scoring import pair_similarities
from st_plugins.evaluation.result import Difference
from st_plugins.evaluation.statistics import bootstrap, difference, resample_counts, spearman

Array = NDArray[np.floating]

_SAMPLES = 2000
_LEAST = 50


def check_pairs(pairs: Pairs | None) -> None:
    """Refuse pairs that cannot judge."""
    if pairs is None:
        return
    check_graded(pairs)
    if len({(one, two) for one, two in zip(pairs.first, pairs.second, strict=True) if one != two}) < 2:
        raise ValueError(f"pairs {pairs.name!r}: all are of the same two texts, or of equal ones; leave them out")
    if len(pairs) < _LEAST:
        raise ValueError(
            f"pairs {pairs.name!r}: {len(pairs)} pairs tell no model from another; give {_LEAST} at least, better "
            "some hundreds, or leave them out"
        )


class LabeledJudge:
    """Spearman's correlation with the scores of pairs, beside that of the given model."""

    def __init__(self, given: SentenceTransformer, pairs: Pairs, prompt: str | None, batch_size: int) -> None:
        self.pairs, self.prompt, self.batch_size = pairs, prompt, batch_size
        self.before = self._similarities(given)
        self.value = spearman(pairs.scores, self.before)
        if np.isnan(self.value):
            raise ValueError(
                f"pairs {pairs.name!r}: the model finds all of them equally similar, so that nothing can be compared; "
                "leave them out"
            )
        self.counts = resample_counts(len(pairs), _SAMPLES, pairs.name, 0)

    def gain(self, model: SentenceTransformer, entries: int) -> Difference:
        """Return what a model gains; the interval holds for all of so many entries together (Bonferroni)."""
        systems = np.stack([self._similarities(model), self.before])
        value = spearman(self.pairs.scores, systems[0]) - self.value
        samples = bootstrap(self.pairs.scores, systems, self.counts)[0]
        return difference(value, samples[0] - samples[1], 1 - 0.05 / max(entries, 1))

    def _similarities(self, model: SentenceTransformer) -> NDArray[np.float64]:
        texts = list(dict.fromkeys([*self.pairs.first, *self.pairs.second]))
        place = {text: row for row, text in enumerate(texts)}
        vectors = model.encode(texts, batch_size=self.batch_size, prompt=self.prompt, show_progress_bar=False)
        refuse_non_finite(vectors, 0)
        first, second = (np.array([place[text] for text in side]) for side in (self.pairs.first, self.pairs.second))
        return pair_similarities(np.asarray(vectors, dtype=np.float32), first, second, model.similarity_fn_name)
