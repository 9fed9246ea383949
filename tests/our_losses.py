"""Every loss of the package on a tiny model, with a batch that suits it, for the tests of what all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
from torch import Tensor, nn

from st_plugins.losses import (
    ConSERTJointLoss,
    ConSERTLoss,
    LayerMixRegularizer,
    RDropLoss,
    SelfExplainingLoss,
    SimCSELoss,
    SpanSharpnessRegularizer,
    VIRTLoss,
)
from st_plugins.matching import VIRTPairClassifier, VIRTPairLoss
from st_plugins.modules import LayerMix, SpanPooling

MakeModel = Callable[..., SentenceTransformer]
MakeTeacher = Callable[..., CrossEncoder]


@dataclass(frozen=True)
class Ours:
    """A loss: how it is built from a model and a teacher, and what it is given."""

    build: Callable[[SentenceTransformer, MakeTeacher], nn.Module]
    columns: int = 1
    labels: str = ""  # "classes", "scores"
    modules: str = ""  # "spans", "layers"

    def model(self, make_model: MakeModel) -> SentenceTransformer:
        """Return a tiny BERT in training mode, with the modules that the loss needs."""
        model: Any = make_model()
        torch.manual_seed(1)
        if self.modules == "spans":
            model = SentenceTransformer(modules=[model[0], SpanPooling(16)], device="cpu")
        if self.modules == "layers":
            model = SentenceTransformer(modules=[model[0], LayerMix.after(model[0]), model[1]], device="cpu")
        trained: SentenceTransformer = model.train()
        return trained

    def target(self, rows: int) -> Tensor | None:
        """Return labels of the right kind."""
        if self.labels == "classes":
            return torch.arange(rows) % 2
        return torch.linspace(0, 1, rows) if self.labels else None

    def batch(self, model: SentenceTransformer, sentences: list[str], rows: int) -> list[dict[str, Any]]:
        """Return one tokenized batch for each column."""
        return [model.preprocess(sentences[start : start + rows]) for start in range(0, 20 * self.columns, 20)]

    def dataset(self, sentences: list[str], rows: int) -> Dataset:
        """Return the same as a dataset."""
        columns: dict[str, Any] = {
            name: sentences[20 * index : 20 * index + rows] for index, name in enumerate("abc"[: self.columns])
        }
        target = self.target(rows)
        return Dataset.from_dict(columns if target is None else {**columns, "label": target.tolist()})


OURS: dict[str, Ours] = {
    "ConSERTLoss": Ours(lambda m, t: ConSERTLoss(m)),
    "ConSERTLoss, mini_batch_size": Ours(lambda m, t: ConSERTLoss(m, mini_batch_size=2)),
    "ConSERTLoss, adversarial": Ours(lambda m, t: ConSERTLoss(m, ("none", "adversarial:0.5"))),
    "ConSERTJointLoss": Ours(lambda m, t: ConSERTJointLoss(m, 2), 2, "classes"),
    "SimCSELoss": Ours(lambda m, t: SimCSELoss(m)),
    "SimCSELoss, pairs": Ours(lambda m, t: SimCSELoss(m, mlp_head=False), 2),
    "RDropLoss": Ours(lambda m, t: RDropLoss(CoSENTLoss(m)), 2, "scores"),
    "RDropLoss, similarities": Ours(lambda m, t: RDropLoss(MultipleNegativesRankingLoss(m)), 2),
    "SelfExplainingLoss": Ours(lambda m, t: SelfExplainingLoss(m, 2), 1, "classes", "spans"),
    "SpanSharpnessRegularizer": Ours(lambda m, t: SpanSharpnessRegularizer(CoSENTLoss(m), 0.1), 2, "scores", "spans"),
    "LayerMixRegularizer": Ours(lambda m, t: LayerMixRegularizer(CoSENTLoss(m), 0.1), 2, "scores", "layers"),
    "VIRTLoss": Ours(lambda m, t: VIRTLoss(m, t(), CoSENTLoss(m)), 2, "scores"),
    "VIRTPairLoss": Ours(lambda m, t: VIRTPairLoss(VIRTPairClassifier(m, 2, dropout=0.0)), 2, "classes"),
}
