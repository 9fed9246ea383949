"""The study of matching without readable text: pairs whose words were replaced by shuffled integers.

A recipe (TOML) names pairs, an encoder and rows: TF-IDF, Siamese encoders, and masked language models with the label
among their tokens, each trained from random weights or from a pretrained model whose vocabulary was matched by ranks
of frequency::

    python -m evaluation.anonymised evaluation/recipes/anonymised/qqp.toml --models MODELS --data DATA

It writes one JSON a row and seed, keeps what is there already, and then writes the table. Every row gets the same
number of batches. Settings are chosen with ``--dev-only``, which scores the dev pairs and never looks at the labels
of the test pairs.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from evaluation.anonymised_recipe import Row, Source, Study, as_integers, read_study, words_of
from evaluation.anonymised_table import INTRODUCTION, score_auc, table
from evaluation.pair_tasks import Examples
from evaluation.pair_training import train
from st_plugins.core.files import library_versions
from st_plugins.core.reading.tables import read_table
from st_plugins.core.writing.atomic import write_text
from st_plugins.data import read_texts
from st_plugins.matching import AnonymisedPairs, LabelTokenModel, build_tokenizer, initialise_by_rank

__all__ = ["Bench", "main"]

Array = NDArray[np.float64]

_DRY_STEPS, _DRY_PAIRS = 2, 64
_EVALUATION_BATCH = 64


class Bench:
    """The pairs of a study, and what its rows make of them.

    Args:
        study: The study.
        models: Folder of the models.
        data: Folder of the data.
        part: ``"test"`` or ``"dev"``: the pairs that are scored.
        dry: Whether to train two steps and look at few pairs.
    """

    def __init__(self, study: Study, models: Path, data: Path, part: str = "test", dry: bool = False) -> None:
        self.study, self.models, self.data, self.part, self.dry = study, models, data, part, dry

    @cached_property
    def pairs(self) -> dict[str, AnonymisedPairs]:
        """The pairs of ``train``, ``dev`` and ``test``."""
        sets: dict[str, Source] = {}
        for part in ("train", "dev", "test"):
            source = read_table(self.data / getattr(self.study, part))
            names = ("sentence1", "sentence2", "label")
            keep = [bool(words_of(a) and words_of(b)) for a, b in zip(*map(source.texts, names[:2]), strict=True)]
            first, second, labels = (
                [text for text, kept in zip(source.texts(name), keep, strict=True) if kept] for name in names
            )
            limit = _DRY_PAIRS if self.dry else None
            sets[part] = first[:limit], second[:limit], labels[:limit]
        return as_integers(sets, self.study.shuffle_seed)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the training pairs and the scored ones, whose texts are known in this task."""
        known = self.pairs["train"] + self.pairs[self.part]
        return build_tokenizer(known, 1 if self.dry else self.study.minimum_frequency, self.study.max_length)

    def start(self, row: Row, seed: int) -> LabelTokenModel:
        """Return the model that a row starts from.

        Args:
            row: The row.
            seed: Seed of random weights.

        Returns:
            The model.
        """
        if row.start == "ranks":
            return LabelTokenModel(copy.deepcopy(self._by_rank), self.tokenizer)
        torch.manual_seed(seed)
        encoder = AutoModelForMaskedLM.from_config(self._config(vocab_size=len(self.tokenizer)))
        return LabelTokenModel(encoder, self.tokenizer)

    @cached_property
    def _by_rank(self) -> Any:
        folder = self.models / self.study.model
        pretrained = AutoModelForMaskedLM.from_pretrained(folder, config=self._config(), local_files_only=True)
        words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        texts = [text for file in self.study.frequencies for text in read_texts(self.data / file)]
        return initialise_by_rank(pretrained, words, self.tokenizer, texts)

    def _config(self, **changes: Any) -> Any:
        layers = {"num_hidden_layers": self.study.layers} if self.study.layers else {}
        folder = self.models / self.study.model
        return AutoConfig.from_pretrained(folder, local_files_only=True, **layers, **changes)

    def measure(self, row: Row, seed: int) -> dict[str, Any]:
        """Train and score a row.

        Args:
            row: The row.
            seed: The seed.

        Returns:
            What is written to disk.
        """
        pairs, steps = self.pairs[self.part], _DRY_STEPS if self.dry else self.study.steps
        found: dict[str, Any] = {"row": asdict(row), "seed": seed, "steps": steps, "known": len(self.tokenizer)}
        if row.kind == "tf-idf":
            return {**found, self.part: self._score(tf_idf(self.pairs["train"], pairs)), **_versions()}
        model = self.start(row, seed).to("cuda" if torch.cuda.is_available() else "cpu")
        # On a CPU the time of the processor, which does not count what else runs beside.
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
        begin = clock()
        if row.kind == "siamese":
            vectors = model.sentence_transformer()
            labelled = self.pairs["train"]
            examples = Examples(labelled.first, labelled.second, [float(label or 0) for label in labelled.labels])
            options = (steps, self.study.batch_size, row.learning_rate, seed)
            torch.manual_seed(seed)
            train(vectors, CoSENTLoss(vectors), examples, examples.gold, *options)
        else:
            seen = self.pairs["train"] + pairs.without_labels() if row.unlabelled else self.pairs["train"]
            model.fit(
                seen,
                max_steps=steps,
                batch_size=self.study.batch_size,
                learning_rate=row.learning_rate,
                seed=seed,
                show_progress_bar=False,
            )
            vectors = model.sentence_transformer()
        found["train_seconds"] = clock() - begin
        found["sentence"] = self._score(cosines(vectors, pairs))
        if row.kind == "label-token":
            scores = model.predict(pairs.pairs, batch_size=_EVALUATION_BATCH)
            found[self.part] = self._score(np.asarray(scores, dtype=np.float64))
        else:
            found[self.part] = found.pop("sentence")
        return {**found, **_versions()}

    def _score(self, found: Array) -> dict[str, Any]:
        gold = np.array([label == "1" for label in self.pairs[self.part].labels])
        return score_auc(self.part, gold, found)


