"""Contributions of pairs: they add up to the model's own similarity, and each is what the formula says."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling, StaticEmbedding
from torch import nn

from st_plugins.explain import PairExplanation, explain_pair
from st_plugins.methods.self_explaining.span_pooling import SpanPooling
from st_plugins.methods.whitening.whitening import Whitening
from tests.conftest import WORDS

Make = Callable[..., SentenceTransformer]
KINDS = ("bert", "roberta", "distilbert", "mpnet", "t5", "xlnet")
MODES = ("mean", "weightedmean", "mean_sqrt_len_tokens")


def _texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS[:40], size=rng.integers(1, 10))) for _ in range(count)]


def _span_model(make_model: Make, kind: str = "bert", **options: object) -> SentenceTransformer:
    torch.manual_seed(1)
    pooling = SpanPooling(16, **options)
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.copy_(torch.randn_like(parameter))  # weights that differ from each other
    return SentenceTransformer(modules=[make_model(kind)[0], pooling], device="cpu").eval()


def _tail(name: str) -> list[nn.Module]:
    torch.manual_seed(2)
    whitening = Whitening(16, 5).fit(np.random.default_rng(0).normal(1.0, 2.0, size=(60, 16)))
    return {
        "none": lambda: [],
        "normalize": lambda: [Normalize()],
        "dense": lambda: [Dense(16, 7, activation_function=None)],
        "dense twice": lambda: [
            Dense(16, 7, activation_function=None),
            Normalize(),
            Dense(7, 4, activation_function=None),
        ],
        "residual": lambda: [Dense(16, 16, activation_function=None, use_residual=True)],
        "whitening": lambda: [whitening],
        "unit whitening": lambda: [
            Whitening(16, 5, normalize=True).fit(np.random.default_rng(1).normal(size=(60, 16))),
            Dense(5, 5, activation_function=None),
        ],
        "layer norm": lambda: [LayerNorm(16), Normalize()],
        "tanh": lambda: [Dense(16, 8), Normalize()],
        "sigmoid": lambda: [Dense(16, 16, activation_function=nn.Sigmoid(), use_residual=True)],
    }[name]()


TAILS = (
    "none",
    "normalize",
    "dense",
    "dense twice",
    "residual",
    "whitening",
    "unit whitening",
    "layer norm",
    "tanh",
    "sigmoid",
)


def _check(model: SentenceTransformer, texts: list[str], together: bool = True, **options: object) -> PairExplanation:
    """Compare the totals of many pairs with what ``encode`` and ``similarity`` give."""
    for a, b in zip(texts[::2], texts[1::2], strict=True):
        found = explain_pair(model, a, b, **options)
        embeddings = model.encode([a, b]) if together else np.stack([model.encode(a), model.encode(b)])
        expected = float(model.similarity_pairwise(embeddings[:1], embeddings[1:]))
        scale = max(1.0, abs(expected))
        assert found.similarity == pytest.approx(expected, abs=1e-5 * scale)
        assert found.contributions.sum() == pytest.approx(expected, abs=1e-5 * scale)
        assert found.tokens.sum() == pytest.approx(expected, abs=1e-5 * scale)
        assert found.first_saliency.sum() == pytest.approx(expected, abs=1e-5 * scale)
        assert found.second_saliency == pytest.approx(found.tokens.sum(0), abs=1e-9)
        assert found.contributions.shape == (len(found.first.spans), len(found.second.spans))
        if found.exact:
            assert abs(found.gap) < 1e-5 * scale
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_token_contributions_add_up(make_model: Make, kind: str, mode: str) -> None:
    found = _check(make_model(kind, pooling_mode=mode), _texts(8))
    assert found.exact and found.unit == "token"


@pytest.mark.parametrize("kind", KINDS)
def test_span_contributions_add_up(make_model: Make, kind: str) -> None:
    found = _check(_span_model(make_model, kind), _texts(6))
    assert found.exact and found.unit == "span"
    words = sum(token.kind == "text" for token in found.first.tokens)
    assert len(found.first.spans) == words * (words + 1) // 2


@pytest.mark.parametrize("interaction", ["projected", "product"])
def test_short_spans_add_up(make_model: Make, interaction: str) -> None:
    found = _check(_span_model(make_model, max_span_length=2, interaction=interaction), _texts(6))
    assert all(span.last - span.first < 2 for span in found.first.spans)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("mode", [*MODES, "span"])
def test_decoders_with_left_padding(make_model: Make, kind: str, mode: str) -> None:
    model = _span_model(make_model, kind) if mode == "span" else make_model(kind, pooling_mode=mode)
    model.tokenizer.padding_side = "left"
    # In one batch, padding moves GPT-2's positions; so it does the weights of weightedmean in the oldest host.
    _check(model, _texts(6), together=kind == "llama" and mode != "weightedmean")


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("function", ["cosine", "dot"])
@pytest.mark.parametrize("pooling", ["mean", "mean_sqrt_len_tokens", "span"])
def test_through_a_tail(make_model: Make, tail: str, function: str, pooling: str) -> None:
    base = _span_model(make_model) if pooling == "span" else make_model("bert", pooling_mode=pooling)
    model = SentenceTransformer(modules=[*base, *_tail(tail)], device="cpu", similarity_fn_name=function)
    found = _check(model, _texts(4))
    assert found.exact == (tail not in ("tanh", "sigmoid"))


@pytest.mark.parametrize("mode", ["mean", "weightedmean", "mean_sqrt_len_tokens"])
def test_every_entry_is_the_formula(make_model: Make, mode: str) -> None:
    """A slow oracle: plain loops over tokens and dimensions, through a Dense with a bias, for a cosine."""
    model = SentenceTransformer(modules=[*make_model("bert", pooling_mode=mode), *_tail("dense")], device="cpu").eval()
    texts = ["a big dog is sleeping", "the cat is playing guitar ."]
    weight = model[2].linear.weight.double().tolist()
    bias = model[2].linear.bias.double().tolist()
    parts, norms = [], []
    for text in texts:
        tokens = model.encode(text, output_value="token_embeddings").double().tolist()
        n = len(tokens)
        alphas = {
            "mean": [1 / n] * n,
            "weightedmean": [(position + 1) / (n * (n + 1) / 2) for position in range(n)],
            "mean_sqrt_len_tokens": [1 / math.sqrt(n)] * n,
        }[mode]
        side = []
        for alpha, h in zip(alphas, tokens, strict=True):
            linear = [sum(w * x for w, x in zip(row, h, strict=True)) for row in weight]
            side.append([alpha * value + alpha / sum(alphas) * c for value, c in zip(linear, bias, strict=True)])
        parts.append(side)
        norms.append(math.sqrt(sum(sum(part[k] for part in side) ** 2 for k in range(7))))
    found = explain_pair(model, *texts)
    for s, first in enumerate(parts[0]):
        for t, second in enumerate(parts[1]):
            expected = sum(x * y for x, y in zip(first, second, strict=True)) / (norms[0] * norms[1])
            assert found.contributions[s, t] == pytest.approx(expected, abs=1e-7)


def test_every_span_entry_is_the_formula(make_model: Make) -> None:
    """Weights and vectors of the spans from the module's own parameters, in plain loops."""
    model = _span_model(make_model)
    pooling = model[1]
    found = explain_pair(model, "a big dog", "the cat is sleeping")
    sides = []
    for side, text in ((found.first, "a big dog"), (found.second, "the cat is sleeping")):
        tokens = model.encode(text, output_value="token_embeddings")
        spans = [(i, j) for i in range(1, len(tokens) - 1) for j in range(i, len(tokens) - 1)]
        assert [(span.first, span.last) for span in side.spans] == spans
        with torch.no_grad():
            start, end, product = (
                layer.double()(tokens.double())
                for layer in copy.deepcopy([pooling.start, pooling.end, pooling.product])
            )
        vectors = [torch.tanh(start[i] + end[j] + product[i] * product[j]) for i, j in spans]
        scores = [float(vector @ pooling.score.weight.detach().double()[0]) for vector in vectors]
        highest = max(scores)
        weights = [math.exp(score - highest) for score in scores]
        weights = [value / sum(weights) for value in weights]
        assert [span.weight for span in side.spans] == pytest.approx(weights, abs=1e-6)
        sides.append((weights, vectors, sum(w * v for w, v in zip(weights, vectors, strict=True))))
    (alpha, first, u), (beta, second, v) = sides
    for s, t in [(0, 0), (1, 3), (5, 9), (2, 7)]:
        expected = alpha[s] * beta[t] * float(first[s] @ second[t]) / float(u.norm() * v.norm())
        assert found.contributions[s, t] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("mode", ["mean", "weightedmean"])
