"""The block itself: what it promises inside, that nothing is left after it, and the passes of adversarial views."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

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

Factory = Callable[..., SentenceTransformer]
TEXTS = ["the man is playing guitar in the park .", "a dog", "two small cats are sleeping", "the boy reading a book"]
EVERY_VIEW: list[View] = [TokenShuffle(), TokenCutoff(0.3), FeatureCutoff(0.3), EmbeddingDropout(0.3)]


def no_dropout(model: SentenceTransformer) -> SentenceTransformer:
    model.train()
    for module in model.modules():
        for name in ("p", "dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def snapshot(model: SentenceTransformer) -> list[tuple[str, list[str], list[int]]]:
    """Everything a hook or a flag could have been left in."""
    return [
        (name, sorted(vars(module)), [len(value) for key, value in sorted(vars(module).items()) if "hooks" in key])
        for name, module in model.named_modules()
    ]


def embed(model: nn.Module, features: dict[str, Any]) -> Tensor:
    embeddings: Tensor = model(features)["sentence_embedding"]
    return embeddings


@pytest.fixture
def bert(make_model: Factory) -> SentenceTransformer:
    return no_dropout(make_model("bert"))


@pytest.fixture
def features(bert: SentenceTransformer) -> dict[str, Any]:
    return bert.preprocess(TEXTS)


def test_rows_are_view_major_and_features_are_left_alone(bert: SentenceTransformer, features: dict[str, Any]) -> None:
    features["extra"] = torch.arange(4)
    features["scalar"], features["other"] = torch.tensor(1.0), torch.zeros(3, 2)
    copies = {key: value.clone() if isinstance(value, Tensor) else value for key, value in features.items()}
    plain = embed(bert, dict(features))
    with augmented(bert, [FeatureCutoff(0.3), NoAugmentation(), [TokenShuffle(), TokenCutoff(0.3)]]) as views:
        output = bert(features)
    assert features.keys() == copies.keys()
    assert all(
        torch.equal(value, copies[key]) if isinstance(value, Tensor) else value == copies[key]
        for key, value in features.items()
    )
    first, second, third = output["sentence_embedding"].chunk(3)
    torch.testing.assert_close(second, plain)
    assert not torch.allclose(first, plain) and not torch.allclose(third, plain)
    assert output["extra"].tolist() == [0, 1, 2, 3] * 3
    assert output["scalar"].shape == () and output["other"].shape == (3, 2)
    assert output["attention_mask"].shape[0] == views.token_embeddings[0].shape[0] == 12


def test_parts_of_a_view_add_up(bert: SentenceTransformer, features: dict[str, Any]) -> None:
    with augmented(bert, [NoAugmentation(), (FeatureCutoff(0.5), TokenCutoff(0.5))]) as views:
        bert(features)
    clean, cut = views.token_embeddings[0].chunk(2)
    for sentence, length in enumerate(features["attention_mask"].sum(dim=1).tolist()):
        zero = cut[sentence] == 0
        columns, rows = zero.all(dim=0), zero.all(dim=1)
        assert columns.sum() == 8 and rows.sum() == length // 2
        assert torch.equal(cut[sentence][~rows][:, ~columns], clean[sentence][~rows][:, ~columns])


def test_special_tokens_can_be_kept(bert: SentenceTransformer, features: dict[str, Any]) -> None:
    ends = (features["input_ids"] == bert.tokenizer.cls_token_id) | (
        features["input_ids"] == bert.tokenizer.sep_token_id
    )
    words = features["attention_mask"].bool() & ~ends
    views: list[View] = [
        NoAugmentation(),
        TokenCutoff(0.9, include_special_tokens=False),
        EmbeddingDropout(0.9, include_special_tokens=False),
    ]
    with augmented(bert, views) as inside:
        bert(features)
    clean, tokens, dropped = inside.token_embeddings[0].chunk(3)
    assert torch.equal(tokens[ends], clean[ends]) and torch.equal(dropped[ends], clean[ends])
    counts = words.sum(dim=1).tolist()
    assert (tokens == 0).all(dim=2).sum(dim=1).tolist() == [int(n * 0.9) for n in counts]
    assert (dropped == 0).sum(dim=(1, 2)).tolist() == [int(n * 16 * 0.9) for n in counts]
    with augmented(bert, [TokenCutoff(0.9)] * 5) as inside:
        bert(features)
    assert (inside.token_embeddings[0] == 0).all(dim=2)[ends.repeat(5, 1)].any()  # by default they are cut too


@pytest.mark.parametrize(
    "view", [TokenCutoff(0.0), FeatureCutoff(0.0), EmbeddingDropout(0), NoAugmentation()], ids=str
)
def test_rate_zero_is_the_identity_bit_for_bit(make_model: Factory, view: View) -> None:
    model = make_model("bert").train()
    features = model.preprocess(TEXTS)
    torch.manual_seed(2)
    plain = embed(model, dict(features))
    torch.manual_seed(2)
    with augmented(model, [view]):
        assert torch.equal(embed(model, features), plain)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_evaluation_mode_is_the_identity_and_warns_once(
    make_model: Factory, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(kind).eval()
    features = model.preprocess(TEXTS)
    plain = embed(model, dict(features))
    for view in [*EVERY_VIEW, AdversarialPerturbation()]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="st_plugins"), augmented(model, [view]):
            assert torch.equal(embed(model, features), plain)
            assert torch.equal(embed(model, features), plain)
        assert [record.message[:33] for record in caplog.records] == ["The model is in evaluation mode: "]
    with augmented(model, EVERY_VIEW):
        torch.testing.assert_close(embed(model, features), plain.repeat(4, 1))


@pytest.mark.parametrize("kind", ["bert", "t5", "modernbert"])
def test_nothing_is_left_behind(make_model: Factory, kind: str) -> None:
    model = make_model(kind)
    before, plain = snapshot(model), model.encode(TEXTS)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    features = model.preprocess(TEXTS)
    with augmented(model, EVERY_VIEW):
        assert snapshot(model) != before
        model(features)
    with pytest.raises(RuntimeError, match="in the middle"), augmented(model, EVERY_VIEW):
        model(features)
        raise RuntimeError("in the middle")
    broken: Any = features | {"input_ids": torch.full_like(features["input_ids"], 10_000)}
    with pytest.raises(IndexError), augmented(model, EVERY_VIEW):
        model(broken)
    with augmented(model, EVERY_VIEW):  # a failed call does not spoil the next
        with pytest.raises(IndexError):
            model(broken)
        assert len(embed(model, features)) == 16
    model.eval()
    assert snapshot(model) == before
    assert (model.encode(TEXTS) == plain).all()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_other_threads_get_the_plain_model(bert: SentenceTransformer, features: dict[str, Any]) -> None:
    plain = embed(bert, dict(features))
    results: dict[str, Tensor] = {}

    def without() -> None:
        results["plain"] = embed(bert, dict(features))

    def within() -> None:
        with augmented(bert, [NoAugmentation()] * 3):
            results["three"] = embed(bert, dict(features))

    with augmented(bert, EVERY_VIEW):
        for target in (without, within):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        results["own"] = embed(bert, features)
    assert torch.equal(results["plain"], plain)
    torch.testing.assert_close(results["three"], plain.repeat(3, 1))
    assert len(results["own"]) == 16


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_another_thread_in_the_middle_of_a_call(make_model: Factory, kind: str) -> None:
    model = no_dropout(make_model(kind))
    features = model.preprocess(TEXTS)
    plain = embed(model, dict(features))
    others: list[Tensor] = []
    owner = threading.get_ident()

    def let_another_go_first(module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == owner:
            thread = threading.Thread(target=lambda: others.append(embed(model, dict(features))))
            thread.start()
            thread.join()

    with augmented(model, [NoAugmentation(), TokenShuffle()]) as views:
        handle = model[0].register_forward_pre_hook(let_another_go_first, with_kwargs=True)
        own = embed(model, features)
        handle.remove()
    assert len(others) == 1 and torch.equal(others[0], plain)
    torch.testing.assert_close(own[:4], plain)
    assert not torch.allclose(own[4:], plain) and len(views.token_embeddings) == 1


def test_two_threads_at_once(bert: SentenceTransformer, features: dict[str, Any]) -> None:
    plain = embed(bert, dict(features))
    barrier = threading.Barrier(3)
    wrong: list[str] = []

    def work(count: int) -> None:
        barrier.wait()
        for _ in range(30):
            if count:
                with augmented(bert, [NoAugmentation()] * count):
                    output = embed(bert, dict(features))
            else:
                output = embed(bert, dict(features))
            if output.shape[0] != 4 * max(count, 1) or not torch.allclose(output[:4], plain, atol=1e-6):
                wrong.append(f"{count}: {tuple(output.shape)}")

    threads = [threading.Thread(target=work, args=(count,)) for count in (0, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_hook_found_while_it_is_removed(bert: SentenceTransformer, features: dict[str, Any]) -> None:
    # torch tells hooks with kwargs by a second dictionary, which loses the entry first.
    hooks: list[Any] = []
    with augmented(bert, [TokenShuffle()]) as views:
        for module in (bert, views.parts.positions):
            assert module is not None
            hooks += [(module, hook) for hook in module._forward_pre_hooks.values()]
        bert(features)
    assert len(hooks) == 2
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(hook(module, (features,)) for module, hook in hooks))
    thread.start()
    thread.join()
    assert results == [None, None]


def test_nested_blocks(bert: SentenceTransformer, make_model: Factory, features: dict[str, Any]) -> None:
    other = no_dropout(make_model("roberta"))
    plain = embed(other, dict(features))
    with augmented(bert, EVERY_VIEW):
        assert torch.equal(embed(other, dict(features)), plain)
        with augmented(other, [NoAugmentation()] * 2):
            torch.testing.assert_close(embed(other, features), plain.repeat(2, 1))
            assert len(embed(bert, features)) == 16
        with pytest.raises(ValueError, match=r"inside augmented\(\) for this model already"):
            with augmented(bert, EVERY_VIEW):
                pass
        assert len(embed(bert, features)) == 16
    with augmented(bert, EVERY_VIEW):
        bert(features)


def test_through_a_wrapper_and_twice(bert: SentenceTransformer, features: dict[str, Any]) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = bert

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.module(*args, **kwargs)

    short = bert.preprocess(["a dog"])
    with augmented(bert, [NoAugmentation(), FeatureCutoff()]) as views:
        first = embed(Wrapper(), features)
        second = embed(bert, short)
        third = bert(input=short)["sentence_embedding"]
    assert (len(first), len(second), len(third)) == (8, 2, 2)
    assert [len(embeddings) for embeddings in views.token_embeddings] == [8, 2, 2]


def test_a_model_that_was_not_called(bert: SentenceTransformer, features: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the model was not called inside the block by the thread that opened it"):
        with augmented(bert, EVERY_VIEW):
            thread = threading.Thread(target=lambda: embed(bert, features))
            thread.start()
            thread.join()


def test_bad_input(bert: SentenceTransformer, features: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="views is empty"), augmented(bert, []):
        pass
    wrong: Any = ["feature-cutoff"]
    with pytest.raises(TypeError, match="got 'feature-cutoff'"), augmented(bert, wrong):
        pass
    flat = {"input_ids": features["input_ids"].flatten()[None], "cu_seq_lens_q": torch.tensor([0, 11, 15])}
    with pytest.raises(ValueError, match=r"flattens the inputs, set model\[0\].unpad_inputs = False"):
        with augmented(bert, EVERY_VIEW):
            bert(flat)
    with pytest.raises(ValueError, match="perturbations has 1 entries, but the model is called more often"):
        with augmented(bert, [NoAugmentation()], [None]):
            bert(features)
            bert(features)
    with pytest.raises(ValueError, match=r"perturbations\[0\] has shape \(4, 2, 16\), but the token embeddings"):
        with augmented(bert, [NoAugmentation()], [torch.zeros(4, 2, 16)]):
            bert(features)
    with augmented(bert, [NoAugmentation()]) as views:
        bert(features)
    with pytest.raises(ValueError, match="gradients has 0 entries, but the model was called 1 times"):
        views.perturbations([])


def test_one_token_texts_are_fine(bert: SentenceTransformer) -> None:
    short = {"input_ids": torch.tensor([[7], [8]]), "attention_mask": torch.ones(2, 1, dtype=torch.long)}
    with augmented(bert, EVERY_VIEW):
        assert embed(bert, short).isfinite().all()


def loss_of(embeddings: Tensor) -> Tensor:
    a, b = embeddings.chunk(2)
    return (a - b).square().sum() + a.square().sum()


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlnet", "t5", "gpt2", "albert", "mpnet"])
def test_adversarial_steps(make_model: Factory, kind: str) -> None:
    model = no_dropout(make_model(kind))
    features = model.preprocess(TEXTS)
    mask = features["attention_mask"].bool()
    for norm in (1e-3, 0.5):
        views = [(TokenShuffle(), FeatureCutoff(0.2)), (TokenShuffle(), AdversarialPerturbation(norm))]
        torch.manual_seed(4)
        with augmented(model, views) as first:
            loss = loss_of(embed(model, features))
        gradients = torch.autograd.grad(loss, first.token_embeddings)
        assert all(parameter.grad is None for parameter in model.parameters())
        (step,) = first.perturbations(gradients)
        assert step is not None and not step.requires_grad
        clean, adversarial = step.norm(dim=2).chunk(2)
        assert (clean == 0).all() and (adversarial[~mask] == 0).all()
        torch.testing.assert_close(adversarial[mask], torch.full((int(mask.sum()),), norm))
        torch.manual_seed(4)
        with augmented(model, views, [step]) as second:
            after = loss_of(embed(model, features))
        torch.testing.assert_close(second.token_embeddings[0], first.token_embeddings[0] + step)
        if norm == 1e-3:  # first order: the loss grows by norm · Σ ‖g‖ over the adversarial rows
            growth = norm * gradients[0].chunk(2)[1][mask].norm(dim=1).sum()
            assert (after - loss).item() == pytest.approx(growth.item(), rel=0.1)
        after.backward()
        assert any(parameter.grad is not None for parameter in model.parameters())
        model.zero_grad()


def test_steps_of_several_calls_and_views(bert: SentenceTransformer, features: dict[str, Any]) -> None:
    views = [AdversarialPerturbation(0.25), NoAugmentation(), AdversarialPerturbation(2.0)]
    with augmented(bert, views) as inside:
        first = embed(bert, features).square().sum()
        embed(bert, features)
    gradients = torch.autograd.grad(first, inside.token_embeddings, allow_unused=True)
    step, missing = inside.perturbations(gradients)
    assert missing is None and step is not None
    real = features["attention_mask"].bool()
    for part, norm in zip(step.chunk(3), (0.25, 0.0, 2.0), strict=True):
        torch.testing.assert_close(part.norm(dim=2), real * norm)


def test_frozen_embeddings_still_give_a_gradient(bert: SentenceTransformer, features: dict[str, Any]) -> None:
    encoder: Any = bert[0].model  # type: ignore[union-attr]
    encoder.embeddings.requires_grad_(False)
    with augmented(bert, [NoAugmentation(), AdversarialPerturbation()]) as views:
        loss = loss_of(embed(bert, features))
    (gradient,) = torch.autograd.grad(loss, views.token_embeddings)
    assert gradient.abs().sum() > 0
    with augmented(bert, [NoAugmentation()]) as views:
        embed(bert, features)
    assert not views.token_embeddings[0].requires_grad


def test_perturbations_are_added_in_evaluation_mode_too(bert: SentenceTransformer, features: dict[str, Any]) -> None:
    bert.eval()
    plain = embed(bert, dict(features))
    step = torch.ones(4, features["input_ids"].shape[1], 16)
    with augmented(bert, [AdversarialPerturbation()], [step]):
        assert not torch.allclose(embed(bert, features), plain)


def test_own_views(bert: SentenceTransformer, features: dict[str, Any]) -> None:
    class Negative(View):
        name = "negative"

        def augment(self, embeddings: Tensor, attention_mask: Tensor, special_tokens: Tensor) -> Tensor:
            return -embeddings

    with augmented(bert, [NoAugmentation(), Negative()]) as views:
        bert(features)
    clean, negative = views.token_embeddings[0].chunk(2)
    assert torch.equal(negative, -clean)
