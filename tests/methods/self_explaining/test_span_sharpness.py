"""The sharpness of spans beside the losses of the host and our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    CoSENTLoss,
    CosineSimilarityLoss,
    MatryoshkaLoss,
    MegaBatchMarginLoss,
    MultipleNegativesRankingLoss,
)
from test_self_explaining_loss import LABELS, sharpness_oracle
from torch import nn

from st_plugins.core.dropout import without_dropout
from st_plugins.losses import ConSERTJointLoss, ConSERTLoss, SelfExplainingLoss, SpanSharpnessRegularizer
from st_plugins.modules import SpanPooling


@pytest.fixture
def span_model(make_model: Callable[..., SentenceTransformer]) -> Callable[..., SentenceTransformer]:
    """Return a factory: a tiny BERT with SpanPooling, the same weights each time."""

    def build(*tail: nn.Module, **options: Any) -> SentenceTransformer:
        torch.manual_seed(1)
        return SentenceTransformer(modules=[make_model()[0], SpanPooling(16, **options), *tail], device="cpu").train()

    return build


INNER: dict[str, tuple[Callable[[SentenceTransformer], nn.Module], int]] = {
    "cosine": (CosineSimilarityLoss, 2),
    "cosent": (CoSENTLoss, 2),
    "pairs": (MultipleNegativesRankingLoss, 2),
    "triples": (MultipleNegativesRankingLoss, 3),  # the host merges two columns in one forward pass
    "matryoshka": (lambda m: MatryoshkaLoss(m, MultipleNegativesRankingLoss(m), [16, 8]), 2),
    "consert": (lambda m: ConSERTLoss(m, ("none", "none"), encoder_dropout=False), 1),
    "cached consert": (lambda m: ConSERTLoss(m, ("none", "none"), encoder_dropout=False, mini_batch_size=2), 1),
}


@pytest.mark.parametrize("kind", INNER)
def test_the_regularizer_adds_its_term_to_any_loss(
    span_model: Callable[..., SentenceTransformer], sentences: list[str], kind: str
) -> None:
    model = span_model()
    build, count = INNER[kind]
    columns = [model.preprocess(sentences[start : start + 6]) for start in (0, 20, 40)[:count]]
    labels = torch.linspace(0, 1, 6)
    with without_dropout(model):
        inner = build(model)
        plain = inner([dict(column) for column in columns], labels)
        plain.backward()
        base = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
        model.zero_grad()
        loss = SpanSharpnessRegularizer(build(model), 0.4)
        terms = loss([dict(column) for column in columns], labels)
        assert list(terms) == [type(inner).__name__, "span_sharpness"]
        assert terms[type(inner).__name__].item() == pytest.approx(plain.item(), rel=1e-5)
        expected = -0.4 * sharpness_oracle(model, *columns)
        assert terms["span_sharpness"].item() == pytest.approx(expected, rel=1e-5)
        sum(terms.values()).backward()
        found = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
        model.zero_grad()
        sharpness = torch.cat([model(dict(column))["span_sharpness"] for column in columns]).mean()
        (-0.4 * sharpness).backward()
        for total, part, parameter in zip(found, base, model.parameters(), strict=True):
            own = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            torch.testing.assert_close(total, part + own, atol=2e-5 * max(1.0, float(part.abs().max())), rtol=1e-4)
    assert found[-1].any()


def test_the_regularizer_keeps_terms_and_adds_to_the_configuration(
    span_model: Callable[..., SentenceTransformer], sentences: list[str]
) -> None:
    model = span_model()
    loss = SpanSharpnessRegularizer(ConSERTJointLoss(model, 3), 0.2)
    columns = [model.preprocess(sentences[:6]), model.preprocess(sentences[30:36])]
    assert list(loss(columns, LABELS)) == ["classification", "contrastive", "span_sharpness"]
    config = loss.get_config_dict()
    assert config["loss"] == "ConSERTJointLoss" and config["loss_config"]["labels"] == 3
    assert config["weight"] == 0.2 and "2012.01786" in loss.citation and "2105.11741" in loss.citation
    with pytest.raises(ValueError, match="SelfExplainingLoss has a term 'span_sharpness' already"):
        SpanSharpnessRegularizer(SelfExplainingLoss(model, 3), 0.2)(columns[:1], LABELS)


def test_the_regularizer_in_evaluation(span_model: Callable[..., SentenceTransformer], sentences: list[str]) -> None:
    model = span_model().eval()
    loss = SpanSharpnessRegularizer(CosineSimilarityLoss(model), 0.5)
    columns = [model.preprocess(sentences[:6]), model.preprocess(sentences[30:36])]
    with torch.no_grad():
        term = loss([dict(column) for column in columns], torch.rand(6))["span_sharpness"]
    assert term.item() == pytest.approx(-0.5 * sharpness_oracle(model, *columns), rel=1e-5)
    assert "span_sharpness" not in model(columns[0])


def test_the_regularizer_refuses_what_it_cannot_train(
    span_model: Callable[..., SentenceTransformer], model: SentenceTransformer, sentences: list[str]
) -> None:
    own = span_model()
    columns = [own.preprocess(sentences[:6]), own.preprocess(sentences[30:36])]
    for inner in (CachedMultipleNegativesRankingLoss(own, mini_batch_size=2), MegaBatchMarginLoss(own)):
        with pytest.raises(ValueError, match=f"{type(inner).__name__}, which embeds texts without gradients"):
            SpanSharpnessRegularizer(inner, 0.5)([dict(column) for column in columns], LABELS)

    class Twice(nn.Module):
        model = own

        def forward(self, features: Any, labels: Any) -> Any:
            with torch.no_grad():
                self.model(dict(features[0]))
            return self.model(dict(features[0]))["sentence_embedding"].sum()

    with pytest.raises(ValueError, match="Twice embeds texts without gradients"):
        SpanSharpnessRegularizer(Twice(), 0.5)([dict(column) for column in columns])
    with pytest.raises(ValueError, match="cannot wrap a loss with an AdversarialPerturbation"):
        SpanSharpnessRegularizer(ConSERTLoss(own, ("none", "adversarial:0.5")), 0.5)
    with pytest.raises(ValueError, match="one SpanPooling, but has 0"):
        SpanSharpnessRegularizer(CoSENTLoss(model), 0.5)
    with pytest.raises(TypeError, match=r"model at loss\.model, got Linear"):
        SpanSharpnessRegularizer(nn.Linear(2, 2), 0.5)
    with pytest.raises(ValueError, match=r"weight must be at least 0, got -0\.5"):
        SpanSharpnessRegularizer(CoSENTLoss(own), -0.5)


def test_the_regularizer_leaves_no_hook_after_an_exception(span_model: Callable[..., SentenceTransformer]) -> None:
    class Broken(nn.Module):
        def __init__(self, model: SentenceTransformer, error: bool) -> None:
            super().__init__()
            self.model, self.error = model, error

        def forward(self, features: Any, labels: Any) -> Any:
            self.model(features[0])
            if self.error:
                raise RuntimeError("broken")
            return [1]

    model = span_model()
    batch = model.preprocess(["a cat"])
    for error, kind, message in ((True, RuntimeError, "broken"), (False, TypeError, "but Broken returned list")):
        with pytest.raises(kind, match=message):
            SpanSharpnessRegularizer(Broken(model, error), 1.0)([dict(batch)])
        assert not SpanPooling.of(model)._forward_hooks and not SpanPooling.of(model).return_spans