def tf_idf(train_pairs: AnonymisedPairs, pairs: AnonymisedPairs) -> Array:
    """Return the cosines of TF-IDF vectors, the document frequencies taken from all texts.

    Args:
        train_pairs: More texts to count in.
        pairs: The pairs to compare.

    Returns:
        One cosine a pair.
    """
    vectorizer = TfidfVectorizer(analyzer=str.split)
    vectorizer.fit([*train_pairs.first, *train_pairs.second, *pairs.first, *pairs.second])
    first, second = (vectorizer.transform(side) for side in (pairs.first, pairs.second))
    return np.asarray(first.multiply(second).sum(axis=1), dtype=np.float64).ravel()


def cosines(model: SentenceTransformer, pairs: AnonymisedPairs) -> Array:
    """Return the cosines of sentence vectors; each distinct text is encoded once.

    Args:
        model: The encoder.
        pairs: The pairs to compare.

    Returns:
        One cosine a pair.
    """
    places = {text: place for place, text in enumerate(dict.fromkeys([*pairs.first, *pairs.second]))}
    vectors = model.encode(
        list(places), batch_size=_EVALUATION_BATCH, show_progress_bar=False, normalize_embeddings=True
    )
    first, second = (vectors[[places[text] for text in side]] for side in (pairs.first, pairs.second))
    return np.asarray((first * second).sum(axis=1), dtype=np.float64)


def _versions() -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"device": device, "versions": library_versions()}


def result_file(folder: Path, recipe: Path, row: Row, seed: int, part: str) -> Path:
    """Return the file of one row and seed.

    Args:
        folder: Folder of the results.
        recipe: The recipe.
        row: The row.
        seed: The seed.
        part: ``"test"`` or ``"dev"``.

    Returns:
        The path.
    """
    name = re.sub(r"[^a-z0-9.]+", "-", row.name.lower()).strip("-")
    return folder / f"{recipe.stem}-{name}-seed{seed}{'-dev' if part == 'dev' else ''}.json"


def seeds_of(study: Study, row: Row) -> tuple[int, ...]:
    """Return the seeds of a row: one where nothing is random.

    Args:
        study: The study.
        row: The row.

    Returns:
        The seeds.
    """
    return (0,) if row.kind == "tf-idf" else tuple(row.seeds or study.seeds)


def write_table(study: Study, recipe: Path, folder: Path) -> None:
    """Write ``table.md`` from the results that are there.

    Args:
        study: The study.
        recipe: Its recipe.
        folder: Folder of the results.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    for row in study.rows:
        for seed in seeds_of(study, row):
            path = result_file(folder, recipe, row, seed, "test")
            if path.is_file():
                results.setdefault(row.name, []).append(json.loads(path.read_text(encoding="utf-8")))
    if not results:
        return
    found = next(iter(results.values()))[0]
    facts = f"{found['test']['pairs']:,} test pairs, {found['known']:,} known tokens; batches of {study.batch_size}."
    versions = ", ".join(f"{key} {value}" for key, value in found["versions"].items())
    lines = [f"# {study.title}", "", INTRODUCTION, "", *table(results, {row.name: row.base for row in study.rows}), ""]
    lines += [study.notes.strip(), "", facts, "", f"Trained on: {found['device']}. {versions}.", ""]
    write_text(folder / "table.md", "\n".join(lines))


def main(
    recipe: Annotated[Path, typer.Argument(help="A TOML file of evaluation/recipes/anonymised/.")],
    models: Annotated[Path, typer.Option(envvar="ST_PLUGINS_MODELS", help="Folder of the models.")],
    data: Annotated[Path, typer.Option(envvar="ST_PLUGINS_DATA", help="Folder of the data.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("evaluation/results/anonymised"),
    only: Annotated[str, typer.Option(help="Train only what has this in its file name: seed0, siamese.")] = "",
    dev_only: Annotated[bool, typer.Option("--dev-only", help="Score the dev pairs instead; no table.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Two steps, one seed, few pairs: does it work?")] = False,
) -> None:
    """Train and score every row of RECIPE; write OUTPUT/<recipe>-<row>-seed<n>.json and OUTPUT/table.md."""
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    study = read_study(recipe)
    part = "dev" if dev_only else "test"
    bench = Bench(study, models, data, part, dry_run)
    for seed in dict.fromkeys(seed for row in study.rows for seed in seeds_of(study, row)):
        for row in study.rows:
            path = result_file(output, recipe, row, seed, part)
            wanted = seed in seeds_of(study, row) and only in path.stem and not (dry_run and seed)
            if path.is_file() or not wanted:
                continue
            begin = time.perf_counter()
            found = {**bench.measure(row, seed), "seconds": time.perf_counter() - begin}
            write_text(path, json.dumps(found, indent=1) + "\n")
            typer.echo(f"{path.name}: {found['seconds']:.0f} s, AUC {found[part]['value'][0]:.4f}")
    if not dev_only:
        write_table(study, recipe, output)


if __name__ == "__main__":
    typer.run(main)