def test_an_activation_is_not_exact_and_says_by_how_much(make_model: Make, mode: str) -> None:
    """The gap is the total of the printed formula, each token through tanh by itself, minus the similarity."""
    torch.manual_seed(0)
    dense = Dense(16, 8)
    model = SentenceTransformer(modules=[*make_model("bert", pooling_mode=mode), dense], device="cpu").eval()
    texts = ["a big dog is sleeping", "the cat is playing guitar ."]
    apart = []
    for text in texts:
        tokens = model.encode(text, output_value="token_embeddings").double()
        weight, bias = dense.linear.weight.detach().double(), dense.linear.bias.detach().double()
        counts = [1 + (mode == "weightedmean") * position for position in range(len(tokens))]
        apart.append(
            sum(
                count / sum(counts) * torch.tanh(weight @ token + bias)
                for count, token in zip(counts, tokens, strict=True)
            )
        )
    whole = [torch.from_numpy(model.encode(text)).double() for text in texts]
    literal = float(apart[0] @ apart[1] / (whole[0].norm() * whole[1].norm()))
    found = explain_pair(model, *texts)
    assert not found.exact
    assert found.gap == pytest.approx(literal - found.similarity, abs=1e-6) and abs(found.gap) > 1e-4
    assert f"{found.gap:+.4f}" in found.to_html() and "Not exact" in found.to_html()


