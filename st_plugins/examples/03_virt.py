"""How much of a cross-encoder's accuracy does a bi-encoder keep that learns what the cross-encoder attends to?"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sentence_transformers.util import pairwise_cos_sim
from torch import nn
from tqdm.auto import trange

from st_plugins import miniature
from st_plugins.core.dropout import without_dropout
from st_plugins.core.host import quiet
from st_plugins.evaluation import Difference
from st_plugins.evaluation.statistics import difference
from st_plugins.examples.pairs import Pair, entailment_pairs, resampled_share
from st_plugins.losses import VIRTLoss, map_agreement

MAX_LENGTH = 32  # so that two texts fit into the teacher, which takes 64 tokens


@dataclass(frozen=True)
class LearnedAttention:
    """What a bi-encoder gained from a cross-encoder's attention, on pairs that nothing was trained on."""

    pairs: int  # half of them are entailments
    cross_encoder: float  # share that the teacher, which reads both sentences at once, judges right
    siamese: float  # share that a bi-encoder without a teacher judges right by its cosine
    virt: float  # share that the same bi-encoder trained with `VIRTLoss` judges right
    gain: Difference  # virt - siamese
    siamese_overlap: float  # with the teacher's maps, averaged over the layers; see `LayerAgreement`
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


def run(
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

    The settings of this function were chosen among a few on the ``choosing`` pairs, not on the ``judged`` ones.
    """
    pairs = entailment_pairs(drawn, seed)
    dev, test, seen = pairs[:choosing], pairs[choosing : choosing + judged], pairs[choosing + judged :]
    encoder = miniature.pretrained_encoder(seed=seed)
    torch.manual_seed(seed)
    siamese, virt = copy.deepcopy(encoder), copy.deepcopy(encoder)  # both will see their pairs in the same order
    siamese.max_seq_length = virt.max_seq_length = MAX_LENGTH
    train(siamese, CosineSimilarityLoss(siamese), seen, steps, seed)
    # From the bi-encoder: a masked language model of single sentences does not learn in so few steps to look from one
    # text to another.
    teacher = cross_encoder(siamese)
    train(teacher, BinaryCrossEntropyLoss(teacher), seen, teacher_steps, seed, learning_rate=3e-4)
    train(virt, VIRTLoss(virt, teacher, CosineSimilarityLoss(virt), weight), seen, steps, seed)

    gold = np.array([label for _, _, label in test])
    right = []
    for model in (teacher, siamese, virt):
        follows = score(model, test) > threshold(score(model, dev), dev)
        right.append((follows == gold).astype(np.float64))
    slow, before, after = (float(hits.mean()) for hits in right)
    gain = difference(after - before, resampled_share(right[2] - right[1], "virt", seed), 0.95)
    watched = [pair[:2] for pair in dev]
    overlaps = [
        float(np.mean([layer.overlap for layer in map_agreement(student, teacher, watched)]))
        for student in (siamese, virt)
    ]
    return LearnedAttention(len(test), slow, before, after, gain, *overlaps)


def cross_encoder(encoder: SentenceTransformer) -> CrossEncoder:
    """Return a cross-encoder with one label that starts from an encoder."""
    transformer: Any = encoder[0]
    # Else the host would report that the head is new.
    with quiet(), tempfile.TemporaryDirectory() as folder:
        transformer.model.save_pretrained(folder)
        transformer.tokenizer.save_pretrained(folder)
        model: CrossEncoder = CrossEncoder(
            folder, num_labels=1, max_length=2 * MAX_LENGTH, device="cpu", local_files_only=True
        )
    # Which text a token belongs to: the miniature tokenizer keeps it back, and much is not learned without it.
    model.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return model


def train(
    model: nn.Module, loss: nn.Module, pairs: Sequence[Pair], steps: int, seed: int, learning_rate: float = 5e-4
) -> None:
    """Train in place, without dropout: there are few steps."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    model.train()
    with without_dropout(model):
        for _ in trange(steps, desc="Training", leave=False):
            rows = [pairs[row] for row in torch.randint(len(pairs), (32,), generator=generator).tolist()]
            *texts, labels = (list(column) for column in zip(*rows, strict=True))
            # Losses of a cross-encoder take texts, those of a bi-encoder take tokens.
            inputs = [model.preprocess(side) for side in texts] if isinstance(model, SentenceTransformer) else texts
            value: Any = loss(inputs, torch.tensor(labels, dtype=torch.float32))
            if isinstance(value, dict):  # of named terms
                value = sum(value.values())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def score(model: CrossEncoder | SentenceTransformer, pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """Return the score of each pair: the cross-encoder's own, or the cosine of two embeddings."""
    first, second, _ = (list(column) for column in zip(*pairs, strict=True))
    found: Any
    if isinstance(model, SentenceTransformer):
        found = pairwise_cos_sim(*(model.encode(side, show_progress_bar=False) for side in (first, second)))
    else:
        found = model.predict(list(zip(first, second, strict=True)), show_progress_bar=False)
    return np.asarray(found, dtype=np.float64)


def threshold(scores: NDArray[np.float64], pairs: Sequence[Pair]) -> float:
    """Return the score above which most of the pairs are judged right as entailments."""
    follows = np.array([label for _, _, label in pairs])
    # Below all scores, and at each of them: no other threshold divides the pairs in another way.
    edges = np.concatenate([[-np.inf], np.unique(scores)])
    right = ((scores > edges[:, None]) == follows).sum(axis=1)
    return float(edges[right.argmax()])


if __name__ == "__main__":
    print(run().summary())
