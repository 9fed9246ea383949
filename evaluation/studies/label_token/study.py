"""The study of matching without readable text: pairs whose words were replaced by shuffled integers."""

from __future__ import annotations

import copy
import re
import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from sklearn.feature_extraction.text import TfidfVectorizer
from torch.nn.functional import cosine_similarity
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

from evaluation.engine import study
from evaluation.engine.pair_tables import cell, verdicts
from evaluation.engine.pairs import Array, Examples
from evaluation.engine.scores import score_auc
from evaluation.engine.study import Page, Record, Results, check_choice, stamp
from evaluation.engine.tables import head, line
from evaluation.engine.training import compare, train
from st_plugins.core.reading.tables import read_table
from st_plugins.data import read_texts
from st_plugins.matching import AnonymizedPairs, LabelTokenModel, build_tokenizer, initialize_by_rank

_DRY_STEPS, _DRY_PAIRS = 2, 64
Source = tuple[list[str], list[str], list[str]]
"""First texts, second texts, labels."""


@dataclass(frozen=True)
class Row(study.Row):
    """A model of pairs."""

    # "tf-idf" (cosine of TF-IDF vectors), "siamese" (cosine of sentence vectors, trained with CoSENT on the labelled
    # pairs) or "label-token" (LabelTokenModel)
    kind: str
    start: str = "random"  # weights, or "ranks" for initialize_by_rank
    unlabelled: bool = False  # whether a label-token model sees the test pairs without their labels
    learning_rate: float = 1e-4  # peak; linear warm-up over a tenth of the steps, then linear decay
    base: str = ""  # row that it is compared with, beside the first


