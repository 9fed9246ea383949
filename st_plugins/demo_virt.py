"""The demo's third part: a bi-encoder that learns what a cross-encoder attends to."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from tqdm.auto import trange
from transformers.utils import logging as transformers_logging

from st_plugins import miniature
from st_plugins.core.dropout import without_dropout
from st_plugins.evaluation.result import Difference
from st_plugins.evaluation.statistics import difference, resample_counts
from st_plugins.methods.virt.layer_agreement import map_agreement
from st_plugins.methods.virt.virt_loss import VIRTLoss

__all__ = ["LearnedAttention", "entailment_pairs", "run_virt_demo"]

Array = NDArray[np.float64]
Pair = tuple[str, str, int]
Loss = Callable[[list[list[str]], Tensor], Tensor]

_LEARNING_RATE = 5e-4
_TEACHER_LEARNING_RATE = 3e-4
_MOST_WORDS = 9
_MAX_LENGTH = 32
_SAMPLES = 1000


@dataclass(frozen=True)
class LearnedAttention:
    """What a bi-encoder gained from a cross-encoder's attention, on pairs that nothing was trained on.

    Args:
        pairs: How many pairs were judged; half of them are entailments.
        cross_encoder: Share that the teacher, which reads both sentences at once, judges right.
        siamese: Share that a bi-encoder without a teacher judges right by its cosine.
        virt: Share that the same bi-encoder trained with `VIRTLoss` judges right.
        gain: ``virt - siamese`` with its interval.
        siamese_overlap: How well the maps of the bi-encoder without a teacher overlap with the teacher's, averaged
            over the layers; see `LayerAgreement`.
        virt_overlap: The same of the one with it.
    """

    pairs: int
    cross_encoder: float
    siamese: float
    virt: float
    gain: Difference
    siamese_overlap: float
    virt_overlap: float

    def summary(self) -> str:
        """Say in words what was found."""
        gain, low, high = (100 * share for share in (self.gain.value, self.gain.low, self.gain.high))
        return (
            f"Entailment or not, {self.pairs} pairs: the cross-encoder is right in {self.cross_encoder:.1%}, the "
            f"bi-encoder that it started from in {self.siamese:.1%}, and the same bi-encoder in {self.virt:.1%} if it "
            f"learns the cross-encoder's attention too ({gain:+.1f} points [{low:+.1f}, {high:+.1f}], "
            f"{self.gain.verdict}). Its attention maps overlap with the cross-encoder's by {self.virt_overlap:.0%}, "
            f"without by {self.siamese_overlap:.0%}. It is served as before: one vector a sentence, nothing added."
        )


def run_virt_demo(
    *,
    seed: int = 0,
    teacher_steps: int = 250,
    steps: int = 150,
    weight: float = 1.0,
    drawn: int = 40000,
    choosing: int = 600,
    judged: int = 900,
) -> LearnedAttention:
    """Train a bi-encoder, a cross-encoder, and a bi-encoder that learns from the cross-encoder, and judge all three.

    Both bi-encoders start from the miniature encoder and see their pairs in the same order. The cross-encoder starts
    from the first of them: a masked language model of single sentences does not learn in so few steps to look from
    one text to another. A model says "entailment" above a score that is chosen on pairs of their own; the settings of
    this function were chosen among a few on these pairs too, not on the judged ones.

    Args:
        seed: Seed of the world, the encoder, the pairs and the batches.
        teacher_steps: Training steps of the cross-encoder, 32 pairs each.
        steps: Training steps of the bi-encoders.
        weight: Of VIRT's loss.
        drawn: As for `entailment_pairs`.
        choosing: Pairs on which the thresholds are chosen, and the settings were.
        judged: Pairs that are judged; the rest is trained on.

    Returns:
        What was found.
    """
    pairs = entailment_pairs(drawn, seed)
    dev, test, seen = pairs[:choosing], pairs[choosing : choosing + judged], pairs[choosing + judged :]
    encoder = miniature.pretrained_encoder(seed=seed)
    torch.manual_seed(seed)
    students = [copy.deepcopy(encoder) for _ in range(2)]
    for student in students:
        student.max_seq_length = _MAX_LENGTH  # so that two texts fit into the teacher, which takes 64 tokens
    _train(students[0], _on_texts(students[0], CosineSimilarityLoss(students[0])), seen, steps, seed)
    teacher = _cross_encoder(students[0])
    _train(teacher, BinaryCrossEntropyLoss(teacher), seen, teacher_steps, seed, _TEACHER_LEARNING_RATE)
    virt_loss = VIRTLoss(students[1], teacher, CosineSimilarityLoss(students[1]), weight)
    _train(students[1], _on_texts(students[1], virt_loss), seen, steps, seed)

    gold = np.array([label for _, _, label in test])
    right = []
    for scores in (partial(_scores, teacher), *(partial(_cosines, student) for student in students)):
        right.append((scores(test) > _threshold(scores(dev), dev)) == gold)
    cross_encoder, siamese, virt = (float(hits.mean()) for hits in right)
    counts = resample_counts(len(test), _SAMPLES, "virt", seed)
    resampled = counts @ (right[2].astype(np.float64) - right[1]) / len(test)
    watched = [(first, second) for first, second, _ in dev]
    overlaps = [
        float(np.mean([layer.overlap for layer in map_agreement(student, teacher, watched)])) for student in students
    ]
    gain = difference(virt - siamese, resampled, 0.95)
    return LearnedAttention(len(test), cross_encoder, siamese, virt, gain, *overlaps)


def entailment_pairs(drawn: int, seed: int = 0) -> list[Pair]:
    """Make pairs of short sentences of which the second follows from the first, and as many of which it does not.

    Args:
        drawn: Number of inference pairs to choose from; about a quarter is short enough and evenly divided.
        seed: Which pairs.

    Returns:
        Premise, hypothesis, and whether it follows: 1, 0, 1, 0, ...

    Example:
        >>> [label for _, _, label in entailment_pairs(30)]
        [1, 0, 1, 0, 1, 0]
    """
    found = {(first, second): label for first, second, label in miniature.nli_pairs(drawn, seed)}
    short = [
        (first, second, int(label == "entailment"))
        for (first, second), label in found.items()
        if max(len(first.split()), len(second.split())) <= _MOST_WORDS
    ]
    sides = ([pair for pair in short if pair[2]], [pair for pair in short if not pair[2]])
    return [pair for both in zip(*sides, strict=False) for pair in both]


def _cross_encoder(encoder: SentenceTransformer) -> CrossEncoder:
    """Return a cross-encoder with one label that starts from an encoder."""
    transformer: Any = encoder[0]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        transformer.model.save_pretrained(folder)
        transformer.tokenizer.save_pretrained(folder)
        model: CrossEncoder = CrossEncoder(
            folder, num_labels=1, max_length=2 * _MAX_LENGTH, device="cpu", local_files_only=True
        )
    # Which text a token belongs to: the miniature tokenizer keeps it back, and much is not learnt without it.
    model.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return model


def _on_texts(student: SentenceTransformer, loss: nn.Module) -> Loss:
    """Return a loss of the host's form as a function of texts."""

    def on_texts(columns: list[list[str]], labels: Tensor) -> Tensor:
        found = loss([student.preprocess(column) for column in columns], labels)
        return torch.stack(list(found.values())).sum() if isinstance(found, dict) else found

    return on_texts


