"""SimCSE's loss against its formula in plain loops, and the loss class against the function."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_plugins.core.dropout import without_dropout
from st_plugins.losses import ConSERTJointLoss, SimCSELoss, simcse_loss
from st_plugins.methods.contrastive.gradient_cache import mini_batches


def cosine(x: list[float], y: list[float]) -> float:
    return sum(p * q for p, q in zip(x, y, strict=True)) / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))


def oracle(
    anchors: Tensor, positives: Tensor, negatives: Tensor | None, temperature: float, weight: float = 0.0
) -> float:
    """Every anchor's term, summand by summand."""
    h, p = anchors.double().tolist(), positives.double().tolist()
    n = [] if negatives is None else negatives.double().tolist()
    total = 0.0
    for i in range(len(h)):
        below = 0.0
        for j in range(len(p)):
            below += math.exp(cosine(h[i], p[j]) / temperature)
        for j in range(len(n)):
            below += math.exp(cosine(h[i], n[j]) / temperature) * (math.exp(weight) if i == j else 1.0)
        total -= math.log(math.exp(cosine(h[i], p[i]) / temperature) / below)
    return total / len(h)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("weight", [0.0, 0.7, -0.5])
def test_simcse_loss_is_the_formula(temperature: float, weight: float) -> None:
    a, p, n = torch.randn(3, 6, 5, dtype=torch.float64)
    assert simcse_loss(a, p, None, temperature).item() == pytest.approx(oracle(a, p, None, temperature), rel=1e-12)
    value = simcse_loss(a, p, n, temperature, weight)
    assert value.item() == pytest.approx(oracle(a, p, n, temperature, weight), rel=1e-12)


def test_simcse_loss_of_orthonormal_vectors_and_in_one_direction() -> None:
    assert simcse_loss(torch.eye(6), torch.eye(6)).item() == pytest.approx(math.log(1 + 5 * math.exp(-20)), abs=1e-6)
    a, p = torch.randn(2, 5, 3)
    assert simcse_loss(a, p).item() != pytest.approx(simcse_loss(p, a).item(), rel=1e-3)


def test_offset_picks_the_own_positives_among_all() -> None:
    a, p, n = torch.randn(3, 6, 5, dtype=torch.float64)
    parts = [simcse_loss(a[begin : begin + 2], p, n, 0.05, 0.3, begin).item() for begin in (0, 2, 4)]
    assert sum(parts) / 3 == pytest.approx(oracle(a, p, n, 0.05, 0.3), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_accurate(dtype: torch.dtype) -> None:
    a, p, n = (100 * torch.randn(3, 8, 16)).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = simcse_loss(a, p, n, 0.05, 0.5)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(oracle(a, p, n, 0.05, 0.5), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, a)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_bad_tensors_are_named() -> None:
    a = torch.ones(3, 4)
    with pytest.raises(ValueError, match="batch has 1 sentence"):
        simcse_loss(a[:1], a[:1])
    assert simcse_loss(a[:1], a[:1], -a[:1]).isfinite()  # one hard negative is enough
    with pytest.raises(ValueError, match="do not fit"):
        simcse_loss(a, torch.ones(3, 5))
    with pytest.raises(ValueError, match="do not fit"):
        simcse_loss(a, a, a[:2])
    with pytest.raises(ValueError, match="offset 1 and 3 anchors"):
        simcse_loss(a, a, offset=1)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        simcse_loss(a, a, temperature=0)


@pytest.mark.parametrize("mlp_head", [True, False])
def test_one_column_is_two_dropout_passes_in_one(
    model: SentenceTransformer, sentences: list[str], mlp_head: bool
) -> None:
    model.train()
    features = model.preprocess(sentences[:5])
    loss = SimCSELoss(model, mlp_head=mlp_head)
    torch.manual_seed(4)
    value = loss([features])
    torch.manual_seed(4)
    twice = {key: torch.cat([v, v]) if isinstance(v, Tensor) else v for key, v in features.items()}
    embeddings = model(twice)["sentence_embedding"].detach()
    assert not torch.equal(*embeddings.chunk(2))
    if mlp_head:
        embeddings = torch.tanh(embeddings @ loss.head[0].weight.T + loss.head[0].bias).detach()
    assert value.item() == pytest.approx(oracle(*embeddings.chunk(2), None, 0.05), rel=1e-5)


def test_two_and_three_columns_are_positives_and_hard_negatives(
    model: SentenceTransformer, sentences: list[str]
) -> None:
    model.train()
    columns = [model.preprocess(sentences[begin : begin + 4]) for begin in (0, 10, 20)]
    loss = SimCSELoss(model, hard_negative_weight=0.4, mlp_head=False)
    with without_dropout(model):
        a, p, n = (model(dict(column))["sentence_embedding"].detach() for column in columns)
        assert loss(columns[:2]).item() == pytest.approx(oracle(a, p, None, 0.05), rel=1e-5)
        assert loss(columns).item() == pytest.approx(oracle(a, p, n, 0.05, 0.4), rel=1e-5)
    with pytest.raises(ValueError, match="dataset has 4"):
        loss([*columns, columns[0]])


def test_gradient_caching_gives_the_gradients_of_the_whole_batch(
    model: SentenceTransformer, sentences: list[str]
) -> None:
    model.train()
    columns = [model.preprocess(sentences[begin : begin + 7]) for begin in (0, 10, 20)]
    head, found = None, []
    with without_dropout(model):
        for size in (None, 3):
            loss = SimCSELoss(model, mini_batch_size=size)
            head = loss.head.state_dict() if head is None else head
            loss.head.load_state_dict(head)
            loss(columns).backward()
            found.append([p.grad.clone() for p in loss.parameters() if p.grad is not None])
            loss.zero_grad()
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5 * max(1.0, float(left.abs().max())), rtol=0)


