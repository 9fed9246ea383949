"""The suite evaluator against the host's evaluator, hand-made aggregates, and bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from st_plugins.data.pairs import Pairs
from st_plugins.evaluation import STSSuiteEvaluator, SuiteResult
from st_plugins.evaluation.measuring.encoding import watch_input
from st_plugins.evaluation.measuring.floor import bag_of_random_vectors, random_token_vectors, token_ids
from st_plugins.modules import Whitening


@pytest.fixture
def tasks(sentences: list[str]) -> list[Pairs]:
    """Two tasks of 30 and 20 pairs; the first has two sub-datasets of different size."""
    rng = np.random.default_rng(5)
    first = [sentences[i] for i in rng.integers(60, size=50)]
    second = [sentences[i] for i in rng.integers(60, size=50)]
    gold = rng.integers(0, 11, 50) / 2
    return [
        Pairs("one", first[:30], second[:30], gold[:30], ["x"] * 10 + ["y"] * 20, title="ONE"),
        Pairs("two", first[30:], second[30:], gold[30:]),
    ]


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_all_convention_is_the_host_evaluator_on_the_concatenated_pairs(
    model: SentenceTransformer, tasks: list[Pairs], similarity: str
) -> None:
    metrics = STSSuiteEvaluator(tasks, similarity=similarity, bootstrap_samples=0)(model)
    for pairs in tasks:
        host = EmbeddingSimilarityEvaluator(
            pairs.first, pairs.second, pairs.scores.tolist(), similarity_fn_names=[similarity]
        )(model)
        assert metrics[f"{pairs.name}_spearman_{similarity}"] == pytest.approx(
            host[f"spearman_{similarity}"], abs=2e-3
        )
        assert metrics[f"{pairs.name}_pearson_{similarity}"] == pytest.approx(host[f"pearson_{similarity}"], abs=1e-4)


def test_conventions_are_mean_and_weighted_mean_of_the_subsets(model: SentenceTransformer, tasks: list[Pairs]) -> None:
    evaluator = STSSuiteEvaluator(tasks, bootstrap_samples=20)
    metrics = evaluator(model)
    pairs = tasks[0]
    vectors = [model.encode(side).astype(np.float64) for side in (pairs.first, pairs.second)]
    cosine = np.array(
        [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(vectors[0], vectors[1], strict=True)]
    )
    x, y = spearmanr(pairs.scores[:10], cosine[:10])[0], spearmanr(pairs.scores[10:], cosine[10:])[0]
    assert metrics["one_spearman_cosine_mean"] == pytest.approx((x + y) / 2, abs=0.02)
    assert metrics["one_spearman_cosine_wmean"] == pytest.approx((10 * x + 20 * y) / 30, abs=0.02)
    assert evaluator.last_result is not None
    assert evaluator.last_result.tasks[0].subsets["y"]["spearman"] == pytest.approx(y, abs=0.02)
    both = [metrics["one_spearman_cosine"], metrics["two_spearman_cosine"]]
    assert metrics["avg_spearman_cosine"] == pytest.approx(sum(both) / 2)
    assert evaluator.primary_metric == "avg_spearman_cosine"


def test_every_distinct_sentence_is_encoded_once_longest_first(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    encode = model.encode

    def spy(texts: list[str], **kwargs: object) -> torch.Tensor:
        seen.extend(texts)
        return encode(texts, **kwargs)

    monkeypatch.setattr(model, "encode", spy)
    pairs = Pairs("dup", ["a man", "the big dog is eating", "a man"], ["a man", "a man", "a cat is red"], [5, 1, 2])
    STSSuiteEvaluator([pairs], bootstrap_samples=0, batch_size=2)(model)
    assert seen == ["the big dog is eating", "a cat is red", "a man"]


def test_same_seed_same_numbers_and_batch_size_does_not_matter(model: SentenceTransformer, tasks: list[Pairs]) -> None:
    one = STSSuiteEvaluator(tasks, bootstrap_samples=50, batch_size=4).evaluate(model)
    two = STSSuiteEvaluator(tasks[::-1], bootstrap_samples=50, batch_size=32).evaluate(model)
    assert one.tasks[0].spearman["all"].low == pytest.approx(two.tasks[1].spearman["all"].low, abs=0.02)
    again = STSSuiteEvaluator(tasks, bootstrap_samples=50, batch_size=4).evaluate(model)
    assert one.to_json() == again.to_json()
    assert SuiteResult.from_json(one.to_json()).to_json() == one.to_json()


def test_floor_is_the_mean_of_seeded_gaussian_token_vectors(model: SentenceTransformer) -> None:
    ids = token_ids(model, ["a man", "a man is eating", ""])
    bag = bag_of_random_vectors(ids, 8, seed=3)
    vocabulary = random_token_vectors(np.arange(model.tokenizer.vocab_size), 8, seed=3)
    for row, expected in zip(bag, ids, strict=True):
        total = np.zeros(8)
        for token in expected:
            total += vocabulary[token]
        np.testing.assert_allclose(row, total / max(len(expected), 1), atol=1e-6)
    assert model.tokenizer.cls_token_id not in ids[0]


def test_floor_does_not_depend_on_the_model_weights(
    make_model: Callable[..., SentenceTransformer], tasks: list[Pairs]
) -> None:
    first, second = make_model("bert"), make_model("roberta")
    floors = [STSSuiteEvaluator(tasks, bootstrap_samples=20).evaluate(model).floor for model in (first, second)]
    assert floors[0] is not None and floors[0] == floors_without_difference(floors[1], floors[0])


def floors_without_difference(floor: object, template: object) -> object:
    """Return the second floor with the first one's differences, which do depend on the model."""
    import dataclasses

    return dataclasses.replace(  # type: ignore[type-var]
        floor,
        above_raw=template.above_raw,  # type: ignore[attr-defined]
        above_whitened=template.above_whitened,  # type: ignore[attr-defined]
    )