def test_static_embeddings(make_model: Make) -> None:
    tokenizer = make_model("bert").tokenizer
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=6), Normalize()], device="cpu")
    found = _check(model, _texts(10))
    assert all(token.kind == "text" for token in found.first.tokens)


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("mode", [*MODES, "span"])
def test_prompts(make_model: Make, include: bool, mode: str) -> None:
    model = _span_model(make_model) if mode == "span" else make_model("bert", pooling_mode=mode)
    model.prompts, model.default_prompt_name = {"query": "the man is "}, "query"
    if isinstance(model[1], Pooling):
        model[1].include_prompt = include
    found = _check(model, ["a dog . sleeping", "two cat"])
    assert [token.text for token in found.first.tokens if token.kind == "prompt"] == ["the", "man", "is"]
    assert found.first.tokens[4].start == 0
    if mode != "span":
        assert ({"prompt"} <= {span.kind for span in found.first.spans}) == include
    none = explain_pair(model, "a dog", "two cat", prompt="")
    assert none.similarity == pytest.approx(
        float(model.similarity(*model.encode(["a dog", "two cat"], prompt=""))), abs=1e-5
    )
    two = explain_pair(model, "a dog", "two cat", prompt=("a ", ""))
    expected = model.similarity(model.encode("a dog", prompt="a "), model.encode("two cat", prompt=""))
    assert two.similarity == pytest.approx(float(expected), abs=1e-5)


def test_truncated_embeddings(make_model: Make) -> None:
    model = make_model("bert")
    model.truncate_dim = 6
    _check(model, _texts(4))


@pytest.mark.parametrize("pooling", ["mean", "span"])
def test_a_rest_keeps_the_total(make_model: Make, pooling: str) -> None:
    model = _span_model(make_model) if pooling == "span" else make_model("bert")
    texts = ["a big dog is sleeping in the park with two cat", "the cat is playing guitar ."]
    whole, short = explain_pair(model, *texts), explain_pair(model, *texts, max_spans=5)
    assert short.contributions.shape == (6, 6) and short.first.spans[-1].kind == "rest"
    assert short.first.total == len(whole.first.spans) and short.exact
    assert short.contributions.sum() == pytest.approx(whole.contributions.sum(), abs=1e-6)
    heaviest = sorted(whole.first.spans, key=lambda span: -span.weight)[:5]
    assert {(span.first, span.last) for span in short.first.spans[:5]} == {
        (span.first, span.last) for span in heaviest
    }
    rows = [(span.first, span.last) for span in whole.first.spans]
    others = [k for k, row in enumerate(rows) if row not in {(span.first, span.last) for span in heaviest}]
    assert short.contributions[5].sum() == pytest.approx(whole.contributions[others].sum(), abs=1e-6)
    assert short.first.spans[-1].weight == pytest.approx(sum(whole.first.spans[k].weight for k in others), abs=1e-6)
    spread = np.average(whole.first.spread()[others], axis=0, weights=[whole.first.spans[k].weight for k in others])
    assert short.first.rest == pytest.approx(spread, abs=1e-5)
    assert all(pair.first.kind != "rest" and pair.second.kind != "rest" for pair in short.top_pairs)
    assert "one rest" in short.to_html()


