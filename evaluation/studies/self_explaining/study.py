"""The classification study: what span pooling costs or gains, and whether its explanations are faithful."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from sentence_transformers import InputExample, SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import LabelAccuracyEvaluator
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from evaluation.engine import study, training
from evaluation.engine.pipelines import Pipeline, build_model
from evaluation.engine.spans import heaviest, heaviest_section
from evaluation.engine.study import Page, Record, Results, check_choice, stamp
from evaluation.engine.tables import section
from evaluation.studies.self_explaining import tables
from evaluation.studies.self_explaining.poolings import WordScoredSpanPooling
from st_plugins.core.batching import text_length
from st_plugins.core.reading.tables import read_table
from st_plugins.explain import Faithfulness, explain_text, faithfulness, gradient_saliency
from st_plugins.losses import SelfExplainingLoss
from st_plugins.methods.re2.checkpoints import BestWeightsCallback
from st_plugins.training import HeadCheckpointCallback

Text = str | list[str]
_NEW = r"^(model\.1|head)\."  # names of a loss's weights that no encoder brings along


@dataclass(frozen=True)
class Row(study.Row):
    """A pooling."""

    pooling: str  # "mean", "cls" or "span"
    weight: float = 0.0  # what sharp span weights are worth
    weight_after: int = 0  # so many epochs; until then the weight is 0, and no epoch is chosen
    frozen: bool = False  # the encoder: pooling and classifier alone learn
    layers: int = -1  # of the encoder, as for `Pipeline`; 0 leaves the embeddings of words and positions
    scored_by: str = "context"  # what the spans' weights are made of: "context", as published, or "words" alone
    paper: dict[str, Any] = field(default_factory=dict)  # {encoder = "...", value = 59.1}


@dataclass(kw_only=True)
class Study(study.Study[Row]):
    """A recipe."""

    row_type: ClassVar[type[Row]] = Row
    options: ClassVar[tuple[str, ...]] = ("dry_run",)

    model: str  # folder below --models
    train: str  # labelled texts, a file below --data
    dev: str  # those that choose the epoch
    test: str  # those that are reported
    sizes: tuple[int, int, int] = (0, 0, 0)  # so many of each, drawn; 0 for all
    columns: list[str]  # of the texts; two make pairs, encoded as one text
    labels: list[str]  # the classes, as the files write them
    max_length: int = 64
    strip_full_stop: bool = False  # at the end of a text, as the published code does
    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 1e-4  # peak
    new_learning_rate: float = 0.0  # that of pooling and classifier, which begin random; 0 for the same
    warmup: float = 0.1  # share of the steps in which it rises; it falls linearly afterwards
    adam: tuple[float, float, float] = (0.9, 0.999, 1e-8)  # β₁, β₂ and ε of AdamW
    weight_decay: float = 0.0
    fp16: bool = False  # on a GPU
    explained: int = 100  # test texts whose explanations are measured by deletion
    pictures: int = 5  # right and wrong answers that are drawn, so many of each
    pictured: str = ""  # row they are of, with its first seed; empty for the first one with spans

    def check(self) -> None:
        """Refuse values that cannot be meant."""
        super().check()
        if len(self.columns) not in (1, 2):
            raise ValueError(f"columns={self.columns} must name one column, or two for pairs")
        for row in self.rows:
            check_choice(f"row {row.name!r}:", "pooling", row.pooling, ("mean", "cls", "span"))
            check_choice(f"row {row.name!r}:", "scored_by", row.scored_by, ("context", "words"))
            if row.weight and row.pooling != "span":
                raise ValueError(f"row {row.name!r}: weight={row.weight} needs pooling='span'")
            if row.scored_by == "words" and row.pooling != "span":
                raise ValueError(f"row {row.name!r}: scored_by='words' needs pooling='span'")
            if row.weight_after and not (row.weight and 0 < row.weight_after < self.epochs):
                raise ValueError(
                    f"row {row.name!r}: weight_after={row.weight_after} needs a weight, and an epoch after it; "
                    f"epochs={self.epochs}"
                )
        if self.pictured and not any(row.name == self.pictured and row.pooling == "span" for row in self.rows):
            raise ValueError(f"pictured={self.pictured!r} must be a row with pooling='span'")

    def read_labeled(self, path: Path) -> tuple[list[Text], list[int]]:
        """Read texts (or pairs) and the numbers of their classes."""
        table = read_table(path)
        columns = [table.texts(name) for name in self.columns]
        if self.strip_full_stop:
            columns = [[text.removesuffix(".").rstrip() or text for text in column] for column in columns]
        texts: list[Text] = [row[0] if len(row) == 1 else list(row) for row in zip(*columns, strict=True)]
        found = table.texts("label")
        unknown = sorted(set(found) - set(self.labels))
        if unknown:
            raise ValueError(f"{path}: labels {unknown} are not among labels={self.labels} of the recipe")
        return texts, [self.labels.index(label) for label in found]

    def measure(self, row: Row, task: str, seed: int) -> Record:
        """Train a pooling and measure it."""
        begin = self.place.clock()
        model = self._build(row, seed)
        loss, course = self._train(row, seed, model)
        trained = self.place.clock()
        texts, gold = self._read("test")
        predicted = _predict(loss, texts)
        explained = 2 if self.place.dry_run else self.explained
        # The same texts for all rows and seeds, whose faithfulness is compared.
        drawn = np.random.default_rng(0).permutation(len(texts))[:explained].tolist()
        spans = row.pooling == "span"
        shown, answers = [texts[place] for place in drawn], [predicted[place] for place in drawn]
        found = {
            "dev": course,
            "accuracy": float(np.mean(np.equal(predicted, gold))),
            "correct": "".join("01"[a == b] for a, b in zip(predicted, gold, strict=True)),
            "faithfulness": _measure_explanations(model, loss.head, shown, answers, spans),
            "seconds_training": trained - begin,
        }
        if spans:
            explanations = [explain_text(model, text, 1) for text in shown]
            found["sharpness"] = float(np.mean([explanation.sharpness for explanation in explanations]))
            found["heaviest"] = [heaviest(explanation) for explanation in explanations]
            pictured = self.pictured or next(other.name for other in self.rows if other.pooling == "span")
            if row.name == pictured and seed == self.seeds_of(row)[0]:
                found["pictures"] = self._pictures(model, texts, gold, predicted)
        return found

    def _read(self, part: str) -> tuple[list[Text], list[int]]:
        """Read the training, dev or test texts; where fewer are wanted, the same for all rows and seeds."""
        texts, labels = self.read_labeled(self.place.data / getattr(self, part))
        size = self.sizes[("train", "dev", "test").index(part)]
        if not size:
            return texts, labels
        drawn = np.random.default_rng(0).permutation(len(texts))[:size]
        return [texts[row] for row in drawn], [labels[row] for row in drawn]

    def _build(self, row: Row, seed: int) -> SentenceTransformer:
        pipeline = Pipeline(row.name, self.model, row.pooling, max_length=self.max_length, layers=row.layers)
        model = build_model(pipeline, self.place.models, seed)
        encoder: Any = model[0]
        if row.scored_by == "words":
            torch.manual_seed(seed)
            pooling = WordScoredSpanPooling(encoder.model.get_input_embeddings().weight.detach())
            pooling.on_model_ready(model)
            model[1] = pooling.eval()
        encoder.requires_grad_(not row.frozen)
        return model.to(self.place.on)

    def _train(self, row: Row, seed: int, model: SentenceTransformer) -> tuple[SelfExplainingLoss, list[float]]:
        """Train a classifier; return it with the weights of the best epoch, and the dev accuracy after each."""
        torch.manual_seed(seed)
        loss = SelfExplainingLoss(model, len(self.labels), row.weight)
        texts, labels = self._read("train")
        dev_texts, dev_labels = self._read("dev")
        # The host's loader takes texts as they come: sorted ones need little padding.
        order = _by_length(dev_texts)
        examples: Any = [InputExample(texts=cast("Any", [dev_texts[row]]), label=dev_labels[row]) for row in order]
        loader: Any = DataLoader(examples, batch_size=128)
        best = BestWeightsCallback(loss, "eval_dev_accuracy", patience=None)
        dry = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
        state = training.train(
            model,
            loss,
            {"text": texts, "label": labels},
            seed=seed,
            batch_size=self.batch_size,
            evaluator=LabelAccuracyEvaluator(loader, "dev", softmax_model=loss, write_csv=False),
            callbacks=[best, HeadCheckpointCallback(loss), _LateWeight(loss, row.weight_after)],
            learning_rate=self.learning_rate,
            learning_rate_mapping={_NEW: self.new_learning_rate} if self.new_learning_rate else {},
            warmup_steps=self.warmup,
            adam_beta1=self.adam[0],
            adam_beta2=self.adam[1],
            adam_epsilon=self.adam[2],
            weight_decay=self.weight_decay,
            dataloader_drop_last=False,
            fp16=self.fp16 and not self.place.dry_run,
            **(dry if self.place.dry_run else {"num_train_epochs": self.epochs, "eval_strategy": "epoch"}),
            # An epoch without the weight is none of this row's.
            eval_delay=row.weight_after + 1 if row.weight_after and not self.place.dry_run else 0,
        )
        best.restore()
        return loss, [entry[best.metric] for entry in state.log_history if best.metric in entry]

    def _pictures(
        self, model: SentenceTransformer, texts: Sequence[Text], gold: Sequence[int], predicted: Sequence[int]
    ) -> list[Record]:
        """Explain the first right and the first wrong answers, as they come."""
        found = []
        for right in (True, False):
            rows = [row for row in range(len(texts)) if (gold[row] == predicted[row]) == right][: self.pictures]
            for row in rows:
                classes = {"gold": self.labels[gold[row]], "predicted": self.labels[predicted[row]]}
                found.append({**classes, "explanation": json.loads(explain_text(model, texts[row], 3).to_json())})
        return found

    def summary(self, record: Record) -> str:
        """Return what the terminal shows of a new record."""
        return f"{super().summary(record)}, dev {record['dev']}, test {record['accuracy']:.4f}"

    def page(self, results: Results, folder: Path) -> Page:
        """Return accuracies, faithfulness and examples."""
        found = study.by_row(results)
        first = next(iter(found.values()))[0]
        explained = len(first["faithfulness"]["random"])
        lines = [f"# {self.title}", "", tables.ACCURACY.format(recipe=self.path.name), ""]
        lines += [*tables.accuracy_table(self, found), ""]
        lines += section("Faithfulness", tables.FAITHFULNESS.format(count=explained), tables.faithfulness_table(found))
        lines += heaviest_section(found)
        examples, files = tables.examples(self, found)
        return [*lines, *examples, self.notes, "", stamp(first), ""], files


class _LateWeight(TrainerCallback):
    """Let the sharpness count nothing in the first epochs, until the classifier has learned."""

    def __init__(self, loss: SelfExplainingLoss, epochs: int) -> None:
        self.loss, self.weight, self.epochs = loss, loss.weight, epochs

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.loss.weight = self.weight if round(state.epoch) >= self.epochs else 0.0


def _by_length(texts: Sequence[Text]) -> list[int]:
    return sorted(range(len(texts)), key=lambda row: text_length(texts[row]))


def _predict(loss: SelfExplainingLoss, texts: Sequence[Text]) -> list[int]:
    """Return the classes, in the order of the texts."""
    order = _by_length(texts)
    found = loss.predict([texts[row] for row in order], batch_size=128).numpy()
    classes: list[int] = found[np.argsort(order)].argmax(axis=1).tolist()
    return classes


def _measure_explanations(
    model: SentenceTransformer, head: torch.nn.Module, texts: Sequence[Text], classes: Sequence[int], spans: bool
) -> dict[str, list[list[float]]]:
    """Delete what explanations name, and what gradient × input and random orders name; watch the predicted class.

    Returned are by ranking lists of ``[comprehensiveness, sufficiency]``, means over the bins, one a text.
    """
    found: dict[str, list[list[float]]] = {}
    for text, number in zip(texts, classes, strict=True):

        def score(embeddings: torch.Tensor, number: int = number) -> torch.Tensor:
            logits: torch.Tensor = head(embeddings.to(model.device))
            return logits.softmax(dim=1)[:, number]

        try:
            saliency = explain_text(model, text, 1).saliency if spans else gradient_saliency(model, text, score)
            result: Faithfulness = faithfulness(model, text, saliency, score, gradient=spans)
        except ValueError:
            continue  # one token: nothing can be deleted
        for name, ranking in result.rankings.items():
            name = "gradient" if name == "explanation" and not spans else name
            pair = [round(ranking.mean_comprehensiveness, 5), round(ranking.mean_sufficiency, 5)]
            found.setdefault(name, []).append(pair)
    return found