def test_gradient_caching_replays_dropout(model: SentenceTransformer, sentences: list[str]) -> None:
    model.train()
    features = model.preprocess(sentences[:7])
    loss = SimCSELoss(model, mini_batch_size=3, mlp_head=False)
    torch.manual_seed(6)
    loss([features]).backward()
    cached = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.manual_seed(6)
    embeddings = []
    for part in mini_batches(features, 3):
        twice = {key: torch.cat([v, v]) if isinstance(v, Tensor) else v for key, v in part.items()}
        embeddings.append(model(twice)["sentence_embedding"].unflatten(0, (2, -1)))
    simcse_loss(*torch.cat(embeddings, dim=1)).backward()
    for name, gradient in cached.items():
        expected = model.get_parameter(name).grad
        assert expected is not None
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)


def test_in_evaluation_mode_dropout_acts_from_a_fixed_seed(model: SentenceTransformer, sentences: list[str]) -> None:
    features, loss = model.preprocess(sentences[:5]), SimCSELoss(model, mlp_head=False)
    state = torch.get_rng_state()
    with torch.no_grad():
        first = loss([features]).item()
        assert loss([features]).item() == first and torch.equal(torch.get_rng_state(), state)
        identical = model(dict(features))["sentence_embedding"]
    assert not model.training and first != pytest.approx(oracle(identical, identical, None, 0.05), rel=1e-3)


def test_duplicates_in_a_batch_push_each_other_away(model: SentenceTransformer) -> None:
    model.train()
    loss = SimCSELoss(model, mlp_head=False)
    value = loss([model.preprocess(["a cat", "a cat", "the man is reading"])])
    assert value.item() > 0.4  # two rows of three cannot do better than log 2 each


def test_without_dropout_there_is_a_warning(
    make_model: Callable[..., SentenceTransformer], caplog: pytest.LogCaptureFixture
) -> None:
    SimCSELoss(make_model("bert"))
    assert not caplog.records
    SimCSELoss(make_model("modernbert"))
    assert "dropout only, and that is 0" in caplog.text


def test_the_head_is_no_part_of_the_model(model: SentenceTransformer, tmp_path: Path) -> None:
    loss = SimCSELoss(model)
    assert [name for name, _ in loss.named_parameters() if not name.startswith("model.")] == [
        "head.0.weight",
        "head.0.bias",
    ]
    before = model.encode("a cat")
    model.save(str(tmp_path / "model"))
    again = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert (again.encode("a cat") == before).all() and not list(tmp_path.rglob("*head*"))


def test_the_head_can_be_kept(make_model: Callable[..., SentenceTransformer], tmp_path: Path) -> None:
    first, second = SimCSELoss(make_model()), SimCSELoss(make_model())
    first.save_head(tmp_path / "head")
    second.load_head(tmp_path / "head")
    for name, tensor in first.head.state_dict().items():
        assert torch.equal(second.head.state_dict()[name], tensor)
    with pytest.raises(FileNotFoundError, match=r"loss_head\.safetensors"):
        second.load_head(tmp_path)
    with pytest.raises(ValueError, match="is of a SimCSELoss"):
        ConSERTJointLoss(make_model()).load_head(tmp_path / "head")
    (tmp_path / "head" / "loss_head.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is damaged"):
        second.load_head(tmp_path / "head")


def test_configuration_rebuilds_the_loss(model: SentenceTransformer) -> None:
    loss = SimCSELoss(model, 0.1, 0.3, mini_batch_size=2, mlp_head=False)
    config = json.loads(json.dumps(loss.get_config_dict()))
    assert SimCSELoss(model, **config).get_config_dict() == config and "2104.08821" in loss.citation
