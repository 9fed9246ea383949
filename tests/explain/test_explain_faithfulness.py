"""Deletion against a toy model whose every score can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from st_plugins.explain import Faithfulness, explain_pair, faithfulness, gradient_saliency, mean_faithfulness
from st_plugins.explain.eraser import encode_without
from st_plugins.explain.inner.reading import read

Make = Callable[..., SentenceTransformer]
WORDS = ["a", "big", "dog", "is", "in", "the", "park", "with", "two", "red"]


@pytest.fixture
def toy(make_model: Make) -> SentenceTransformer:
    """Each word is one number: the k-th of ``WORDS`` is 2ᵏ. A text's embedding is the mean of its words."""
    tokenizer = make_model("bert").tokenizer
    table = torch.zeros(len(tokenizer), 1)
    for power, word in enumerate(WORDS):
        table[tokenizer.convert_tokens_to_ids(word)] = 2.0**power
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table)], device="cpu")


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def test_by_hand(toy: SentenceTransformer) -> None:
    saliency = [3, 1, 9, 2, 8, 0, 7, 4, 6, 5]
    numbers = [2.0**power for power in range(10)]
    order = [2, 4, 6, 8, 9, 7, 0, 3, 1, 5]
    found = faithfulness(toy, " ".join(WORDS), saliency, lambda e: 3 * e[:, 0], bins=(0.01, 0.2, 0.25, 0.5, 0.99))
    assert found.score == pytest.approx(3 * _mean(numbers))
    whole = 3 * _mean(numbers)
    for index, count in enumerate((1, 2, 3, 5, 9)):  # ceil(share * 10), and one token always stays
        gone, left = order[:count], order[count:]
        ranking = found.rankings["explanation"]
        assert ranking.comprehensiveness[index] == pytest.approx(
            whole - 3 * _mean([numbers[k] for k in left]), abs=1e-3
        )
        assert ranking.sufficiency[index] == pytest.approx(whole - 3 * _mean([numbers[k] for k in gone]), abs=1e-3)
    assert found.rankings["explanation"].mean_sufficiency == pytest.approx(
        _mean(list(found.rankings["explanation"].sufficiency))
    )
    # Gradient x input of a mean is each word's number: the order from the last word to the first.
    gradient = found.rankings["gradient"]
    assert gradient.comprehensiveness[1] == pytest.approx(whole - 3 * _mean(numbers[:8]), abs=1e-3)
    assert gradient.sufficiency[1] == pytest.approx(whole - 3 * _mean(numbers[8:]), abs=1e-3)


def test_random_orders_average_over_all_choices(toy: SentenceTransformer) -> None:
    """Deleting one of ten words at random leaves, on average, the mean as it was."""
    found = faithfulness(toy, " ".join(WORDS), [0] * 10, lambda e: e[:, 0], bins=(0.1,), repeats=4000)
    assert found.rankings["random"].comprehensiveness[0] == pytest.approx(0.0, abs=1.0)
    again = faithfulness(toy, " ".join(WORDS), [0] * 10, lambda e: e[:, 0], bins=(0.1,), repeats=4000)
    other = faithfulness(toy, " ".join(WORDS), [0] * 10, lambda e: e[:, 0], bins=(0.1,), repeats=4000, seed=1)
    assert again == found and other != found


def test_special_tokens_and_prompts_stay(make_model: Make) -> None:
    model = make_model("bert")
    reading = read(model, "a big dog", "the man ")
    seen = []

    def score(embeddings: torch.Tensor) -> torch.Tensor:
        seen.append(embeddings.detach())
        return embeddings.sum(-1)

    saliency = [9, 9, 9, 1, 2, 3, 9]
    faithfulness(model, "a big dog", saliency, score, bins=(0.5,), repeats=1, prompt="the man ")
    assert [token.kind for token in reading.tokens] == ["special", "prompt", "prompt", *["text"] * 3, "special"]
    expected = {
        name: torch.from_numpy(model.encode(text, prompt="the man "))
        for name, text in {"whole": "a big dog", "without": "a", "only": "big dog"}.items()
    }
    assert torch.allclose(seen[1][0], expected["whole"], atol=1e-5)
    assert torch.allclose(seen[2][0], expected["without"], atol=1e-5)
    assert torch.allclose(seen[3][0], expected["only"], atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "mpnet", "t5", "xlnet", "llama"])
def test_deletion_is_the_shorter_text(make_model: Make, kind: str) -> None:
    model = make_model(kind)
    reading = read(model, "a big dog is sleeping")
    names = [token.text for token in reading.tokens]
    keep = [np.array([name not in gone for name in names]) for gone in (("big", "is"), ("a", "sleeping"))]
    embeddings = encode_without(model, reading, keep).numpy()
    assert embeddings[0] == pytest.approx(model.encode("a dog sleeping"), abs=1e-5)
    assert embeddings[1] == pytest.approx(model.encode("big dog is"), abs=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "mpnet", "t5", "xlnet", "llama", "gpt2"])
