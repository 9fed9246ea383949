"""The last step: a bi-encoder with few labels learns from a model that reads both texts at once.

That model judges pairs without labels, and the bi-encoder learns what it says, which is what helps on real pairs too.
`VIRTLoss` adds what a cross-encoder attends to; the study ``virt`` says what it gains.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss
from torch import nn
from tqdm.auto import trange

from st_plugins import miniature
from st_plugins.cli.demo.entailment import LABELS, Entailment, Pair
from st_plugins.cli.demo.found import Found
from st_plugins.cli.demo.resampling import difference_of, mean_of, percents
from st_plugins.core.dropout import without_dropout
from st_plugins.matching import RE2Matcher

_LABELED, _STEPS, _BATCH, _LEARNING_RATE = 400, 250, 32, 2e-3


def teach(pairs: Entailment, teacher: RE2Matcher, seed: int, training: float = 1.0) -> Found:
    """Train a small bi-encoder without and with the teacher, and judge both; ``training`` scales the steps."""
    alone = miniature.untrained_encoder(seed=seed)
    taught = copy.deepcopy(alone)
    few, steps = pairs.train[:_LABELED], max(1, round(training * _STEPS))
    told = teacher.predict(pairs.unlabeled).argmax(axis=1).tolist()
    more = [*few, *((first, second, label) for (first, second), label in zip(pairs.unlabeled, told, strict=True))]
    before, after = (hits(model, some, pairs.test, steps, seed) for model, some in ((alone, few), (taught, more)))
    gained = difference_of(after, before, "teach", seed)
    sentence = (
        f"A small bi-encoder with the labels of {len(few):,} pairs is right in "
        f"{percents(mean_of(before, 'teach', seed))} % of {len(pairs.test):,} others; with what RE2 says of "
        f"{len(pairs.unlabeled):,} pairs without labels, too, in {percents(mean_of(after, 'teach', seed))} % "
        f"({percents(gained, sign=True)}, {gained.verdict})."
    )
    return Found(
        sentence=sentence, short=f"a bi-encoder taught without labels: accuracy {percents(gained, sign=True)}"
    )


def hits(
    model: SentenceTransformer, pairs: Sequence[Pair], test: Sequence[Pair], steps: int, seed: int
) -> NDArray[np.float64]:
    """Train a model with a classifier, and return for each test pair whether it is judged right."""
    torch.manual_seed(seed)
    loss = SoftmaxLoss(model, model.get_embedding_dimension() or 0, num_labels=len(LABELS))
    train(model, loss, pairs, steps, seed)
    found = logits(model, loss, [pair[:2] for pair in test]).argmax(axis=1)
    return np.asarray(found == [label for _, _, label in test], dtype=np.float64)


def train(model: SentenceTransformer, loss: nn.Module, pairs: Sequence[Pair], steps: int, seed: int) -> None:
    """Train model and classifier in place, without dropout: there are few steps."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps, pct_start=0.1)
    model.train()
    with without_dropout(model):
        for _ in trange(steps, desc="Training", leave=False, disable=None):
            rows = [pairs[row] for row in torch.randint(len(pairs), (_BATCH,), generator=generator).tolist()]
            *texts, labels = (list(column) for column in zip(*rows, strict=True))
            value: Any = loss([model.preprocess(side) for side in texts], torch.tensor(labels))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def logits(model: SentenceTransformer, loss: SoftmaxLoss, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Return what the classifier says of pairs."""
    first, second = (
        model.encode(list(side), convert_to_tensor=True, show_progress_bar=False) for side in zip(*pairs, strict=True)
    )
    with torch.no_grad():
        found = loss.classifier(torch.cat([first, second, (first - second).abs()], dim=1))
    return np.asarray(found.double().numpy())
