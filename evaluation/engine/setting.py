"""A task and a seed of a study of text pairs: its pairs, and what the rows make of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

from evaluation.engine.pairs import Answer, Examples, read_examples
from evaluation.engine.study import Record


class Setting(ABC):
    """What the rows of a task and a seed share; the seed is that of weights, order and dropout."""

    def __init__(self, study: Any, name: str, seed: int) -> None:
        self.study, self.name, self.task, self.seed = study, name, study.tasks[name], seed
        self.place = study.place

    @cached_property
    @abstractmethod
    def pairs(self) -> tuple[Examples, Examples]:
        """The training pairs and the dev pairs, before they are cut."""

    def cut(self, examples: Examples) -> Examples:
        """Return what is read of pairs."""
        return examples

    @cached_property
    def dev(self) -> Examples:
        """The dev pairs."""
        return self.cut(self.pairs[1])

    @cached_property
    def tests(self) -> dict[str, Examples]:
        """The reported sets."""
        files = self.task.tests.items()
        return {name: self.cut(read_examples(self.task, [file], self.place.data)) for name, file in files}

    @abstractmethod
    def measure(self, row: Any) -> Record:
        """Train and score a row."""

    @abstractmethod
    def score(self, name: str, examples: Examples, answer: Answer) -> Record:
        """Score answers on a set."""

    def scores(self, answer: Answer, dev_only: bool) -> Record:
        """Score answers on dev, and on the reported sets, at which a search for settings must not look."""
        found = {"dev": self.score("dev", self.dev, answer)}
        # Rows are compared on the reported sets only, and resamples are most of a file.
        del found["dev"]["resamples"]
        if not (self.place.dev_only or dev_only):
            found["tests"] = {name: self.score(name, examples, answer) for name, examples in self.tests.items()}
        return found