def test_floor_can_be_switched_off(model: SentenceTransformer, tasks: list[Pairs]) -> None:
    assert STSSuiteEvaluator(tasks, floor=False, bootstrap_samples=0).evaluate(model).floor is None


def test_target_whitening_is_whitening_on_the_tasks_own_texts(model: SentenceTransformer, tasks: list[Pairs]) -> None:
    evaluator = STSSuiteEvaluator(tasks, target_whitening=6, bootstrap_samples=0)
    result = evaluator.evaluate(model)
    for pairs, task in zip(tasks, result.tasks, strict=True):
        vectors = model.encode([*pairs.first, *pairs.second]).astype(np.float64)
        centred = vectors - vectors.mean(axis=0)
        values, axes = np.linalg.eigh(centred.T @ centred / len(vectors))
        white = centred @ (axes / np.sqrt(np.maximum(values, 1e-30)))[:, ::-1][:, :6]
        a, b = white[: len(pairs)], white[len(pairs) :]
        cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        np.testing.assert_allclose(task.similarities, cosine, atol=1e-3)


def test_fit_distance_is_zero_on_the_fit_texts(model: SentenceTransformer, tasks: list[Pairs]) -> None:
    evaluator = STSSuiteEvaluator(tasks, bootstrap_samples=0)
    whitening = Whitening(16, 4).fit(model.encode(evaluator.sentences))
    near = evaluator.evaluate(SentenceTransformer(modules=[*model, whitening]))
    assert near.geometry["fit_wasserstein_distance"] == pytest.approx(0, abs=1e-3)
    far = evaluator.evaluate(
        SentenceTransformer(modules=[*model, Whitening(16, 4).fit(model.encode(evaluator.sentences[:20]))])
    )
    assert far.geometry["fit_wasserstein_distance"] > 0.01


def test_hook_is_gone_after_an_exception(model: SentenceTransformer) -> None:
    with pytest.raises(RuntimeError, match="boom"), watch_input(model[1], lambda _: None):
        raise RuntimeError("boom")
    assert not model[1]._forward_pre_hooks


