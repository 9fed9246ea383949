"""AnchoredLoss: the formula against loops, what it keeps, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    CoSENTLoss,
    MatryoshkaLoss,
)
from torch import nn

from st_plugins.losses import AnchoredLoss, ConSERTLoss, RDropLoss, SimCSELoss, anchor
from st_plugins.miniature import corpus, untrained_encoder


def oracle(embeddings: torch.Tensor, given: torch.Tensor) -> float:
    """The mean over views and ordered pairs of different texts, pair by pair."""

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))

    total, count = 0.0, 0
    for view in embeddings:
        for i in range(len(given)):
            for j in range(len(given)):
                if i != j:
                    total += (cosine(view[i], view[j]) - cosine(given[i], given[j])) ** 2
                    count += 1
    return total / count


def batch(model: SentenceTransformer, seed: int = 0) -> dict[str, torch.Tensor]:
    return model.preprocess(corpus(6, seed=seed))


def test_anchor_is_the_formula_and_does_not_see_rotations_and_scales() -> None:
    generator = torch.Generator().manual_seed(0)
    views, given = torch.randn(2, 5, 4, generator=generator), torch.randn(5, 7, generator=generator)
    assert anchor(views, given).item() == pytest.approx(oracle(views, given), abs=1e-6)
    turned = torch.linalg.qr(torch.randn(7, 7, generator=generator))[0]
    assert anchor(3 * given @ turned, given).item() < 1e-12


def test_one_text_has_no_pair() -> None:
    assert anchor(torch.ones(2, 1, 3), torch.ones(1, 3)).item() == 0


def test_half_precision_is_computed_in_single() -> None:
    generator = torch.Generator().manual_seed(1)
    views, given = torch.randn(2, 5, 4, generator=generator), torch.randn(5, 4, generator=generator)
    found = anchor(views.half(), given.half())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(oracle(views.half(), given.half()), abs=1e-5)


@pytest.mark.parametrize("kind", ["consert", "simcse pairs", "cosent", "rdrop"])
def test_term_is_that_of_what_the_wrapped_loss_embeds(kind: str) -> None:
    model = untrained_encoder().train()
    inner = {
        "consert": lambda: ConSERTLoss(model),
        "simcse pairs": lambda: SimCSELoss(model, mlp_head=False),
        "cosent": lambda: CoSENTLoss(model),
        "rdrop": lambda: RDropLoss(CoSENTLoss(model)),
    }[kind]()
    loss = AnchoredLoss(inner, weight=2.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    columns = [batch(model)] if kind == "consert" else [batch(model), batch(model, 1)]
    given = [loss._given[0](dict(features))["sentence_embedding"] for features in columns]
    outputs: list[torch.Tensor] = []
    handle = model.register_forward_hook(lambda module, args, output: outputs.append(output["sentence_embedding"]))
    labels = None if kind in ("consert", "simcse pairs") else torch.rand(6)
    terms = loss(columns, labels)
    handle.remove()
    seen = [oracle(output.detach().view(-1, 6, 64), given[place % len(given)]) for place, output in enumerate(outputs)]
    assert len(seen) >= len(columns)
    assert terms["anchor"].item() == pytest.approx(2.0 * sum(seen) / len(seen), abs=1e-6)
    assert not model._forward_hooks


def test_weights_of_the_copy_are_neither_trained_nor_stored_nor_changed() -> None:
    model = untrained_encoder().train()
    loss = AnchoredLoss(ConSERTLoss(model))
    names = {name for name, _ in loss.named_parameters()}
    assert all(name.startswith("loss.model.") for name in names)
    before = {name: tensor.clone() for name, tensor in loss._given[0].state_dict().items()}
    optimizer = torch.optim.SGD(loss.parameters(), 0.1)
    sum(loss([batch(model)]).values()).backward()
    optimizer.step()
    assert all((before[name] == tensor).all() for name, tensor in loss._given[0].state_dict().items())
    assert any((before[name] != tensor).any() for name, tensor in model.state_dict().items())


def test_similarities_stay_nearer_with_it() -> None:
    texts = corpus(24)

    def moved(weight: float) -> float:
        torch.manual_seed(0)
        model = untrained_encoder().train()
        before = model.encode(texts, convert_to_tensor=True)
        model.train()  # encode leaves it in evaluation mode
        loss = AnchoredLoss(ConSERTLoss(model, temperature=0.05), weight=weight)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        for _ in range(8):
            optimizer.zero_grad()
            sum(loss([model.preprocess(texts)]).values()).backward()
            optimizer.step()
        model.eval()
        return anchor(model.encode(texts, convert_to_tensor=True), before).item()

    assert moved(100.0) < 0.5 * moved(0.0)


def test_losses_that_see_a_batch_in_parts_are_refused() -> None:
    model = untrained_encoder().train()
    with pytest.raises(ValueError, match="in parts"):
        AnchoredLoss(CachedMultipleNegativesRankingLoss(model))
    with pytest.raises(ValueError, match="mini_batch_size=None"):
        AnchoredLoss(ConSERTLoss(model, mini_batch_size=2))


@pytest.mark.parametrize(
    ("weight", "error"),
    [(-1.0, ValueError), (math.nan, ValueError), (math.inf, ValueError), ("1", TypeError), (None, TypeError)],
)
def test_a_weight_that_is_none_is_refused(weight: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="weight must be"):
        AnchoredLoss(ConSERTLoss(untrained_encoder().train()), weight=weight)


def test_matryoshka_inside_is_anchored_in_every_dimension() -> None:
    model = untrained_encoder().eval()
    loss = AnchoredLoss(MatryoshkaLoss(model, CoSENTLoss(model), [64, 32]), weight=2.0)
    columns = [batch(model), batch(model, 1)]
    with torch.no_grad():
        given = [model(dict(features))["sentence_embedding"] for features in columns]
        terms = loss(columns, torch.rand(6))
    wanted = sum(oracle(old[None, :, :width], old) for old in given for width in (64, 32)) / 4
    assert terms["anchor"].item() == pytest.approx(2.0 * wanted, abs=1e-6) and wanted > 1e-4


class _Blind(nn.Module):
    """A loss that does not look at its texts."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, sentence_features: Any, labels: Any = None) -> torch.Tensor:
        return next(self.model.parameters()).sum()


def test_a_loss_that_embeds_nothing_is_refused() -> None:
    model = untrained_encoder().train()
    with pytest.raises(ValueError, match="_Blind did not embed"):
        AnchoredLoss(_Blind(model))([batch(model)])


def test_matryoshka_around_is_refused() -> None:
    model = untrained_encoder().train()
    loss = MatryoshkaLoss(model, AnchoredLoss(CoSENTLoss(model)), [64, 32])
    with pytest.raises(ValueError, match="AnchoredLoss"):
        loss([batch(model), batch(model, 1)], torch.rand(6))
