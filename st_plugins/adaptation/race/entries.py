"""The entries of the race: what comes into question, and how each is made."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss
from torch import nn

from st_plugins.adaptation.race.found_pairs import damaged, found_pairs
from st_plugins.core.dropout import dropout_probabilities
from st_plugins.methods.contrastive.anchored import AnchoredLoss
from st_plugins.methods.contrastive.consert import ConSERTLoss
from st_plugins.methods.contrastive.simcse import SimCSELoss

GIVEN = "unchanged"
_TEMPERATURE = 0.05
_ANCHOR = 10.0
# A tenth of the weights and less are trained, from zero: they need steps that are longer by as much.
LOW_RANK, LOW_RANK_RATE = 16, 10.0
# Static embeddings are a table of which a batch touches few rows; the study `contrastive` trains GloVe with 3e-2.
STATIC_RATE = 1000.0
_VIEWS = ("feature-cutoff:0.2", "token-shuffle")
_STATIC_VIEWS = ("token-cutoff:0.5", "token-cutoff:0.5")  # words without an order, which leaves nothing to shuffle


@dataclass(frozen=True)
class Entry:
    """One way to adapt a model: a map behind it, or a training."""

    name: str
    map: str = ""  # a shape of `compress`; empty for a training
    loss: str = ""  # what is trained with
    anchored: bool = False
    low_rank: bool = False  # whether adapters are trained in place of the weights


def entries(adapters: bool | None = None) -> list[Entry]:
    """Return what comes into question, the cheapest first, then what most often helped; adapters where peft is."""
    maps = [
        Entry("centering", map="centered rotation"),
        *(Entry(name, map=name) for name in ("soft whitening", "shrunk whitening")),
    ]
    trained = [
        Entry(f"{title}{', anchored' if anchored else ''}", loss=title, anchored=anchored)
        for anchored in (True, False)
        for title in ("ConSERT", "SimCSE", "found pairs", "TSDAE")
    ]
    if adapters or (adapters is None and importlib.util.find_spec("peft") is not None):
        trained.insert(4, Entry("ConSERT, low rank, anchored", loss="ConSERT", anchored=True, low_rank=True))
    return [*maps, *trained]


def columns_of(entry: Entry, texts: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Return what an entry is trained on."""
    generator = torch.Generator().manual_seed(seed)
    if entry.loss == "TSDAE":
        return {"damaged": damaged(texts, generator), "text": list(texts)}
    if entry.loss == "found pairs":
        pairs = found_pairs(texts, generator)
        return {"first": [first for first, _ in pairs], "second": [second for _, second in pairs]}
    return {"text": list(texts)}


def loss_of(entry: Entry, model: SentenceTransformer, folder: Path) -> nn.Module:
    """Return an entry's loss."""
    loss: nn.Module
    if entry.loss == "ConSERT":
        views = _STATIC_VIEWS if model.transformers_model is None else _VIEWS
        loss = ConSERTLoss(model, views, _TEMPERATURE)
    elif entry.loss == "TSDAE":
        loss = _TSDAE(model, folder)
    elif entry.loss == "SimCSE" and not dropout_probabilities(model):
        raise ValueError("the model has no dropout, which is what makes the two views of SimCSE")
    else:  # one column is SimCSE, two are pairs with the batch as negatives
        loss = SimCSELoss(model, temperature=_TEMPERATURE, mlp_head=False)
    return AnchoredLoss(loss, _ANCHOR) if entry.anchored else loss


class _TSDAE(DenoisingAutoEncoderLoss):
    """The host's loss for a model that need not lie in a folder, with its model where the others have it."""

    def __init__(self, model: SentenceTransformer, folder: Path) -> None:
        encoder = model.transformers_model
        if encoder is None:
            raise ValueError("the model has no Transformer that could be trained to restore texts")
        if getattr(encoder, "peft_config", None):
            raise ValueError("the model has an adapter, and a decoder that shares it cannot be made; merge it first")
        frozen = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
        # The host reads the decoder from where the encoder was read, which may be gone or hold something else.
        encoder.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        before = encoder.config._name_or_path
        encoder.config._name_or_path = str(folder)
        try:
            super().__init__(model, tie_encoder_decoder=True)
        finally:
            encoder.config._name_or_path = before
        for name, parameter in encoder.named_parameters():  # they are the decoder's now, and none is frozen
            parameter.requires_grad_(name not in frozen)

    @property
    def model(self) -> SentenceTransformer:
        """The encoder."""
        found: SentenceTransformer = self.encoder
        return found
