"""Recipes of the training study: what is trained, on what, and what the paper reports for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.after import AFTER
from evaluation.pipelines import NEW_POOLINGS
from evaluation.toml_file import recipe_tables
from st_plugins.core.reading.tables import read_table
from st_plugins.data import read_texts

__all__ = ["Run", "Study", "draw_texts", "read_study", "training_columns"]

PAIR_METHODS = ("supervised", "joint", "cosent")
METHODS = ("none", "consert", "simcse", *PAIR_METHODS)
LABELS = {"contradiction": 0, "entailment": 1, "neutral": 2}  # as in the published code


@dataclass(frozen=True)
class Run:
    """One row of the table: a method with its settings.

    Args:
        name: Row name, also the file name of its results.
        method: ``"none"``, ``"consert"``, ``"simcse"``, ``"supervised"`` (softmax on pairs), ``"joint"`` or
            ``"cosent"`` (on pairs with similarity scores).
        data: Key of the recipe's ``[data]`` tables: unlabelled texts, or labelled pairs for the last three methods.
        start: Name of the run whose model (chosen on dev) this one starts from; empty for the recipe's model.
        views: Two views in short form, for consert and joint.
        temperature: τ.
        weight: α of the joint objective.
        sharpness: λ, what sharp span weights are worth; needs ``pooling = "span"``.
        r_drop: α of R-Drop around the loss, for supervised and cosent; 0 for none.
        mix_penalty: λ of the layers' weights; needs ``pooling = "layer-mix"``.
        encoder_dropout: Whether the encoder's dropout is on.
        learning_rate: Peak of the learning rate; linear warm-up over a tenth of the steps, then linear decay.
        pooling_learning_rate: The same for the weights after the encoder, which begin random; 0 for no difference.
        epochs: Passes over the data.
        max_steps: Number of steps instead; 0 leaves it to ``epochs``.
        batch_size: Sentences (or pairs) a step.
        grouped: Put texts of similar length into a batch, which needs less time.
        pooling: As for `Pipeline`; empty for the recipe's.
        layers: As for `Pipeline`: keep only this many of the encoder's layers; -1 keeps all.
        tokens: As for `Pipeline`: word embeddings alone.
        after: Keys of `AFTER`: what is fitted to the trained model's embeddings of the corpus and evaluated, too.
        seeds: Seeds instead of the recipe's.
        dev_only: Whether the run is never scored on the test sets.
        paper: What the paper reports for the row, with its encoder; ``{encoder = "...", value = 72.74}``.
    """

    name: str
    method: str
    data: str = ""
    start: str = ""
    views: tuple[str, str] = ("feature-cutoff:0.2", "token-shuffle")
    temperature: float = 0.1
    weight: float = 0.15
    sharpness: float = 0.0
    r_drop: float = 0.0
    mix_penalty: float = 0.0
    encoder_dropout: bool = True
    learning_rate: float = 5e-5
    pooling_learning_rate: float = 0.0
    epochs: float = 1.0
    max_steps: int = 0
    batch_size: int = 96
    grouped: bool = False
    pooling: str = ""
    layers: int = -1
    tokens: bool = False
    after: tuple[str, ...] = ("whitened",)
    seeds: tuple[int, ...] = ()
    dev_only: bool = False
    paper: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A recipe.

    Args:
        title: Heading of the table.
        model: Folder below ``--models``.
        tasks: What is evaluated, as for ``STSSuiteEvaluator``.
        dev_task: Task whose dev split watches the training.
        corpus: Texts for the whitening, the floor and the geometry: files below ``--data``; ``file.tsv#column``.
        data: Named sources. ``texts`` lists files as ``corpus`` does, ``size`` draws that many of them; ``pairs``
            lists files with columns label (for cosent: score), sentence1, sentence2.
        runs: The rows.
        pooling: Pooling of the encoder.
        max_length: Texts are cut to this many tokens.
        corpus_size: Number of corpus texts drawn.
        seeds: One training for each.
        evaluations: Number of checkpoints looked at in each training.
        notes: Text below the table.
    """

    title: str
    model: str
    tasks: str
    dev_task: str
    corpus: list[str]
    data: dict[str, dict[str, Any]]
    runs: list[Run]
    pooling: str = "mean"
    max_length: int = 64
    corpus_size: int = 28682
    seeds: tuple[int, ...] = (0, 1, 2)
    evaluations: int = 10
    notes: str = ""

    def find(self, name: str) -> Run:
        """Return a run by name.

        Args:
            name: Its name.

        Returns:
            The run.
        """
        return next(run for run in self.runs if run.name == name)

    def chain(self, run: Run) -> list[Run]:
        """Return the runs that lead to a run, the first trained first, itself last.

        Args:
            run: The run.

        Returns:
            The runs.
        """
        return [*(self.chain(self.find(run.start)) if run.start else []), run]

    def uses_labels(self, run: Run) -> bool:
        """Tell whether a run, or one that leads to it, is trained on labels.

        Args:
            run: The run.

        Returns:
            Whether it is.
        """
        return any(step.method in PAIR_METHODS for step in self.chain(run))


