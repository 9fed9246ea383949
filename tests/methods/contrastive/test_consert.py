"""ConSERT's loss against the paper's formula in plain loops, and the ways of computing it against each other."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from st_plugins.augment import (
    AdversarialPerturbation,
    EmbeddingDropout,
    FeatureCutoff,
    NoAugmentation,
    TokenCutoff,
    TokenShuffle,
    View,
    augmented,
)
from st_plugins.core.dropout import dropout_probabilities, without_dropout
from st_plugins.losses import ConSERTLoss, nt_xent
from st_plugins.methods.contrastive.gradient_cache import mini_batches


@dataclass(frozen=True)
class HalfCut(View):
    """A view without randomness: the first half of the features is zero."""

    name: ClassVar[str] = "half-cut"

    def augment(self, embeddings: Tensor, attention_mask: Tensor, special_tokens: Tensor) -> Tensor:
        half = torch.arange(embeddings.shape[-1]) < embeddings.shape[-1] // 2
        return embeddings.masked_fill(half, 0.0)


FIXED = (NoAugmentation(), HalfCut())


def cosine(x: list[float], y: list[float]) -> float:
    return sum(p * q for p, q in zip(x, y, strict=True)) / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))


def oracle(a: Tensor, b: Tensor, temperature: float) -> float:
    """Equation by equation: 2N vectors, one positive each, everything but itself in the denominator."""
    vectors = a.double().tolist() + b.double().tolist()
    count = len(a)
    total = 0.0
    for i in range(2 * count):
        j = (i + count) % (2 * count)
        below = sum(math.exp(cosine(vectors[i], vectors[k]) / temperature) for k in range(2 * count) if k != i)
        total -= math.log(math.exp(cosine(vectors[i], vectors[j]) / temperature) / below)
    return total / (2 * count)


def reference(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """The sum of two directions, as the authors' code has it."""
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    target, far = torch.arange(len(a)), 1e9 * torch.eye(len(a), dtype=a.dtype)
    ce = nn.functional.cross_entropy
    first = ce(torch.cat([a @ b.T / temperature, a @ a.T / temperature - far], dim=1), target)
    return first + ce(torch.cat([b @ a.T / temperature, b @ b.T / temperature - far], dim=1), target)


