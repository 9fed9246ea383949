"""What the commands that load and measure models have in common: groups of options, and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st_plugins.cli.options import DeviceOption, LengthOption, PromptNameOption, PromptOption, refuse_unused

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from st_plugins.evaluation.measuring.task_evaluator import TaskEvaluator
    from st_plugins.evaluation.result import SuiteResult
    from st_plugins.evaluation.suite import STSSuiteEvaluator
    from st_plugins.evaluation.task_result import TasksResult

FLOOR_TEXTS = 100_000
"""Of more texts the floor is whitened on the first."""


class Dtype(str, Enum):
    """Precision of the model's weights."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@dataclass(frozen=True)
class Scored:
    """The scored pairs that a model is measured on."""

    data: Annotated[
        Path | None, typer.Option(help="Folder with the STS data.", envvar="ST_PLUGINS_DATA", show_default=False)
    ] = None
    tasks: Annotated[str, typer.Option(help="'en', 'zh', or names such as 'sts12,stsb'.")] = "en"
    pairs: Annotated[
        Path | None,
        typer.Option(help="Your own scored pairs (TSV, CSV or JSONL) instead of tasks.", show_default=False),
    ] = None
    first: Annotated[str, typer.Option(help="Column of the first text in a file of pairs.")] = "sentence1"
    second: Annotated[str, typer.Option(help="Column of the second text in a file of pairs.")] = "sentence2"
    score: Annotated[str, typer.Option(help="Column of the gold score in a file of pairs.")] = "score"
    split: Annotated[str, typer.Option(help="Split of the tasks, or of the judgments of a retrieval task.")] = "test"

    def refuse_unused(self, context: typer.Context) -> None:
        """Refuse options that go with the pairs where tasks are measured, or the other way round."""
        if self.pairs is not None:
            refuse_unused(context, "beside --pairs", "tasks", "split", "data")
        else:
            refuse_unused(context, "without --pairs", "first", "second", "score")

    def evaluator(
        self, texts: Path | list[str] | None = None, column: str | None = None, **settings: Any
    ) -> STSSuiteEvaluator:
        """Build the evaluator, whose floor is whitened on the texts."""
        from st_plugins.data.own import read_pairs, read_texts
        from st_plugins.evaluation.suite import STSSuiteEvaluator

        own = None if self.pairs is None else [read_pairs(self.pairs, self.first, self.second, self.score)]
        return STSSuiteEvaluator(
            tasks=own or self.tasks,
            data=self.data,
            split=self.split,
            floor_texts=read_texts(texts, column) if isinstance(texts, Path) else texts,
            **settings,
        )


@dataclass(frozen=True)
class HeldOut(Scored):
    """The scored pairs that a model is measured on before and after, if there are any."""

    tasks: Annotated[str, typer.Option(help="'en', 'zh', or names such as 'sts12,stsb'.")] = "stsb"
    split: Annotated[str, typer.Option(help="Split of the tasks.")] = "dev"

    @property
    def given(self) -> bool:
        """Whether there is anything to measure on."""
        return self.pairs is not None or self.data is not None

    def refuse_unused(self, context: typer.Context) -> None:
        """Refuse options of the measuring that go with other options than those given."""
        if self.given:
            super().refuse_unused(context)
        else:
            # Prompts are not among them: the texts to whiten on are encoded with them too.
            options = ("tasks", "split", "first", "second", "score", "seed")
            refuse_unused(context, "without scored pairs (--pairs or --data)", *options)


@dataclass(frozen=True)
class Measuring:
    """How a model is measured, where that is to differ from how it is used."""

    similarity: Annotated[
        str | None, typer.Option(help="cosine, dot, euclidean or manhattan (default: the model's own).")
    ] = None
    prompt: PromptOption = None
    prompt_name: PromptNameOption = None
    routes: Annotated[
        str | None,
        typer.Option(
            help="'query,document': encode the first texts as queries and the second as documents; 'default': neither "
            "(default: by the names of the columns)."
        ),
    ] = None


@dataclass(frozen=True)
class Loading:
    """How a model is loaded and run."""

    dtype: Annotated[Dtype | None, typer.Option(help="Precision of the weights (default: the model's own).")] = None
    device: DeviceOption = None
    batch_size: Annotated[int, typer.Option(help="Sentences per batch.", min=1)] = 32
    max_seq_length: LengthOption = None

    def load(self, name: str) -> SentenceTransformer:
        """Load a model with the precision and the length that the options ask for."""
        return self._loaded(name)[0]

    def evaluate(self, evaluator: STSSuiteEvaluator, name: str) -> SuiteResult:
        """Load and evaluate a model; its own length and precision are recorded beside those asked for."""
        model, own = self._loaded(name)
        result = evaluator.evaluate(model, model_name=name, own=own)
        result.warnings += _stored_otherwise(name)
        return result

    def evaluate_all(self, evaluators: Sequence[TaskEvaluator], name: str) -> TasksResult:
        """Load a model once and evaluate it on several tasks."""
        from st_plugins.evaluation.task_result import TasksResult

        model, own = self._loaded(name)
        result = TasksResult.joined([one.evaluate(model, model_name=name, own=own) for one in evaluators])
        result.warnings += _stored_otherwise(name)
        return result

    def _loaded(self, name: str) -> tuple[SentenceTransformer, dict[str, Any]]:
        import torch

        from st_plugins.core.host import check_length, set_length
        from st_plugins.evaluation.measuring.record import dtype_of, length_of
        from st_plugins.io import load_sentence_transformer

        model = load_sentence_transformer(name, self.device)
        # Read before the options change them: a report says what differs from the model as it is used.
        own = {"max_seq_length": length_of(model), "dtype": dtype_of(model)}
        if self.dtype is not None:
            model.to(getattr(torch, self.dtype.value))
        if self.max_seq_length is not None:
            set_length(model, self.max_seq_length)
        check_length(model)
        return model, own


def _stored_otherwise(name: str) -> list[str]:
    """Say where a folder holds vectors that are to be stored in fewer bits than are measured."""
    from st_plugins.core.quantization import Quantization

    try:
        stored = Quantization.load(Path(name).expanduser())
    except FileNotFoundError:
        return []
    if stored.precision == "float32":
        return []
    return [
        f"the vectors of {name!r} are to be stored as {stored.precision} (quantization.json), but were measured in "
        "floating point: what is stored loses more, as compression.html beside it says"
    ]


def check_model(name: str) -> None:
    """Refuse what cannot be a model folder before anything is read; hub ids are left to the loading."""
    folder = Path(name).expanduser()
    # `name` and `owner/name` may be on the hub; everything else that is not there is a mistake.
    if not folder.exists() and (name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1):
        raise FileNotFoundError(f"model folder {name!r} does not exist")
    if folder.is_file():
        raise NotADirectoryError(f"model {name!r} is a file; give the folder of a model, or its name on the hub")
