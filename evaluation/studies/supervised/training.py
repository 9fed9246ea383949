"""How a row is trained: a loss for each source, terms beside them, and what is done with the weights afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    AnglELoss,
    CoSENTLoss,
    CosineSimilarityLoss,
    MultipleNegativesRankingLoss,
    SoftmaxLoss,
)
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from evaluation.engine import training
from evaluation.studies.supervised.sources import CLASSES
from st_plugins.core.dropout import without_dropout
from st_plugins.losses import AnchoredLoss, ConSERTLoss, RDropLoss, SimCSELoss

if TYPE_CHECKING:
    from evaluation.studies.supervised.study import Row

SCORED: dict[str, Any] = {"cosent": CoSENTLoss, "angle": AnglELoss, "mse": CosineSimilarityLoss}
LABELED = (*SCORED, "softmax", "in-batch")
UNLABELED = ("consert", "simcse")
TAUGHT = ("similarities",)
LOSSES = (*LABELED, *UNLABELED, *TAUGHT)
State = dict[str, Tensor]

# Names of weights in a loss that begin random: what comes after the encoder, and the classifier of softmax.
_NEW = r"(^|\.)(model\.[1-9]\.|classifier\.)"


class SimilarityLoss(nn.Module):
    """The squared error of the cosines of all pairs in a group of texts."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Compare with the cosines of a teacher ``(groups, texts * texts)``."""
        columns = list(features)
        texts = len(columns)
        vectors = normalize(self._embeddings(columns).float(), dim=1).unflatten(0, (texts, -1)).transpose(0, 1)
        with torch.autocast(vectors.device.type, enabled=False):
            cosines = vectors @ vectors.mT
        errors = (cosines - labels.view_as(cosines)).square().sum(dim=(1, 2))  # 0 on the diagonal
        found: Tensor = errors.mean() / (texts * (texts - 1))
        return found

    def _embeddings(self, columns: list[dict[str, Tensor]]) -> Tensor:
        """Return the embeddings of all columns, one after the other."""
        # Long texts have short partners: by length and not by column little is padded.
        tensors = [{key: value for key, value in text.items() if isinstance(value, Tensor)} for text in columns]
        longest = max(text["attention_mask"].shape[1] for text in tensors)
        joined = {
            key: torch.cat([pad(text[key], (0, longest - text[key].shape[1])) for text in tensors])
            for key in tensors[0]
        }
        lengths = joined["attention_mask"].sum(dim=1)
        order = lengths.argsort()
        parts = order.split(len(columns[0]["attention_mask"]))
        found = [
            self.model({key: value[rows, : int(lengths[rows].max())] for key, value in joined.items()})
            for rows in parts
        ]
        return torch.cat([part["sentence_embedding"] for part in found])[order.argsort()]


def loss_of(row: Row, name: str, model: SentenceTransformer) -> nn.Module:
    """Return a row's loss of one source."""
    loss: nn.Module
    if name == "consert":
        loss = ConSERTLoss(model, row.views, row.temperature)
    elif name == "simcse":
        loss = SimCSELoss(model, row.temperature, mlp_head=False)
    elif name in TAUGHT:
        loss = SimilarityLoss(model)
    elif name == "softmax":
        loss = SoftmaxLoss(model, model.get_embedding_dimension() or 0, len(CLASSES))
    elif name == "in-batch":
        loss = MultipleNegativesRankingLoss(model, scale=1 / row.temperature)
    else:
        loss = SCORED[name](model)
    if row.r_drop and name in LABELED:
        loss = RDropLoss(loss, row.r_drop)
    return AnchoredLoss(loss, row.anchor) if row.anchor else loss


def train(
    model: SentenceTransformer, row: Row, columns: dict[str, dict[str, list[Any]]], seed: int, bf16: bool
) -> None:
    """Train a model in place."""
    torch.manual_seed(seed)
    losses = {name: loss_of(row, row.learns[name], model) for name in columns}
    with contextlib.nullcontext() if row.dropout else without_dropout(model):
        training.train(
            model,
            losses,
            DatasetDict({name: Dataset.from_dict(found) for name, found in columns.items()}),
            seed=seed,
            bf16=bf16,
            batch_size=row.batch_size,
            learning_rate=row.learning_rate,
            learning_rate_mapping={_NEW: row.new_learning_rate} if row.new_learning_rate else {},
            num_train_epochs=row.epochs,
            max_steps=row.max_steps or -1,
        )


def between(given: State, trained: State, share: float) -> State:
    """Return weights on the line from the given ones (0) to the trained ones (1)."""
    return {
        key: torch.lerp(given[key], value, share) if value.is_floating_point() else value
        for key, value in trained.items()
    }