def gradients(loss: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
    assert any(bool(gradient.abs().max() > 1e-6) for gradient in found.values())
    loss.zero_grad()
    return found


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert left.keys() == right.keys()
    for name, gradient in left.items():
        scale = max(1.0, float(right[name].abs().max()))
        assert float((gradient - right[name]).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("count", [2, 7])
def test_nt_xent_is_the_formula_of_the_paper_and_half_of_the_published_code(count: int, temperature: float) -> None:
    a, b = torch.randn(2, count, 5, dtype=torch.float64) * 3
    assert float(nt_xent(a, b, temperature)) == pytest.approx(oracle(a, b, temperature), rel=1e-12)
    assert float(nt_xent(a.float(), b.float(), temperature)) == pytest.approx(oracle(a, b, temperature), rel=1e-5)
    assert float(nt_xent(b, a, temperature)) == pytest.approx(float(nt_xent(a, b, temperature)), rel=1e-12)
    assert float(reference(a, b, temperature)) == pytest.approx(2 * oracle(a, b, temperature), rel=1e-9)


def test_nt_xent_of_known_vectors() -> None:
    a = torch.eye(6)
    assert float(nt_xent(a, a, 0.1)) == pytest.approx(math.log(1 + 10 * math.exp(-10)), abs=1e-6)
    ones = torch.ones(6, 4)
    assert float(nt_xent(ones, 2 * ones, 0.1)) == pytest.approx(math.log(11))


def test_nt_xent_of_some_rows_averages_to_that_of_all() -> None:
    a, b = torch.randn(2, 6, 5, dtype=torch.float64)
    parts = [nt_xent(a, b, 0.1, slice(begin, begin + 2)) for begin in (0, 2, 4)]
    assert float(sum(parts)) / 3 == pytest.approx(oracle(a, b, 0.1), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nt_xent_is_finite_and_accurate_in_half_precision(dtype: torch.dtype) -> None:
    a, b = (100 * torch.randn(2, 8, 16)).to(dtype).requires_grad_()
    expected = oracle(a, b, 0.05)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = nt_xent(a, b, 0.05)
        assert value.dtype == torch.float32 and value.item() == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(value, a)
    assert gradient.dtype == dtype and gradient.isfinite().all() and gradient.abs().max() > 0


def test_nt_xent_with_zero_vectors_is_finite() -> None:
    a = torch.zeros(3, 4, requires_grad=True)
    value = nt_xent(a, torch.randn(3, 4))
    value.backward()
    assert value.isfinite() and a.grad is not None and a.grad.isfinite().all()


def test_nt_xent_names_bad_input() -> None:
    with pytest.raises(ValueError, match=r"batch has 1 sentence.*larger batches"):
        nt_xent(torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"one shape \(N, d\), got \(2, 3\) and \(3, 3\)"):
        nt_xent(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        nt_xent(torch.ones(2, 3), torch.ones(2, 3), 0)


def test_the_loss_is_nt_xent_of_the_two_views(model: SentenceTransformer, sentences: list[str]) -> None:
    model.train()
    features = model.preprocess(sentences[:5])
    loss = ConSERTLoss(model, (FeatureCutoff(0.3), (TokenShuffle(), TokenCutoff(0.2))))
    torch.manual_seed(3)
    value = loss([features])
    torch.manual_seed(3)
    with augmented(model, loss.views):
        a, b = model(features)["sentence_embedding"].detach().chunk(2)
    assert value.item() == pytest.approx(oracle(a, b, 0.1), rel=1e-5)
    assert set(features) == set(model.preprocess(sentences[:5]))


def test_columns_add_up_and_are_no_negatives_of_each_other(model: SentenceTransformer, sentences: list[str]) -> None:
    model.train()
    columns = [model.preprocess(sentences[:4]), model.preprocess(sentences[20:24])]
    loss = ConSERTLoss(model, FIXED, encoder_dropout=False)
    together, single = loss(columns), [loss([column]) for column in columns]
    assert together.item() == pytest.approx(sum(value.item() for value in single), rel=1e-5)


def test_encoder_dropout_is_off_in_the_forward_pass_only(model: SentenceTransformer, sentences: list[str]) -> None:
    model.train()
    features = model.preprocess(sentences[:4])
    without, with_ = ConSERTLoss(model, FIXED, encoder_dropout=False), ConSERTLoss(model, FIXED)
    assert without([features]).item() == without([features]).item() and len(dropout_probabilities(model)) == 7
    assert with_([features]).item() != with_([features]).item()


@pytest.mark.parametrize("size", [1, 2, 3, 8, 100])
def test_gradient_caching_gives_the_gradients_of_the_whole_batch(
    model: SentenceTransformer, sentences: list[str], size: int
) -> None:
    model.train()
    texts = [*sentences[:6], "a", "the man is not eating bread in the house at the park with the girl ."]
    columns = [model.preprocess(texts), model.preprocess(texts[::-1])]
    values = []
    found = []
    for mini_batch_size in (None, size):
        loss = ConSERTLoss(model, FIXED, encoder_dropout=False, mini_batch_size=mini_batch_size)
        value = loss(columns)
        value.backward()
        values.append(value.item())
        found.append(gradients(loss))
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert_close(*found)


@pytest.mark.parametrize("autocast", [False, True])
def test_gradient_caching_replays_views_and_dropout(
    model: SentenceTransformer, sentences: list[str], autocast: bool
) -> None:
    model.train()
    features = model.preprocess(sentences[:7])
    loss = ConSERTLoss(model, ((FeatureCutoff(0.3), EmbeddingDropout(0.2)), TokenShuffle()), mini_batch_size=3)
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss([features])
    after = torch.get_rng_state()
    value.backward()
    assert torch.equal(torch.get_rng_state(), after)  # the recomputation gives the random state back
    cached = gradients(loss)
    torch.manual_seed(5)
    embeddings = []
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for part in mini_batches(features, 3):
            with augmented(model, loss.views):
                embeddings.append(model(part)["sentence_embedding"].unflatten(0, (2, -1)))
        expected = nt_xent(*torch.cat(embeddings, dim=1))
    expected.backward()
    assert value.item() == expected.item()
    assert_close(cached, gradients(loss), 1e-3 if autocast else 1e-6)


def test_gradient_caching_keeps_embeddings_only(model: SentenceTransformer, sentences: list[str]) -> None:
    model.train()
    features = model.preprocess(sentences)

    def kept(mini_batch_size: int | None) -> int:
        size = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal size
            size += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            ConSERTLoss(model, mini_batch_size=mini_batch_size)([features])
        return size

    assert kept(6) < kept(None) / 5


def test_mini_batches_lose_the_padding_at_their_end_only() -> None:
    mask = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1]])
    features = {"attention_mask": mask, "input_ids": mask + 5, "prompt_length": 2, "sizes": torch.ones(3, 7)}
    first, second = mini_batches(features, 2)
    assert first["input_ids"].tolist() == [[5, 6, 6], [5, 6, 5]] and first["sizes"].shape == (2, 7)
    assert second["input_ids"].shape == (1, 4) and second["prompt_length"] == 2


def test_gradients_reach_the_word_embeddings_through_both_views(
    model: SentenceTransformer, sentences: list[str]
) -> None:
    model.train()
    features = model.preprocess(sentences[:4])
    words: Any = model[0].model.embeddings.word_embeddings.weight  # type: ignore[union-attr]
    loss = ConSERTLoss(model, FIXED, encoder_dropout=False)
    for view in (0, 1):
        (embeddings,) = loss.embed([features])
        parts = [part if index == view else part.detach() for index, part in enumerate(embeddings)]
        (gradient,) = torch.autograd.grad(nt_xent(*parts), words)
        used = features["input_ids"].unique()
        assert (gradient[used].norm(dim=1) > 0).all()


def test_adversarial_views_follow_the_contrastive_gradient(model: SentenceTransformer, sentences: list[str]) -> None:
    model.train()
    features = model.preprocess(sentences[:6])
    plain = ConSERTLoss(model, (NoAugmentation(), HalfCut()), encoder_dropout=False)
    before = plain([features]).item()
    for norm in (1e-3, 1e-2):
        loss = ConSERTLoss(
            model, (NoAugmentation(), (HalfCut(), AdversarialPerturbation(norm))), encoder_dropout=False
        )
        (step,) = loss._adversarial_steps(model, [features], None, loss.views)
        assert step is not None and not step[:6].any()
        real = features["attention_mask"].bool()
        torch.testing.assert_close(step[6:].norm(dim=2)[real], torch.full((int(real.sum()),), norm), rtol=1e-4, atol=0)
        assert not step[6:][~real].any()
        rise = loss([features]).item() - before
        with augmented(model, loss.views) as pass_, without_dropout(model):
            value = nt_xent(*model(features)["sentence_embedding"].chunk(2))
        slope = (torch.autograd.grad(value, pass_.token_embeddings)[0] * step).sum()
        assert 0 < rise == pytest.approx(float(slope), rel=0.2)


def test_the_inner_backward_leaves_parameters_alone_and_both_passes_draw_the_same(
    model: SentenceTransformer, sentences: list[str]
) -> None:
    model.train()
    features = model.preprocess(sentences[:4])
    views = (TokenShuffle(), (FeatureCutoff(0.3), AdversarialPerturbation(0.0)))
    torch.manual_seed(2)
    value = ConSERTLoss(model, views)([features])
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.manual_seed(2)
    assert ConSERTLoss(model, (TokenShuffle(), FeatureCutoff(0.3)))([features]).item() == value.item()  # norm 0
    model[0].model.embeddings.requires_grad_(False)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="embedding layer is frozen"):
        ConSERTLoss(model, views)([features])


