"""A task and a seed of the VIRT study: its pairs, the cross-encoder trained on them, what the rows make of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import softmax
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, CrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, CosineSimilarityLoss
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss
from transformers import TrainerCallback

from evaluation.engine import setting
from evaluation.engine.pairs import Answer, Array, Examples, training_and_dev
from evaluation.engine.pipelines import Pipeline, build_model
from evaluation.engine.scores import score
from evaluation.engine.study import Record
from evaluation.engine.training import compare, predict, softmax_siamese, train
from evaluation.studies.virt.reading import cache_of, reader
from st_plugins.core.writing.atomic import atomic_folder
from st_plugins.losses import VIRTLoss, map_agreement
from st_plugins.matching import VIRTPairClassifier, VIRTPairLoss

if TYPE_CHECKING:
    from evaluation.studies.virt.study import Row


_DRY_STEPS, _DRY_PAIRS = 2, 48


class Setting(setting.Setting):
    """Here the seed is that of the pairs that are drawn, too."""

    @cached_property
    def start(self) -> Path:
        """The folder of the encoder that the cross-encoder and the rows start from."""
        return reader(self.study)

    def encoder(self) -> SentenceTransformer:
        """Return what every bi-encoder starts from."""
        row = Pipeline(self.name, self.start.name, self.study.pooling, max_length=self.task.max_length)
        return build_model(row, self.start.parent, self.seed).to(self.place.on)

    @cached_property
    def pairs(self) -> tuple[Examples, Examples]:
        """The training pairs and the dev pairs."""
        return training_and_dev(self.task, self.place.data, self.study.batch_size, self.study.eval_limit)

    @cached_property
    def _tokenizer(self) -> Any:
        return self.encoder().tokenizer

    def cut(self, examples: Examples) -> Examples:
        """Return what the bi-encoder reads of pairs."""
        few = examples.first_ones(_DRY_PAIRS) if self.place.dry_run else examples
        return trim(few, self._tokenizer, self.task.max_length)

    @cached_property
    def tests(self) -> dict[str, Examples]:
        """The reported sets, or their first pairs."""
        limit = self.study.test_limit
        return {name: found.first_ones(limit or len(found)) for name, found in super().tests.items()}

    def steps(self, wanted: int = 0) -> int:
        """Return the length of a training: what a row or the teacher asks for, or 0 for the task's budget."""
        if self.place.dry_run:
            return _DRY_STEPS
        epoch = len(self.pairs[0]) // self.study.batch_size
        return int(wanted or self.task.steps or max(1, round(self.task.epochs * epoch)))

    def seen(self, steps: int) -> Examples:
        """Return the pairs that a training sees, in this seed's order; less than an epoch sees the first ones."""
        training = self.pairs[0]
        order = np.random.default_rng(self.seed).permutation(len(training))
        return self.cut(training.take(order[: steps * self.study.batch_size]))

    def _train(
        self, model: Any, loss: nn.Module, seen: Examples, targets: list[Any], steps: int, rate: float, **more: Any
    ) -> None:
        options: Any = {"seed": self.seed, "batch_size": self.study.batch_size, "bf16": self.study.bf16, **more}
        train(model, loss, seen.columns(targets), max_steps=steps, learning_rate=rate, **options)

    @cached_property
    def _teaching(self) -> Setting:
        seed = self.study.teacher_seed
        return self if seed in (None, self.seed) else Setting(self.study, self.name, seed)

    @property
    def teacher(self) -> CrossEncoder:
        """The cross-encoder that the rows learn from: this seed's, or that of the study's ``teacher_seed``."""
        return self._teaching.cross_encoder

    def maps(self, row: Row) -> Path | None:
        """Return the folder of the teacher's maps, which rows that look at the same ones share."""
        if not self.study.cache_maps:
            return None
        kinds = (row.layers, row.heads, row.target, row.include_special_tokens)
        digest = hashlib.sha256(json.dumps(kinds).encode()).hexdigest()[:12]
        return cache_of(self.study) / "maps" / f"{self._teaching._cross_encoder_folder.name}-{digest}"

    @cached_property
    def cross_encoder(self) -> CrossEncoder:
        """The cross-encoder of this seed."""
        trained: CrossEncoder = self._build_cross_encoder(self._cross_encoder_folder).eval()
        return trained

    @cached_property
    def _cross_encoder_folder(self) -> Path:
        """Where this seed's cross-encoder is; it is trained if the cache does not have it."""
        classes, rate = len(self.task.classes), self.study.teacher_learning_rate
        # The name has all that a recipe says of the training: a changed one does not find an old cross-encoder.
        steps, before = self.steps(self.task.teacher_steps), self.task.teacher_from
        source = Setting(self.study, before, self.seed)._cross_encoder_folder if before else self.start
        task = {key: getattr(self.task, key) for key in ("train", "aside", "classes", "scale", "max_length")}
        settings = [task, self.study.batch_size, steps, rate, *([source.name] if before else [])]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        folder = cache_of(self.study) / f"{self.start.name}-{self.name}-seed{self.seed}-{digest}"
        if not folder.is_dir():
            torch.manual_seed(self.seed)
            model = self._build_cross_encoder(source)
            seen = self.seen(steps)
            loss = CrossEntropyLoss(model) if classes else BinaryCrossEntropyLoss(model)
            self._train(model, loss, seen, self.gold(seen), steps, rate)
            with atomic_folder(folder, overwrite=True) as temporary:
                model.save(str(temporary), create_model_card=False)
        return folder

    def _build_cross_encoder(self, source: Path) -> CrossEncoder:
        model: CrossEncoder = CrossEncoder(
            str(source),
            num_labels=len(self.task.classes) or 1,
            max_length=2 * self.task.max_length,
            device=self.place.on,
            local_files_only=True,
            model_kwargs={"ignore_mismatched_sizes": True},  # a task with other classes has a new head
        )
        return model

    def gold(self, examples: Examples) -> list[Any]:
        """Return the labels as a loss wants them: class numbers or scores."""
        return [int(label) for label in examples.gold] if self.task.classes else examples.gold

    @cached_property
    def _answers(self) -> Array:
        """What the teacher says of the training pairs that the task's budget allows for."""
        # Asked once: rows see the first ones of the same order.
        seen = self.seen(max(self.steps(), *(row.steps for row in self.study.rows)))
        with self.study.passes():
            return predict(self.teacher, seen)

    def targets(self, row: Row, seen: Examples) -> list[Any]:
        """Return what a row learns: the gold labels, or with the teacher's answers a mixture or both side by side."""
        if not row.distillation:
            return self.gold(seen)
        gold, answers = np.array(seen.gold), self._answers[: len(seen)]
        if self.task.classes:
            gold = np.eye(len(self.task.classes))[gold.astype(int)]
            if row.scores != "kl":
                both: list[Any] = np.concatenate([gold, answers], axis=1).tolist()
                return both
            answers = softmax(answers, axis=1)
        mixed: list[Any] = ((1 - row.distillation) * gold + row.distillation * answers).tolist()
        return mixed

    def measure(self, row: Row) -> Record:
        """Train and score a row."""
        steps = self.steps(row.steps)
        found: Record = {"steps": steps}
        if row.kind == "cross-encoder":
            found["steps"] = self.steps(self.task.teacher_steps)
            answer: Answer = partial(predict, self.cross_encoder)
        else:
            seen, watched = self.seen(steps), self.dev.pairs[: self.study.agreement_pairs]
            model = self.encoder()
            # Before the head is made, so that rows with the same head begin with the same weights.
            torch.manual_seed(self.seed)
            task_loss, answer = student(row, model, len(self.task.classes))
            before = map_agreement(model, self.teacher, watched)
            loss = with_virt(row, model, self.teacher, task_loss, self.maps(row))
            targets = self.targets(row, seen)
            begin = self.place.clock()
            callbacks = [Later(loss, row.weight, row.virt_after)] if row.virt_after else []
            self._train(model, loss, seen, targets, steps, row.learning_rate, callbacks=callbacks)
            found["seconds_step"] = (self.place.clock() - begin) / steps
            after = map_agreement(model, self.teacher, watched)
            found["agreement"] = {
                "before": [layer._asdict() for layer in before],
                "after": [layer._asdict() for layer in after],
            }
        return {**found, **self.scores(answer, row.dev_only)}

    def score(self, name: str, examples: Examples, answer: Answer) -> Record:
        """Score answers on a set."""
        classes = self.task.classes
        with self.study.passes():
            found = answer(examples)
        if classes and found.ndim == 2:
            found = found.argmax(axis=1)
        return score(name, np.array(examples.gold), found, self.task.positive_class, bool(classes))