def test_it_works_during_training_and_leaves_the_mode(
    model: SentenceTransformer, tasks: list[Pairs], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model.train()
    evaluator = STSSuiteEvaluator(tasks, name="dev", bootstrap_samples=10)
    for step in (1, 2):
        metrics = evaluator(model, output_path=str(tmp_path), epoch=0, steps=step)
    assert model.training
    assert evaluator.primary_metric == "dev_avg_spearman_cosine" and evaluator.primary_metric in metrics
    lines = (tmp_path / "sts_suite_dev_results.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and lines[2].startswith("0,2,")
    foreign = tmp_path / "sts_suite_dev_results.csv"
    foreign.write_text("my,table\n1,2\n", encoding="utf-8")
    evaluator(model, output_path=str(tmp_path), epoch=0, steps=3)
    assert foreign.read_text(encoding="utf-8") == "my,table\n1,2\n" and "has other columns" in caplog.text


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert", "mpnet", "llama"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_score_finite(
    make_model: Callable[..., SentenceTransformer], tasks: list[Pairs], kind: str, dtype: torch.dtype
) -> None:
    result = STSSuiteEvaluator(tasks, bootstrap_samples=0).evaluate(make_model(kind).to(dtype))
    assert math.isfinite(result.average["spearman_all"].value)
    assert result.model["dtype"] == str(dtype).removeprefix("torch.")


# ---- bad input


class _Broken(Module):
    """Spoil the embedding of every text longer than four tokens, or of all."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        embedding = features["sentence_embedding"].clone()
        if math.isfinite(self.value):
            embedding[:] = self.value
        else:
            embedding[features["attention_mask"].sum(dim=1) > 6] = self.value
        return {**features, "sentence_embedding": embedding}

    def save(self, output_path: str, *args: object, **kwargs: object) -> None:
        """Nothing to save."""


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_embedding_names_the_sentence(model: SentenceTransformer, value: float) -> None:
    broken = SentenceTransformer(modules=[*model, _Broken(value)])
    evaluator = STSSuiteEvaluator.from_pairs(["a man", "the big dog is eating bread ."], ["a cat", "a man"], [1, 2])
    with pytest.raises(ValueError, match=r"row 1: 'the big dog is eating bread \.'"):
        evaluator(broken)


def test_zero_embeddings_are_undefined_and_said(model: SentenceTransformer, tasks: list[Pairs]) -> None:
    result = STSSuiteEvaluator(tasks, bootstrap_samples=20).evaluate(
        SentenceTransformer(modules=[*model, _Broken(0.0)])
    )
    assert math.isnan(result.average["spearman_all"].value)
    assert any("zero embedding" in warning for warning in result.warnings)


def test_constant_gold_is_named(model: SentenceTransformer) -> None:
    evaluator = STSSuiteEvaluator.from_pairs(
        ["a man", "a dog"], ["a cat", "a boy"], [3, 3], task_name="flat", bootstrap_samples=20
    )
    metrics = evaluator(model)
    assert math.isnan(metrics["flat_spearman_cosine"])
    assert evaluator.last_result is not None
    assert any("flat" in warning and "undefined" in warning for warning in evaluator.last_result.warnings)
    assert '"value": null' in evaluator.last_result.to_json()


def test_one_pair_and_empty_text_do_not_crash(model: SentenceTransformer) -> None:
    assert math.isnan(
        STSSuiteEvaluator.from_pairs(["a man"], ["a cat"], [1], bootstrap_samples=5)(model)["avg_spearman_cosine"]
    )
    scored = STSSuiteEvaluator.from_pairs(["", "a man", "a"], ["", "a cat", "the"], [5, 1, 2], bootstrap_samples=5)
    assert scored(model).keys()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"similarity": "jaccard"}, "similarity='jaccard'"),
        ({"confidence": 1.5}, "confidence=1.5"),
        ({"bootstrap_samples": -1}, "bootstrap_samples=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"floor_texts": "one text"}, "floor_texts"),
        ({"target_texts": {"nope": ["x"]}}, "'nope'"),
    ],
)
def test_bad_settings_are_named(tasks: list[Pairs], kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STSSuiteEvaluator(tasks, **kwargs)  # type: ignore[arg-type]


def test_bad_pairs_are_named() -> None:
    with pytest.raises(ValueError, match="no pair"):
        STSSuiteEvaluator.from_pairs([], [], [])
    with pytest.raises(ValueError, match="one length"):
        STSSuiteEvaluator.from_pairs(["a"], ["b", "c"], [1])
    with pytest.raises(ValueError, match="score of pair 1 is nan"):
        STSSuiteEvaluator.from_pairs(["a", "b"], ["b", "c"], [1, math.nan])
    with pytest.raises(TypeError, match=r"second\[0\] is None"):
        STSSuiteEvaluator.from_pairs(["a"], [None], [1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="no task"):
        STSSuiteEvaluator([])


def test_two_tasks_of_one_name_are_refused(tasks: list[Pairs]) -> None:
    with pytest.raises(ValueError, match="'one' occurs twice"):
        STSSuiteEvaluator([tasks[0], tasks[0]])


def test_static_embeddings_have_a_floor() -> None:
    """Their length limit is infinite and their tokenizer is a plain ``tokenizers.Tokenizer``."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    evaluator = STSSuiteEvaluator.from_pairs(
        ["a b", "a c", "b"], ["a b", "b b", "a"], [5.0, 1.0, 0.0], bootstrap_samples=10
    )
    result = evaluator.evaluate(static)
    assert result.floor is not None and result.warnings == []
    assert token_ids(static, ["a b c"]) == [[1, 2, 3]]