def test_in_evaluation_mode_the_loss_is_that_of_training_and_repeats(
    model: SentenceTransformer, sentences: list[str]
) -> None:
    features = model.preprocess(sentences[:4])
    loss = ConSERTLoss(model, (NoAugmentation(), AdversarialPerturbation(0.1)))
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    with torch.no_grad():
        first, second = loss([features]).item(), loss([features]).item()
    assert first == second > 0 and torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    torch.manual_seed(0)
    assert loss.train()([features]).item() == first
    with pytest.raises(ValueError, match=r"model.train\(\)"):
        loss.eval()([features])


def test_gradient_checkpointing(model: SentenceTransformer, sentences: list[str]) -> None:
    features = model.preprocess(sentences[:6])
    model.train()
    plain = copy.deepcopy(model)
    encoder: Any = model[0].model
    # The name changes in the course of transformers 5.
    getattr(encoder, "activation_checkpointing_enable", encoder.gradient_checkpointing_enable)()
    found = []
    for checked, size in ((plain, None), (model, None), (model, 4), (plain, 4)):
        loss = ConSERTLoss(checked, (FeatureCutoff(0.3), TokenShuffle()), mini_batch_size=size)
        torch.manual_seed(1)
        loss([features]).backward()
        found.append(gradients(loss))
    assert_close(found[0], found[1], 1e-6)
    assert_close(found[2], found[3], 1e-6)
    loss = ConSERTLoss(model, encoder_dropout=False)
    with pytest.raises(ValueError, match="without_dropout"):
        loss([features])
    with without_dropout(model):
        loss([features]).backward()