def trim(examples: Examples, tokenizer: Any, max_length: int) -> Examples:
    """Cut every text to what the bi-encoder reads of it, so that the cross-encoder reads the same."""
    texts = list(dict.fromkeys(examples.texts))
    found = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True)["offset_mapping"]
    # Special tokens have the offsets (0, 0): the largest end is that of the last token of the text.
    cut = {text: text[: max(end for _, end in offsets)] for text, offsets in zip(texts, found, strict=True)}
    first, second = ([cut[text] for text in side] for side in (examples.first, examples.second))
    return Examples(first, second, examples.gold)


def student(row: Row, model: SentenceTransformer, classes: int) -> tuple[nn.Module, Answer]:
    """Return the own loss of a row that is no cross-encoder, and how the trained row answers; 0 classes for scores."""
    if row.kind == "interaction":
        classifier = VIRTPairClassifier(model, classes or None, fusion=row.fusion)
        return VIRTPairLoss(classifier), partial(predict, classifier)
    if classes:
        return softmax_siamese(model, classes, class_loss(row))
    regression: Any = CoSENTLoss if row.regression == "cosent" else CosineSimilarityLoss
    return regression(model), partial(compare, model, cosine_similarity)


def with_virt(
    row: Row, model: SentenceTransformer, teacher: CrossEncoder, task_loss: nn.Module, cache: Path | None = None
) -> nn.Module:
    """Return the loss of a row: its own, with VIRT's where the row has a weight for it."""
    if not row.weight:
        return task_loss
    keys = ("weight", "heads", "target", "distance", "include_special_tokens")
    options: Any = {key: getattr(row, key) for key in keys}
    layers: Any = row.layers if isinstance(row.layers, str) else list(row.layers)
    return VIRTLoss(model, teacher, task_loss, layers=layers, cache=cache, **options)