def test_top_pairs_are_the_largest(make_model: Make) -> None:
    for view in ("interaction", "contribution"):
        found = explain_pair(make_model("bert"), "a big dog", "the cat is sleeping", top_k=4, view=view)
        table = found.interaction if view == "interaction" else found.contributions
        ordinary = table[1:-1, 1:-1]  # [CLS] and [SEP] are not listed
        largest = sorted(ordinary.ravel(), reverse=True)[:4]
        assert [getattr(pair, view) for pair in found.top_pairs] == pytest.approx(largest)
        row, column = found.top_pairs[0].first.first, found.top_pairs[0].second.first
        assert found.top_pairs[0].contribution == pytest.approx(found.contributions[row, column])
        assert found.top_pairs[0].interaction == pytest.approx(found.interaction[row, column])
    with pytest.raises(ValueError, match="view='sum' must be one of 'interaction', 'contribution'"):
        explain_pair(make_model("bert"), "a dog", "a cat", view="sum")


@pytest.mark.parametrize("mode", MODES)
def test_interaction_is_the_product_of_what_is_left_of_the_means(make_model: Make, mode: str) -> None:
    """A slow oracle: plain loops over tokens, each without the embedding that all of them make."""
    model, texts = make_model("bert", pooling_mode=mode), ["a big dog is sleeping", "the cat is playing guitar ."]
    parts, norms, weights = [], [], []
    for text in texts:
        tokens = model.encode(text, output_value="token_embeddings").double().tolist()
        raw = [k + 1.0 for k in range(len(tokens))] if mode == "weightedmean" else [1.0] * len(tokens)
        alphas = [value / sum(raw) for value in raw]
        mean = [sum(a * token[k] for a, token in zip(alphas, tokens, strict=True)) for k in range(16)]
        parts.append([[value - mean[k] for k, value in enumerate(token)] for token in tokens])
        weights.append(alphas)
        norms.append(math.hypot(*mean))
    found = explain_pair(model, *texts)
    for s, (x, alpha) in enumerate(zip(parts[0], weights[0], strict=True)):
        for t, (y, beta) in enumerate(zip(parts[1], weights[1], strict=True)):
            expected = alpha * beta * sum(p * q for p, q in zip(x, y, strict=True)) / norms[0] / norms[1]
            assert found.interaction[s, t] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("tail", ["none", "dense", "whitening", "layer norm", "tanh"])
@pytest.mark.parametrize("limit", [3, 512])
def test_main_effects_and_interaction_add_up(make_model: Make, tail: str, limit: int) -> None:
    for base in (make_model("bert"), _span_model(make_model)):
        model = SentenceTransformer(modules=[*base, *_tail(tail)], device="cpu")
        found = explain_pair(model, "a big dog is sleeping", "the cat is playing guitar .", max_spans=limit)
        whole = found.main_effects + found.interaction
        assert whole == pytest.approx(found.contributions, abs=1e-12)
        assert found.main_effects.sum() == pytest.approx(found.similarity, abs=1e-5)
        assert found.interaction.sum(0) == pytest.approx(0, abs=1e-12)
        assert found.interaction.sum(1) == pytest.approx(0, abs=1e-12)
        assert np.abs(found.interaction).max() > 1e-6
        for by in ("word", "sentence"):
            gathered = found.gathered(by)
            assert gathered.interaction.sum(1) == pytest.approx(0, abs=1e-12)


def test_tokens_spread_spans_evenly(make_model: Make) -> None:
    found = explain_pair(_span_model(make_model), "a big dog", "the cat")
    expected = np.zeros((len(found.first.tokens), len(found.second.tokens)))
    for s, first in enumerate(found.first.spans):
        for t, second in enumerate(found.second.spans):
            for i in range(first.first, first.last + 1):
                for j in range(second.first, second.last + 1):
                    size = (first.last - first.first + 1) * (second.last - second.first + 1)
                    expected[i, j] += found.contributions[s, t] / size
    assert found.tokens == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("limit", [4, 512])