def test_configuration_rebuilds_the_loss(model: SentenceTransformer) -> None:
    views = (FeatureCutoff(0.1), (TokenCutoff(0.2, include_special_tokens=False), TokenShuffle()))
    loss = ConSERTLoss(model, views, 0.2, mini_batch_size=4, encoder_dropout=False)
    config = json.loads(json.dumps(loss.get_config_dict()))
    again = ConSERTLoss(model, **config)
    assert again.views == loss.views == ((FeatureCutoff(0.1),), views[1])
    assert again.get_config_dict() == loss.get_config_dict() and again.temperature == 0.2
    assert ConSERTLoss(model, ("feature-cutoff:0.1", "none")).views == ((FeatureCutoff(0.1),), (NoAugmentation(),))
    assert "2105.11741" in loss.citation


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"views": (TokenShuffle(),)}, ValueError, "two views, got 1"),
        ({"views": (TokenShuffle(),) * 3}, ValueError, "two views, got 3"),
        ({"views": ()}, ValueError, "two views, got 0"),
        ({"views": (TokenShuffle(), ())}, ValueError, "a view is empty"),
        ({"views": ("shufle", "none")}, ValueError, "unknown view 'shufle'; known are"),
        ({"views": ({"view": "shufle"}, "none")}, ValueError, "unknown view 'shufle'; known are"),
        ({"views": "token-shuffle"}, TypeError, "a sequence with one entry"),
        ({"views": TokenShuffle()}, TypeError, "a sequence with one entry"),
        ({"views": (3, TokenShuffle())}, TypeError, "must be a View"),
        ({"temperature": -1.0}, ValueError, "temperature must be above 0, got -1"),
        ({"mini_batch_size": 0}, ValueError, "mini_batch_size must be at least 1"),
        ({"views": (AdversarialPerturbation(), "none"), "mini_batch_size": 4}, ValueError, "mini_batch_size=None"),
    ],
)
def test_bad_arguments_are_named(
    model: SentenceTransformer, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ConSERTLoss(model, **arguments)


def test_bad_batches_and_models_are_named(model: SentenceTransformer) -> None:
    model.train()
    with pytest.raises(ValueError, match="batch has 1 sentence"):
        ConSERTLoss(model)([model.preprocess(["a cat"])])
    with pytest.raises(ValueError, match="no text column"):
        ConSERTLoss(model)([])
    loss = ConSERTLoss(model)
    loss.model = nn.DataParallel(model)
    with pytest.raises(ValueError, match="torchrun"):
        loss([model.preprocess(["a cat", "a dog"])])
    loss.model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="got Linear"):
        loss([model.preprocess(["a cat", "a dog"])])


def test_texts_of_no_or_one_token_work(model: SentenceTransformer) -> None:
    model.train()
    value = ConSERTLoss(model)([model.preprocess(["", "cat", "", "a big dog"])])
    assert value.isfinite()


def test_identical_views_are_warned_about(model: SentenceTransformer, caplog: pytest.LogCaptureFixture) -> None:
    ConSERTLoss(model, ("none", "none"))
    assert not caplog.records
    ConSERTLoss(model, ("none", "none"), encoder_dropout=False)
    assert "will be identical" in caplog.text