@dataclass(kw_only=True)
class Study(study.Study[Row]):
    """A recipe; all rows are compared with the first one."""

    row_type: ClassVar[type[Row]] = Row

    train: str  # labelled pairs below --data; columns label (0 or 1), sentence1, sentence2
    dev: str  # pairs to choose settings on
    test: str  # pairs that are reported
    # Folder below --models: shape of the encoder, and the pretrained weights for ``start = "ranks"``.
    model: str
    frequencies: list[str]  # files of readable texts, in which its words are counted
    steps: int  # batches of every training
    layers: int = 0  # how many of its lower layers are used; 0 for all
    minimum_frequency: int = 1  # how often an integer must occur to be known
    max_length: int = 64  # longest input of a pair, in tokens
    batch_size: int = 32
    shuffle_seed: int = 0  # of the integers

    def check(self) -> None:
        """Refuse values that cannot be meant."""
        super().check()
        for row in self.rows:
            where = f"row {row.name!r}:"
            check_choice(where, "kind", row.kind, ("tf-idf", "siamese", "label-token"))
            check_choice(where, "start", row.start, ("random", "ranks"))
            check_choice(where, "base", row.base, ("", *(other.name for other in self.rows)))

    def seeds_of(self, row: Row) -> tuple[int, ...]:
        """Return the seeds of a row: one where nothing is random."""
        return (0,) if row.kind == "tf-idf" else row.seeds or self.seeds

    @property
    def part(self) -> str:
        """The pairs that are scored."""
        return "dev" if self.place.dev_only else "test"

    def file_name(self, row: str, task: str, seed: int) -> str:
        """Return the name of a record's file."""
        name = super().file_name(row, task, seed)
        # Models see the pairs that are scored, so this is another training.
        return f"{name}-dev" if self.place.dev_only else name

    @cached_property
    def pairs(self) -> dict[str, AnonymizedPairs]:
        """The pairs of ``train``, ``dev`` and ``test``."""
        sets: dict[str, Source] = {}
        for part in ("train", "dev", "test"):
            # A text without any word would become an empty one; its pair is left out.
            source = read_table(self.place.data / getattr(self, part))
            names = ("sentence1", "sentence2", "label")
            keep = [bool(words_of(a) and words_of(b)) for a, b in zip(*map(source.texts, names[:2]), strict=True)]
            first, second, labels = (
                [text for text, kept in zip(source.texts(name), keep, strict=True) if kept] for name in names
            )
            limit = _DRY_PAIRS if self.place.dry_run else None
            sets[part] = first[:limit], second[:limit], labels[:limit]
        return as_integers(sets, self.shuffle_seed)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the training pairs and the scored ones, whose texts are known in this task."""
        known = self.pairs["train"] + self.pairs[self.part]
        return build_tokenizer(known, 1 if self.place.dry_run else self.minimum_frequency, self.max_length)

    def _start(self, row: Row, seed: int) -> LabelTokenModel:
        """Return the model that a row starts from."""
        if row.start == "ranks":
            return LabelTokenModel(copy.deepcopy(self._by_rank), self.tokenizer)
        torch.manual_seed(seed)
        encoder = AutoModelForMaskedLM.from_config(self._config(vocab_size=len(self.tokenizer)))
        return LabelTokenModel(encoder, self.tokenizer)

    @cached_property
    def _by_rank(self) -> Any:
        folder = self.place.models / self.model
        pretrained = AutoModelForMaskedLM.from_pretrained(folder, config=self._config(), local_files_only=True)
        words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        texts = [text for file in self.frequencies for text in read_texts(self.place.data / file)]
        return initialize_by_rank(pretrained, words, self.tokenizer, texts)

    def _config(self, **changes: Any) -> Any:
        layers = {"num_hidden_layers": self.layers} if self.layers else {}
        return AutoConfig.from_pretrained(self.place.models / self.model, local_files_only=True, **layers, **changes)

    def measure(self, row: Row, task: str, seed: int) -> Record:
        """Train and score a row."""
        labeled, pairs = self.pairs["train"], self.pairs[self.part]
        steps = _DRY_STEPS if self.place.dry_run else self.steps
        found: Record = {"steps": steps, "known": len(self.tokenizer)}
        if row.kind == "tf-idf":
            return {**found, self.part: self._score(_tf_idf(labeled, pairs))}
        model = self._start(row, seed).to(self.place.on)
        options: Any = {"max_steps": steps, "batch_size": self.batch_size, "learning_rate": row.learning_rate}
        begin = self.place.clock()
        if row.kind == "siamese":
            vectors = model.sentence_transformer()
            examples = Examples(labeled.first, labeled.second, [float(label or 0) for label in labeled.gold])
            # Again: making the model has drawn numbers, if its weights are random.
            torch.manual_seed(seed)
            train(vectors, CoSENTLoss(vectors), examples.columns(examples.gold), seed=seed, **options)
        else:
            seen = labeled + pairs.without_labels() if row.unlabelled else labeled
            model.fit(seen, seed=seed, show_progress_bar=False, **options)
            vectors = model.sentence_transformer()
        found["train_seconds"] = self.place.clock() - begin
        found["sentence"] = self._score(compare(vectors, cosine_similarity, pairs))
        if row.kind == "label-token":
            scores = model.predict(pairs.pairs, batch_size=64)
            found[self.part] = self._score(np.asarray(scores, dtype=np.float64))
        else:
            found[self.part] = found.pop("sentence")
        return found

    def _score(self, found: Array) -> Record:
        gold = np.array([label == "1" for label in self.pairs[self.part].gold])
        return score_auc(self.part, gold, found)

    def summary(self, record: Record) -> str:
        """Return what the terminal shows of a new record."""
        return f"{super().summary(record)}, AUC {record[self.part]['value'][0]:.4f}"

    def page(self, results: Results, folder: Path) -> Page:
        """Return the table."""
        found = next(iter(results.values()))[0]
        test, bases = found["test"], {row.name: row.base for row in self.rows}
        facts = f"{test['pairs']:,} test pairs, {found['known']:,} known tokens; batches of {self.batch_size}."
        lines = [f"# {self.title}", "", _INTRODUCTION, "", *_table(study.by_row(results), bases)]
        return [*lines, "", self.notes, "", facts, "", stamp(found), ""], {}


def _tf_idf(train_pairs: AnonymizedPairs, pairs: AnonymizedPairs) -> Array:
    """Return the cosines of TF-IDF vectors, the document frequencies taken from all texts."""
    vectorizer = TfidfVectorizer(analyzer=str.split)
    vectorizer.fit([*train_pairs.first, *train_pairs.second, *pairs.first, *pairs.second])
    first, second = (vectorizer.transform(side) for side in (pairs.first, pairs.second))
    return np.asarray(first.multiply(second).sum(axis=1), dtype=np.float64).ravel()


def _table(results: dict[str, list[Record]], bases: dict[str, str]) -> list[str]:
    """Return the table; ``bases`` has for each row the one that it is compared with, beside the first."""
    first = next(iter(results))
    tested = {name: [found["test"] for found in seeds] for name, seeds in results.items()}
    above_first = verdicts({name: (tested[name], tested[first]) for name in results if name != first})
    above_base = verdicts(
        {name: (tested[name], tested[base]) for name, base in bases.items() if name in tested and base in tested}
    )
    compared = f"AUC | minus {first} | minus Siamese | sentence vectors | >s"
    lines = head("row | start | unlabelled | >seeds | >steps", compared)
    for name, seeds in results.items():
        row = seeds[0]["row"]
        trained = row["kind"] != "tf-idf"
        cells = [
            name,
            row["start"] if trained else "",
            ("yes" if row["unlabelled"] else "no") if trained else "",
            str(len(seeds)),
            str(seeds[0]["steps"]) if trained else "",
            cell(tested[name]),
            above_first.get(name, ""),
            above_base.get(name, ""),
            cell([found["sentence"] for found in seeds if "sentence" in found]),
            f"{statistics.median(found['train_seconds'] for found in seeds):.0f}" if trained else "",
        ]
        lines.append(line(cells))
    return lines


_INTRODUCTION = (
    "AUC x 100 on the test pairs: mean and standard deviation over seeds, in brackets the 95 % bootstrap interval of "
    "the mean over the pairs. Differences are paired on the same resamples and corrected for their number (Holm); "
    "they tell what the seeds shown tell, not what other seeds would. All trained rows have the same encoder, batch "
    "size and number of steps. 'Unlabelled' says whether the test pairs, without labels, were among the training "
    "pairs. 'Sentence vectors' is the AUC of the cosine of the same encoder's sentence vectors. The last checkpoint "
    "is scored. Seconds are of the processor, for the training."
)


def as_integers(sets: dict[str, Source], seed: int) -> dict[str, AnonymizedPairs]:
    """Replace words by integers, the same ones in all sets: the position of each in a shuffled list of all words."""
    words = sorted({word for *sides, _ in sets.values() for side in sides for text in side for word in words_of(text)})
    places = np.random.default_rng(seed).permutation(len(words)).tolist()
    integer = {word: str(place) for word, place in zip(words, places, strict=True)}

    def coded(texts: list[str]) -> list[str]:
        return [" ".join(integer[word] for word in words_of(text)) for text in texts]

    return {name: AnonymizedPairs(coded(a), coded(b), labels) for name, (a, b, labels) in sets.items()}


def words_of(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())