def read_study(path: Path) -> Study:
    """Read and check a recipe.

    Args:
        path: The TOML file.

    Returns:
        The study.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not TOML, a key is missing or unknown, or a value is not allowed.
    """
    with recipe_tables(path) as raw:
        defaults = raw.pop("defaults", {})
        runs = [Run(**{**defaults, **row}) for row in raw.pop("run")]
        study = Study(runs=runs, **raw)
    names = [run.name for run in runs]
    for run in runs:
        where = f"{path}: run {run.name!r}:"
        if run.method not in METHODS:
            raise ValueError(f"{where} method={run.method!r} must be one of {', '.join(METHODS)}")
        if run.method != "none" and run.data not in study.data:
            raise ValueError(f"{where} data={run.data!r} must be one of {', '.join(study.data)}")
        if run.start and run.start not in names[: names.index(run.name)]:
            raise ValueError(f"{where} start={run.start!r} must be a run above it")
        if run.sharpness and (run.pooling or study.pooling) != "span":
            raise ValueError(f'{where} sharpness={run.sharpness} needs pooling = "span"')
        if run.r_drop and run.method not in ("supervised", "cosent"):
            raise ValueError(f"{where} r_drop={run.r_drop} is for the methods supervised and cosent")
        if run.mix_penalty and (run.pooling or study.pooling) != "layer-mix":
            raise ValueError(f'{where} mix_penalty={run.mix_penalty} needs pooling = "layer-mix"')
        if run.pooling_learning_rate and (run.pooling or study.pooling) not in ("layer-mix", *NEW_POOLINGS):
            raise ValueError(
                f"{where} pooling_learning_rate={run.pooling_learning_rate} needs a pooling with weights, one of "
                f"layer-mix, {', '.join(NEW_POOLINGS)}"
            )
        unknown = [form for form in run.after if form not in AFTER]
        if unknown:
            raise ValueError(f"{where} after={unknown[0]!r} must be one of {', '.join(AFTER)}")
        if run.method in PAIR_METHODS and "pairs" not in study.data[run.data]:
            raise ValueError(f"{where} data={run.data!r} has no pairs, which method={run.method!r} needs")
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: two runs have one name")
    return study


def draw_texts(sources: list[str], data: Path, size: int = 0, seed: int = 0) -> list[str]:
    """Read unlabelled texts, distinct, and draw some of them.

    Args:
        sources: Files or folders below ``data``; ``file.tsv#column`` for a table's column.
        data: Folder of the data.
        size: Number of texts to draw; 0 for all.
        seed: Seed of the draw.

    Returns:
        The texts, in their order.
    """
    texts: dict[str, None] = {}
    for source in sources:
        file, _, column = source.partition("#")
        texts.update(dict.fromkeys(read_texts(data / file, column or None)))
    found = list(texts)
    if 0 < size < len(found):
        drawn = np.random.default_rng(seed).choice(len(found), size, replace=False)
        found = [found[index] for index in np.sort(drawn)]
    return found


def training_columns(study: Study, run: Run, data: Path) -> dict[str, list[Any]]:
    """Read what a run trains on.

    Args:
        study: The study.
        run: The run.
        data: Folder of the data.

    Returns:
        ``{"text": [...]}``, or ``{"sentence1": [...], "sentence2": [...], "label": [...]}`` for labelled pairs, with
        classes or scores.
    """
    source = study.data[run.data]
    if run.method not in PAIR_METHODS:
        return {"text": draw_texts(source["texts"], data, source.get("size", 0))}
    columns: dict[str, list[Any]] = {"sentence1": [], "sentence2": [], "label": []}
    for file in source["pairs"]:
        table = read_table(data / file)
        columns["sentence1"] += table.texts("sentence1")
        columns["sentence2"] += table.texts("sentence2")
        if run.method == "cosent":
            columns["label"] += [float(score) for score in table.texts("score")]
        else:
            columns["label"] += [LABELS[label] for label in table.texts("label")]
    return columns