def test_gradient_saliency_against_finite_differences(make_model: Make, kind: str) -> None:
    """Scaling one token's embedding by 1 + h changes the score by h times its gradient x input."""
    from st_plugins.methods.contrastive.encoders import encoder_parts

    model = make_model(kind).double()
    reading = read(model, "a big dog is sleeping")
    direction = torch.linspace(-1, 2, 16).double()
    saliency = gradient_saliency(model, "a big dog is sleeping", lambda e: e @ direction)
    parts = encoder_parts(model)
    size, close = (1e-3, 2e-3) if kind in ("t5", "llama") else (1e-4, 1e-6)  # their norms compute in float32
    for position in range(len(reading.tokens)):
        scores = []
        for step in (size, -size):

            def scaled(
                module: object, inputs: object, output: torch.Tensor, at: int = position, by: float = 1 + step
            ) -> torch.Tensor:
                changed = output.clone()
                (changed if parts.tokens_first else changed[0])[at] *= by
                return changed

            handle = parts.embedding.register_forward_hook(scaled)
            try:
                with torch.no_grad():
                    scores.append(float(model(dict(reading.features))["sentence_embedding"][0] @ direction))
            finally:
                handle.remove()
        assert saliency[position] == pytest.approx((scores[0] - scores[1]) / (2 * size), abs=close)


def test_hooks_are_gone_after_an_error(make_model: Make) -> None:
    model = make_model("bert")

    def fail(embeddings: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no score")

    with pytest.raises(RuntimeError, match="no score"):
        gradient_saliency(model, "a dog", fail)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_pair_averages_its_two_texts(make_model: Make) -> None:
    model = make_model("bert")
    a, b = "a big dog is sleeping", "the cat is playing guitar"
    pair = explain_pair(model, a, b, faithfulness=True)
    sides = []
    for text, other, saliency in ((a, b, pair.first_saliency), (b, a, pair.second_saliency)):
        fixed = torch.from_numpy(model.encode(other))
        sides.append(faithfulness(model, text, saliency, lambda e, f=fixed: torch.cosine_similarity(e, f[None])))
    mean = mean_faithfulness(sides)
    assert pair.faithfulness is not None
    assert pair.faithfulness.score == pytest.approx(pair.similarity, abs=1e-6)
    for name, ranking in mean.rankings.items():
        assert pair.faithfulness.rankings[name].comprehensiveness == pytest.approx(ranking.comprehensiveness, abs=1e-5)
        assert pair.faithfulness.rankings[name].sufficiency == pytest.approx(ranking.sufficiency, abs=1e-5)
    assert mean.rankings["random"].sufficiency[2] == pytest.approx(
        (sides[0].rankings["random"].sufficiency[2] + sides[1].rankings["random"].sufficiency[2]) / 2
    )


def test_table_and_rows(toy: SentenceTransformer) -> None:
    found = faithfulness(toy, "a big dog", [1, 2, 3], lambda e: e[:, 0])
    rows = dict(found.rows())
    assert list(rows) == ["1 %", "5 %", "10 %", "20 %", "50 %", "mean"]
    assert found.columns()[0] == "without: explanation" and len(found.columns()) == 6
    assert rows["50 %"][0] == found.rankings["explanation"].comprehensiveness[4]
    assert rows["mean"][3] == pytest.approx(found.rankings["explanation"].mean_sufficiency)
    assert math.isclose(found.score, 7 / 3, rel_tol=1e-6)
    assert isinstance(found, Faithfulness) and found.to_table().row_count == 6


@pytest.mark.parametrize(
    ("text", "saliency", "options", "message"),
    [
        ("a dog", [1, 2, 3], {}, r"saliency has shape \(3,\), but the model reads 2 tokens"),
        ("dog", [1], {}, "has 1 token that can be deleted"),
        ("a dog", [1, 2], {"bins": ()}, "bins must be shares between 0 and 1"),
        ("a dog", [1, 2], {"bins": (5,)}, r"bins must be shares.*got \(5,\)"),
        ("a dog", [1, 2], {"repeats": 0}, "repeats must be at least 1, got 0"),
        ("", [], {}, "is empty"),
    ],
)
def test_bad_input(
    toy: SentenceTransformer, text: str, saliency: list[float], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        faithfulness(toy, text, saliency, lambda e: e[:, 0], **options)


def test_means_need_the_same_bins(toy: SentenceTransformer) -> None:
    one = faithfulness(toy, "a dog", [1, 2], lambda e: e[:, 0])
    other = faithfulness(toy, "a dog", [1, 2], lambda e: e[:, 0], bins=(0.5,))
    for results in ([], [one, other]):
        with pytest.raises(ValueError, match="all measured at the same bins"):
            mean_faithfulness(results)