def test_json_round_trip(make_model: Make, limit: int) -> None:
    found = explain_pair(
        _span_model(make_model), "a big dog", "the cat is sleeping", max_spans=limit, faithfulness=True
    )
    text = found.to_json()
    again = PairExplanation.from_json(text)
    assert (
        again.to_json() == text and again.first.spans == found.first.spans and again.faithfulness == found.faithfulness
    )
    assert (again.contributions == found.contributions).all() and again.to_html() == found.to_html()
    assert json.loads(text)["first"]["tokens"][1]["text"] == "a"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pooling", ["mean", "span"])
def test_half_precision_is_close(make_model: Make, dtype: torch.dtype, pooling: str) -> None:
    model = _span_model(make_model) if pooling == "span" else make_model("bert")
    found = explain_pair(model.to(dtype), "a big dog", "the cat is sleeping")
    assert found.contributions.sum() == pytest.approx(found.similarity, abs=0.02)
    assert np.isfinite(found.contributions).all()


def test_the_model_is_left_as_it_was(make_model: Make) -> None:
    model = _span_model(make_model)
    model.train()
    model[0].eval()  # a frozen encoder in a model that trains
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    explain_pair(model, "a big dog", "the cat", faithfulness=True)
    with pytest.raises(ValueError, match="empty"):
        explain_pair(model, "a big dog", "")
    assert [module.training for module in model.modules()] == modes and not model[1].return_spans
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("mode", ["cls", "max", "lasttoken"])
def test_unsupported_poolings_list_the_supported_ones(make_model: Make, mode: str) -> None:
    with pytest.raises(
        ValueError, match=rf"pools with '{mode}'.*SpanPooling, Pooling with pooling_mode 'mean'.*depth='input'"
    ):
        explain_pair(make_model("bert", pooling_mode=mode), "a", "b")


def test_unsupported_models(make_model: Make) -> None:
    encoder = make_model("bert")[0]
    with pytest.raises(ValueError, match="concatenates the poolings 'mean', 'max'"):
        both = SentenceTransformer(modules=[encoder, Pooling(16, pooling_mode=("mean", "max"))], device="cpu")
        explain_pair(both, "a", "b")
    with pytest.raises(ValueError, match=r"\(Transformer\) has no pooling"):
        explain_pair(SentenceTransformer(modules=[encoder], device="cpu"), "a", "b")
    model = make_model("bert")
    model.similarity_fn_name = "euclidean"
    with pytest.raises(ValueError, match=r"'euclidean', which is no sum.*'cosine' or 'dot'"):
        explain_pair(model, "a", "b")
    softmax = SentenceTransformer(
        modules=[*make_model("bert"), Dense(16, 8, activation_function=nn.Softmax(dim=-1))], device="cpu"
    )
    with pytest.raises(ValueError, match="Softmax of a Dense after the pooling mixes dimensions"):
        explain_pair(softmax, "a dog", "b")

    class Squared(Normalize):
        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            features["sentence_embedding"] = features["sentence_embedding"].square()
            return features

    class Twice(Pooling):
        def forward(self, features: dict[str, torch.Tensor], **kwargs: object) -> dict[str, torch.Tensor]:
            features = super().forward(features)
            features["sentence_embedding"] = features["sentence_embedding"] ** 2
            return features

    with pytest.raises(ValueError, match=r"a Squared comes after the pooling.*supported there are Dense, Normalize"):
        explain_pair(SentenceTransformer(modules=[*make_model("bert"), Squared()], device="cpu"), "a", "b")
    with pytest.raises(ValueError, match="Twice is not the weighted sum"):
        explain_pair(SentenceTransformer(modules=[encoder, Twice(16)], device="cpu"), "a dog", "b")


def test_bad_arguments(make_model: Make) -> None:
    model = make_model("bert")
    for options, message in [
        ({"top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
        ({"max_spans": 2.5}, "max_spans must be a whole number"),
    ]:
        with pytest.raises(ValueError, match=message):
            explain_pair(model, "a", "b", **options)
    with pytest.raises(TypeError, match=r"first must be a string, got a list"):
        explain_pair(model, ["a"], "b")


def test_nan_is_refused(make_model: Make) -> None:
    model = make_model("bert")
    with torch.no_grad():
        model[0].model.embeddings.word_embeddings.weight[model.tokenizer.convert_tokens_to_ids("dog")] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity for the first text 'a dog'"):
        explain_pair(model, "a dog", "a cat")
