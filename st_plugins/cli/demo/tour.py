"""The demo's steps one after another, what they print, and the folder that they leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from st_plugins.cli.demo.adapting import adapt
from st_plugins.cli.demo.compressing import compress, small_size
from st_plugins.cli.demo.documentation import read_documentation
from st_plugins.cli.demo.entailment import entailment
from st_plugins.cli.demo.evaluating import evaluate
from st_plugins.cli.demo.explaining import explain, shown
from st_plugins.cli.demo.found import Found, Step
from st_plugins.cli.demo.index import index
from st_plugins.cli.demo.matching import match
from st_plugins.cli.demo.next_steps import Command, next_steps
from st_plugins.cli.demo.packaged_encoder import NAME, packaged_encoder
from st_plugins.cli.demo.teaching import teach
from st_plugins.core.host import quiet
from st_plugins.core.writing.atomic import Target
from st_plugins.io import load_sentence_transformer
from st_plugins.report.terminal import say

AFound = TypeVar("AFound", bound=Found)

_MINIATURE = "Texts: made-up sentences of a miniature world, where it is known what follows from what"


@dataclass(frozen=True)
class Sizes:
    """How much is measured and trained: what takes about three minutes on two cores."""

    documents: int = 600
    queries: int = 300
    sentences: int = 1000
    adapt_seconds: float = 45.0
    pairs: int = 30000  # that are drawn
    training: float = 1.0  # of the steps that the last two take


STANDARD = Sizes()


@dataclass
class Tour:
    """The steps that were taken, of so many."""

    total: int
    steps: list[Step] = field(default_factory=list)

    def take_if_possible(self, title: str, texts: str, step: Callable[[], Found]) -> None:
        """Take a step that some models do not allow, with a CLS pooling or routes for instance; then say why."""

        def tried() -> Found:
            try:
                return step()
            except ValueError as error:
                return Found(sentence=f"Left out with this model: {error}.")

        self.take(title, texts, tried)

    def take(self, title: str, texts: str, step: Callable[[], AFound]) -> AFound:
        """Take a step, say what it found and how long it took, and return it."""
        say("")
        say(f"{len(self.steps) + 1}/{self.total} {title}", "bold")
        started = time.perf_counter()
        found = step()
        seconds = time.perf_counter() - started
        self.steps.append(Step(title, texts, found, seconds))
        say(f"{found.sentence} ({seconds:.0f} s)")
        return found


def take_tour(target: Target, output: Path, given: str | None, seed: int, sizes: Sizes = STANDARD) -> None:
    """Take all steps with the packaged encoder, or a given one; the folder appears when all is done."""
    with target.write() as folder, quiet():
        texts = read_documentation(sizes.documents, sizes.queries, sizes.sentences)
        texts.write(folder)
        name = given or NAME
        model = load_sentence_transformer(given or str(packaged_encoder(folder / NAME)))
        search = texts.search
        about = (
            f"{name} on {texts.name}: {len(search.corpus):,} documents, {len(search.queries):,} queries, and "
            f"{len(texts.sentences):,} sentences without labels; in the last two steps a miniature world of made-up "
            "sentences."
        )
        say(about)
        tour, real = Tour(6), f"Texts: {texts.name}"
        before = tour.take(
            "Evaluate: how well does the model search, and how well would chance?",
            real,
            lambda: evaluate(model, name, texts, folder, seed),
        )
        tour.take("Compress: an eighth of the bytes", real, lambda: compress(model, texts, before, folder, seed))
        tour.take_if_possible("Explain: which words are it?", real, lambda: explain(model, texts, before, folder))
        seconds = sizes.adapt_seconds
        tour.take_if_possible(
            "Adapt: is there a better model for these texts?",
            real,
            lambda: adapt(model, texts, before, folder, seconds, seed),
        )
        pairs = entailment(sizes.pairs, seed=seed)
        matched = tour.take(
            "Match: pairs judged without running a transformer (RE2)",
            _MINIATURE,
            lambda: match(model, pairs, folder, seed, sizes.training),
        )
        tour.take(
            "Teach: a bi-encoder learns from what reads both texts at once",
            _MINIATURE,
            lambda: teach(pairs, matched.matcher, seed, sizes.training),
        )
        query = search.queries[shown(texts, before)[0]]
        commands = next_steps(given or str(output / NAME), output, query, small_size(model))
        (folder / "index.html").write_text(index(about, tour.steps, commands), encoding="utf-8")
    _close(tour.steps, output, commands)


def _close(steps: Sequence[Step], output: Path, commands: Sequence[Command]) -> None:
    say("")
    say("In short", "bold")
    for step in steps:
        if step.found.short:
            say(f"- {step.found.short}")
    say("")
    say(f"All pages: {output / 'index.html'}", "bold")
    say("Next, your model and your texts; as they stand these run on what the demo left:")
    for command in commands:
        say(command.text)
