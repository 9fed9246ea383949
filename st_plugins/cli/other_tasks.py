"""Options of the tasks other than STS: retrieval, pair classification, classification and clustering."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st_plugins.cli.measuring import Scored
from st_plugins.cli.options import refuse_unused
from st_plugins.cli.running import AddressOption, EngineName, Running

if TYPE_CHECKING:
    from st_plugins.evaluation.measuring.task_evaluator import TaskEvaluator

_DOCUMENTS = 8
_KINDS = "--retrieval, --pair-classification, --classification and --clustering"


@dataclass(frozen=True)
class OtherTasks:
    """Data of the tasks other than STS that a model is measured on; several may be combined."""

    retrieval: Annotated[
        Path | None, typer.Option(help="Folder with corpus, queries and qrels as BEIR has them.", show_default=False)
    ] = None
    corpus_embeddings: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the corpus' embeddings by this model, as 'encode' writes it: it is not encoded again.",
            show_default=False,
        ),
    ] = None
    engine: Annotated[
        EngineName, typer.Option(help="What searches --corpus-embeddings: this process, or a Ray cluster.")
    ] = EngineName.local
    address: AddressOption = None
    workers: Annotated[
        int | None, typer.Option(help="Searches at a time, with --engine ray (default: one a core).", min=1)
    ] = None
    pair_classification: Annotated[
        Path | None, typer.Option(help="Pairs whose --score has two values, 0 and 1.", show_default=False)
    ] = None
    precision: Annotated[
        float, typer.Option(help="Precision for which --pair-classification finds the threshold.")
    ] = 0.9
    classification: Annotated[
        Path | None, typer.Option(help="Labeled texts to train a classifier on.", show_default=False)
    ] = None
    classification_test: Annotated[
        Path | None, typer.Option(help="Labeled texts to test the classifier on.", show_default=False)
    ] = None
    clustering: Annotated[Path | None, typer.Option(help="Labeled texts to cluster.", show_default=False)] = None
    text: Annotated[str, typer.Option(help="Column of the text in labeled texts.")] = "text"
    label: Annotated[str, typer.Option(help="Column of the label in labeled texts.")] = "label"

    @property
    def inputs(self) -> tuple[Path | None, ...]:
        """What is read."""
        files = (self.pair_classification, self.classification, self.classification_test, self.clustering)
        return (self.retrieval, self.corpus_embeddings, *files)

    @property
    def given(self) -> bool:
        """Whether there is anything to measure on."""
        return any(path is not None for path in self.inputs)

    @property
    def _running(self) -> Running:
        return Running(self.engine, self.address, self.workers)

    def refuse_unused(self, context: typer.Context) -> None:
        """Refuse options that go with tasks other than those given."""
        if self.corpus_embeddings is None:
            refuse_unused(context, "without --corpus-embeddings", "engine", "address", "workers")
        elif self.retrieval is None:
            refuse_unused(context, "without --retrieval", "corpus_embeddings")
        if self.engine is EngineName.local:
            refuse_unused(context, "with --engine local, which searches in this process", "workers")
        self._running.refuse_unused(context)
        if not self.given:
            refuse_unused(context, f"without one of {_KINDS}", "text", "label", "precision")
            return
        if (self.classification is None) != (self.classification_test is None):
            raise ValueError("--classification and --classification-test go together; give both")
        suite = ("tasks", "data", "pairs", "texts", "column", "floor")
        refuse_unused(context, f"beside {_KINDS}, which are measured in a run without STS", *suite)
        if self.pair_classification is None:
            refuse_unused(context, "without --pair-classification", "first", "second", "score", "precision")
        if self.retrieval is None:
            refuse_unused(context, "without --retrieval", "split")
        if self.classification is None and self.clustering is None:
            refuse_unused(context, "without --classification or --clustering", "text", "label")
        if self.retrieval is None and self.pair_classification is None:
            refuse_unused(context, "on classification and clustering", "similarity")

    def evaluators(self, scored: Scored, similarity: str | None, **settings: Any) -> list[TaskEvaluator]:
        """Read the data and build an evaluator for each task."""
        from st_plugins import evaluation
        from st_plugins.data.labeled_texts import read_labeled_texts
        from st_plugins.data.own import read_pairs
        from st_plugins.data.retrieval import read_retrieval

        found: list[TaskEvaluator] = []
        if self.retrieval is not None:
            # Only a few of the documents are read, to see whether the embeddings are those of their texts.
            few = None if self.corpus_embeddings is None else _DOCUMENTS
            documents = read_retrieval(self.retrieval, scored.split, documents=few)
            stored: dict[str, Any] = {"corpus_embeddings": self.corpus_embeddings, "engine": self._running.made()}
            found.append(evaluation.RetrievalEvaluator(documents, similarity=similarity, **stored, **settings))
        if self.pair_classification is not None:
            pairs = read_pairs(self.pair_classification, scored.first, scored.second, scored.score)
            found.append(
                evaluation.PairClassificationEvaluator(
                    pairs, similarity=similarity, precision=self.precision, **settings
                )
            )
        if self.classification is not None and self.classification_test is not None:
            files = (self.classification, self.classification_test)
            train, test = (read_labeled_texts(file, self.text, self.label) for file in files)
            found.append(evaluation.ClassificationEvaluator(train, test, **settings))
        if self.clustering is not None:
            texts = read_labeled_texts(self.clustering, self.text, self.label)
            found.append(evaluation.ClusteringEvaluator(texts, **settings))
        names = [evaluator.task for evaluator in found]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two tasks have the name {twice[0]!r}; rename a file, or measure them in two runs")
        return found
