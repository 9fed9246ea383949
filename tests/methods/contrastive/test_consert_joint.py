"""The joint loss: its two terms in plain loops, its adversarial views, its head."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from test_consert import FIXED, HalfCut
from test_consert import oracle as contrastive_oracle
from torch import Tensor

from st_plugins.augment import AdversarialPerturbation, NoAugmentation, augmented
from st_plugins.core.dropout import without_dropout
from st_plugins.losses import ConSERTJointLoss, ConSERTLoss

LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


def batch(model: SentenceTransformer, sentences: list[str]) -> list[dict[str, Any]]:
    return [model.preprocess(sentences[:6]), model.preprocess(sentences[30:36])]


def classification_oracle(loss: ConSERTJointLoss, u: Tensor, v: Tensor, labels: Tensor) -> float:
    """Features, logits and cross-entropy, one number after the other."""
    weight, bias = loss.head.weight.double().tolist(), loss.head.bias.double().tolist()
    total = 0.0
    for x, y, label in zip(u.double().tolist(), v.double().tolist(), labels.tolist(), strict=True):
        features = x + y + [abs(p - q) for p, q in zip(x, y, strict=True)]
        if loss.add_max_square:
            features += [max(p, q) ** 2 for p, q in zip(x, y, strict=True)]
        logits = [
            sum(w * f for w, f in zip(row, features, strict=True)) + b for row, b in zip(weight, bias, strict=True)
        ]
        total += math.log(sum(math.exp(logit) for logit in logits)) - logits[label]
    return total / len(labels)


@pytest.mark.parametrize("add_max_square", [False, True])
def test_both_terms_are_their_formulas(model: SentenceTransformer, sentences: list[str], add_max_square: bool) -> None:
    model.train()
    columns = batch(model, sentences)
    loss = ConSERTJointLoss(model, 3, FIXED, 0.3, 0.2, add_max_square, encoder_dropout=False)
    terms = loss(columns, LABELS)
    with augmented(model, FIXED), without_dropout(model):
        u, v = (model(column)["sentence_embedding"].detach().unflatten(0, (2, -1)) for column in columns)
    assert list(terms) == ["classification", "contrastive"]
    assert terms["classification"].item() == pytest.approx(classification_oracle(loss, u[0], v[0], LABELS), rel=1e-5)
    expected = 0.3 * (contrastive_oracle(*u, 0.2) + contrastive_oracle(*v, 0.2))
    assert terms["contrastive"].item() == pytest.approx(expected, rel=1e-5)


def test_the_classifier_sees_the_first_view(model: SentenceTransformer, sentences: list[str]) -> None:
    model.train()
    columns = batch(model, sentences)
    loss = ConSERTJointLoss(model, views=FIXED[::-1], encoder_dropout=False)
    with augmented(model, [HalfCut()]), without_dropout(model):
        u, v = (model(column)["sentence_embedding"].detach() for column in columns)
    value = loss(columns, LABELS)["classification"].item()
    assert value == pytest.approx(classification_oracle(loss, u, v, LABELS), rel=1e-5)


def test_adversarial_views_follow_the_supervised_gradient(model: SentenceTransformer, sentences: list[str]) -> None:
    model.train()
    columns = batch(model, sentences)
    for norm in (1e-3, 1e-2):
        loss = ConSERTJointLoss(model, views=(AdversarialPerturbation(norm), NoAugmentation()), encoder_dropout=False)
        with without_dropout(model), augmented(model, [NoAugmentation()]) as pass_:
            u, v = (model(column)["sentence_embedding"] for column in columns)
        weight, bias = loss.head.weight, loss.head.bias
        logits = torch.cat([u, v, (u - v).abs()], dim=1) @ weight.T + bias
        before = (logits.logsumexp(dim=1) - logits.gather(1, LABELS[:, None])[:, 0]).mean()
        gradients = torch.autograd.grad(before, pass_.token_embeddings)
        slope = norm * sum(g.norm(dim=2).sum().item() for g in gradients)  # a step of this length at every token
        rise = loss(columns, LABELS)["classification"].item() - before.item()
        assert 0 < rise == pytest.approx(slope, rel=0.1)
    assert all(parameter.grad is None for parameter in loss.parameters())
    contrastive = ConSERTLoss(model, loss.views, encoder_dropout=False)
    theirs, ours = (other._adversarial_steps(model, columns, LABELS, loss.views)[0] for other in (contrastive, loss))
    assert theirs is not None and ours is not None and not torch.allclose(theirs, ours)  # labels make a difference


def test_gradient_caching_gives_the_gradients_of_the_whole_batch(
    model: SentenceTransformer, sentences: list[str]
) -> None:
    model.train()
    columns = batch(model, sentences)
    found: list[list[Tensor]] = []
    head = None
    for size in (None, 4):
        loss = ConSERTJointLoss(model, views=FIXED, mini_batch_size=size, encoder_dropout=False)
        head = loss.head.state_dict() if head is None else head
        loss.head.load_state_dict(head)
        torch.stack(list(loss(columns, LABELS).values())).sum().backward()
        found.append([p.grad.clone() for p in loss.parameters() if p.grad is not None])
        loss.zero_grad()
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5 * max(1.0, float(left.abs().max())), rtol=0)


def test_the_head_can_be_kept_and_its_shape_is_checked(
    make_model: Callable[..., SentenceTransformer], tmp_path: Path
) -> None:
    first, second = ConSERTJointLoss(make_model()), ConSERTJointLoss(make_model())
    assert not torch.equal(first.head.weight, second.head.weight)
    first.save_head(tmp_path)
    second.load_head(tmp_path)
    assert torch.equal(first.head.weight, second.head.weight) and torch.equal(first.head.bias, second.head.bias)
    record = json.loads((tmp_path / "loss_head.json").read_text())
    assert record["loss"] == "ConSERTJointLoss" and record["shapes"] == {"bias": [3], "weight": [3, 48]}
    wide = ConSERTJointLoss(make_model(), add_max_square=True)
    kept = wide.head.weight.clone()
    with pytest.raises(ValueError, match=r"shapes .*\(3, 48\).* has .*\(3, 64\)"):
        wide.load_head(tmp_path)
    assert torch.equal(wide.head.weight, kept)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels are missing.*ConSERTLoss"),
        (torch.tensor([0, 1, 2, 3, 0, 1]), r"from 0 to 2.*\[0, 1, 2, 3, 0, 1\]"),
        (torch.tensor([0, 1, 2, -1, 0, 1]), "drop unlabelled rows"),
        (torch.rand(6), "integers from 0 to 2"),
        (torch.zeros(6, 3, dtype=torch.long), "one for each row"),
    ],
)
def test_bad_labels_are_named(
    model: SentenceTransformer, sentences: list[str], labels: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ConSERTJointLoss(model.train())(batch(model, sentences), labels)


def test_bad_arguments_and_columns_are_named(model: SentenceTransformer, sentences: list[str]) -> None:
    with pytest.raises(ValueError, match="names of at least two classes, or their number, got 1"):
        ConSERTJointLoss(model, 1)
    with pytest.raises(ValueError, match=r"weight must be at least 0, got -0\.1"):
        ConSERTJointLoss(model, weight=-0.1)
    with pytest.raises(ValueError, match="two text columns"):
        ConSERTJointLoss(model.train())(batch(model, sentences)[:1], LABELS)


def test_configuration_rebuilds_the_loss(model: SentenceTransformer) -> None:
    loss = ConSERTJointLoss(model, 4, ("none", "token-cutoff:0.2"), 0.3, 0.2, True, mini_batch_size=8)
    config = json.loads(json.dumps(loss.get_config_dict()))
    assert ConSERTJointLoss(model, **config).get_config_dict() == config and config["labels"] == 4
    named = ConSERTJointLoss(model, ["no", "maybe", "yes"])
    assert named.num_labels == 3 and named.get_config_dict()["labels"] == ["no", "maybe", "yes"]
    with pytest.raises(ValueError, match="at least two different names"):
        ConSERTJointLoss(model, ["no", "no"])