class Later(TrainerCallback):
    """Let VIRT begin after a share of the steps, when the student has learned something of the task."""

    def __init__(self, loss: Any, weight: float, share: float) -> None:
        self.loss, self.weight, self.share = loss, weight, share

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Set the weight of the maps."""
        self.loss.weight = self.weight if state.global_step >= self.share * state.max_steps else 0.0


def class_loss(row: Row) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what a row's logits of classes cost."""
    if not row.distillation:
        return nn.CrossEntropyLoss()
    if row.scores == "kl":
        return soft_cross_entropy
    return partial(logit_regression, share=row.distillation, centered=row.scores == "margin")


def logit_regression(logits: Tensor, targets: Tensor, share: float, centered: bool) -> Tensor:
    """Return the cross-entropy to gold classes, and with a share the squared distance to a teacher's logits."""
    gold, answers = targets.view(len(logits), 2, -1).to(logits.dtype).unbind(dim=1)
    task = cross_entropy(logits, gold)
    if centered:  # the mean squared distance of all differences between two logits, up to a factor
        logits, answers = (side - side.mean(dim=1, keepdim=True) for side in (logits, answers))
    return (1 - share) * task + share * mse_loss(logits, answers)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy to class probabilities, which version 6.0 of the host hands over flattened."""
    return cross_entropy(logits, targets.view_as(logits).to(logits.dtype))
