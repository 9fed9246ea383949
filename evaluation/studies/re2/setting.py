"""A task and a seed of the RE2 study: its pairs, and what the rows make of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from evaluation.engine import setting
from evaluation.engine.pairs import Answer, Examples, training_and_dev
from evaluation.engine.scores import ranking_score, score
from evaluation.engine.study import Record
from evaluation.studies.re2.training import choose_cosine, train_matcher, train_siamese
from st_plugins.matching import RE2Schedule

if TYPE_CHECKING:
    from evaluation.studies.re2.study import Row


_DRY_PAIRS = 64


class Setting(setting.Setting):
    """A task and a seed."""

    def schedule(self, row: Row) -> RE2Schedule:
        """Return a row's schedule; in a dry run an epoch of small batches."""
        whole: RE2Schedule = self.study.schedule_of(row, self.name)
        small = {"epochs": 1, "batch_size": min(whole.batch_size, _DRY_PAIRS)}
        return replace(whole, **small) if self.place.dry_run else whole

    @cached_property
    def pairs(self) -> tuple[Examples, Examples]:
        """The training pairs and the dev pairs."""
        # The largest batch of all rows, so that all are refused or none, and have the same pairs.
        rows = (row for row in self.study.rows if self.name in self.study.tasks_of(row))
        largest = max(self.study.schedule_of(row, self.name).batch_size for row in rows)
        limit = 0 if self.task.ranked else self.study.eval_limit  # a ranking needs all pairs of a text
        return training_and_dev(self.task, self.place.data, largest, limit)

    @cached_property
    def training(self) -> Examples:
        """The training pairs."""
        return self.pairs[0].first_ones(2 * _DRY_PAIRS) if self.place.dry_run else self.pairs[0]

    def cut(self, examples: Examples) -> Examples:
        """Return what is read of pairs: in a dry run a few, unless a ranking needs all of a text."""
        return examples.first_ones(_DRY_PAIRS) if self.place.dry_run and not self.task.ranked else examples

    def measure(self, row: Row) -> Record:
        """Train and score a row."""
        begin = self.place.clock()
        ways = {"re2": train_matcher, "siamese": train_siamese, "cosine": choose_cosine}
        trained = ways[row.kind](row, self)
        found: Record = {
            "schedule": self.study.schedule_of(row, self.name).to_dict(),
            "pairs": len(self.training),
            "steps": trained.steps,
            "step": trained.step,
            "seconds_training": self.place.clock() - begin,
            "parameters": trained.parameters,
        }
        if row.kind == "re2":
            found["config"] = self.study.config_of(row, self.name).to_dict()
        if trained.coverage is not None:
            found["coverage"] = trained.coverage
        return {**found, **self.scores(trained.answer, row.ablation)}

    def score(self, name: str, examples: Examples, answer: Answer) -> Record:
        """Score answers on a set."""
        found, gold = answer(examples), np.array(examples.gold)
        if self.task.ranked:
            return ranking_score(name, examples.first, gold, found)
        return score(name, gold, found.argmax(axis=1).astype(np.float64), self.task.positive_class)