def _train(
    model: nn.Module, loss: Loss, pairs: Sequence[Pair], steps: int, seed: int, learning_rate: float = _LEARNING_RATE
) -> None:
    """Train in place, without dropout: there are few steps."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    model.train()
    with without_dropout(model):
        for _ in trange(steps, desc="Training", leave=False):
            rows = [pairs[row] for row in torch.randint(len(pairs), (32,), generator=generator).tolist()]
            first, second, labels = zip(*rows, strict=True)
            value = loss([list(first), list(second)], torch.tensor(labels, dtype=torch.float32))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def _scores(model: CrossEncoder, pairs: Sequence[Pair]) -> Array:
    texts = [(first, second) for first, second, _ in pairs]
    return np.asarray(model.predict(texts, show_progress_bar=False), dtype=np.float64)


def _cosines(model: SentenceTransformer, pairs: Sequence[Pair]) -> Array:
    first, second, _ = zip(*pairs, strict=True)
    vectors = [model.encode(list(side), convert_to_tensor=True, show_progress_bar=False) for side in (first, second)]
    return cosine_similarity(vectors[0], vectors[1]).double().numpy()


def _threshold(scores: Array, pairs: Sequence[Pair]) -> float:
    """Return the score above which most of the pairs are judged right as entailments."""
    follows = np.array([label for _, _, label in pairs])
    edges = np.concatenate([[-np.inf], np.unique(scores)])
    right = ((scores > edges[:, None]) == follows).sum(axis=1)
    return float(edges[right.argmax()])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the bars of saving and loading, and the report that the head is new."""
    level, shown = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
