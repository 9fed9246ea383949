"""Span pooling against its formula in plain loops, and features that do not fit it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from st_plugins.methods.self_explaining.span_attention import product_attention
from st_plugins.modules import SpanPooling

WIDTH = 6
CLS, SEP, PAD, UNK = 2, 3, 0, 1
Spans = dict[tuple[int, int], float]


def pooling(interaction: Any = "projected", **options: Any) -> SpanPooling:
    """A module in float64 with random numbers everywhere, the score included."""
    options = {"special_token_ids": [PAD, CLS, SEP], **options}
    module = SpanPooling(WIDTH, interaction=interaction, **options).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


def features(ids: list[list[int]], mask: list[list[int]] | None = None) -> dict[str, Any]:
    """Random token embeddings; the token at a position of a text is the same in every batch."""
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(60, WIDTH, dtype=torch.float64, generator=generator)
    rows = torch.tensor(ids)
    real = (rows != PAD).long() if mask is None else torch.tensor(mask)
    return {"input_ids": rows, "attention_mask": real, "token_embeddings": table[rows].clone().requires_grad_()}


def spans_of(allowed: list[bool], longest: int | None = None) -> list[tuple[int, int]]:
    return [
        (i, j)
        for i in range(len(allowed))
        for j in range(i, len(allowed))
        if all(allowed[i : j + 1]) and (longest is None or j - i + 1 <= longest)
    ]


def times(matrix: list[list[float]], vector: list[float]) -> list[float]:
    return [sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix]


def softmax(scores: dict[tuple[int, int], float]) -> Spans:
    total = sum(math.exp(score) for score in scores.values())
    return {span: math.exp(score) / total for span, score in scores.items()}


def oracle(module: SpanPooling, tokens: Tensor, allowed: list[bool]) -> tuple[list[float], Spans]:
    """The class docstring's formula, one number after the other."""
    weight = {name: parameter.tolist() for name, parameter in module.named_parameters()}
    rows: list[list[float]] = tokens.tolist()
    vectors: dict[tuple[int, int], list[float]] = {}
    for i, j in spans_of(allowed, module.max_span_length):
        first, last = times(weight["start.weight"], rows[i]), times(weight["end.weight"], rows[j])
        if module.interaction == "projected":
            left, right = (
                [p + b for p, b in zip(times(weight["product.weight"], rows[k]), weight["product.bias"], strict=True)]
                for k in (i, j)
            )
            third = [x * y for x, y in zip(left, right, strict=True)]
        else:
            third = times(weight["product.weight"], [x * y for x, y in zip(rows[i], rows[j], strict=True)])
        vectors[i, j] = [
            math.tanh(a + b + c + d) for a, b, c, d in zip(first, last, third, weight["start.bias"], strict=True)
        ]
    alpha = softmax({span: times(weight["score.weight"], vector)[0] for span, vector in vectors.items()})
    pooled = [sum(alpha[span] * vector[k] for span, vector in vectors.items()) for k in range(tokens.shape[1])]
    return pooled, alpha


def check(module: SpanPooling, batch: dict[str, Any], allowed: list[list[bool]]) -> None:
    """Embedding, weights and sharpness of every row are those of the formula."""
    output = module.train()(dict(batch))
    for row, inside in enumerate(allowed):
        pooled, alpha = oracle(module, batch["token_embeddings"][row].detach(), inside)
        assert output["sentence_embedding"][row].tolist() == pytest.approx(pooled, abs=1e-9)
        weights = output["span_weights"][row]
        assert {(i, i + k) for i, k in weights.nonzero().tolist()} == set(alpha)
        for (i, j), value in alpha.items():
            assert weights[i, j - i].item() == pytest.approx(value, abs=1e-9)
        sharpness = sum(value**2 for value in alpha.values())
        assert output["span_sharpness"][row].item() == pytest.approx(sharpness, abs=1e-9)
        assert not alpha or 1 / len(alpha) <= sharpness <= 1
        assert not alpha or weights.sum().item() == pytest.approx(1, abs=1e-9)


IDS = [
    [CLS, 10, 11, 12, 13, SEP, PAD, PAD],
    [CLS, 10, 11, SEP, SEP, 20, 21, SEP],  # a pair, with RoBERTa's two separators
    [CLS, 15, SEP, PAD, PAD, PAD, PAD, PAD],
    [CLS, SEP, PAD, PAD, PAD, PAD, PAD, PAD],
    [PAD, PAD, PAD, CLS, 30, UNK, 31, SEP],  # padded on the left
]
ALLOWED = [[token not in (PAD, CLS, SEP) for token in row] for row in IDS]


@pytest.mark.parametrize("longest", [None, 1, 2, 20])
@pytest.mark.parametrize("interaction", ["projected", "product"])
def test_embedding_weights_and_sharpness_are_the_formula(interaction: str, longest: int | None) -> None:
    check(pooling(interaction, max_span_length=longest), features(IDS), ALLOWED)


def test_the_two_interactions_differ() -> None:
    one, other = pooling("projected"), pooling("product")
    other.load_state_dict({name: one.state_dict()[name] for name in other.state_dict()})
    nn.init.zeros_(one.product.bias)
    batch = features([[CLS, 10, 11, SEP]])
    first, second = (module(dict(batch))["sentence_embedding"] for module in (one, other))
    assert (first - second).abs().max() > 0.01


def test_special_tokens_count_where_wanted() -> None:
    check(pooling(include_special_tokens=True), features(IDS), [[token != PAD for token in row] for row in IDS])


def test_the_published_layers_fold_into_one_less() -> None:
    """A loop over the published code's formula, with the biases that cancel."""
    names = ("W_1", "W_2", "W_3", "W_4")
    layers = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in names} | {"h_t": nn.Linear(WIDTH, 1)})
    state = {f"model.span_info_collect.{name}": tensor for name, tensor in layers.state_dict().items()}
    module = SpanPooling.from_reference(state, max_span_length=3, special_token_ids=[PAD, CLS, SEP]).train()
    batch = features(IDS[:1])
    batch["token_embeddings"] = batch["token_embeddings"].detach().float()
    tokens = batch["token_embeddings"][0].double()
    layers.double()
    out = {name: layers[name](tokens).tolist() for name in names}
    vectors = {
        (i, j): [
            math.tanh(
                out["W_1"][i][k] + out["W_2"][j][k] + out["W_3"][i][k] - out["W_3"][j][k]
                + out["W_4"][i][k] * out["W_4"][j][k]
            )
            for k in range(WIDTH)
        ]
        for i, j in spans_of(ALLOWED[0], 3)
    }  # fmt: skip
    alpha = softmax({s: layers["h_t"](torch.tensor(v, dtype=torch.float64)).item() for s, v in vectors.items()})
    output = module(batch)
    expected = [sum(alpha[s] * v[k] for s, v in vectors.items()) for k in range(WIDTH)]
    assert output["sentence_embedding"][0].tolist() == pytest.approx(expected, abs=1e-6)
    for (i, j), value in alpha.items():
        assert output["span_weights"][0, i, j - i].item() == pytest.approx(value, abs=1e-6)
    assert output["span_weights"].shape == (1, 8, 3)
    with pytest.raises(ValueError, match=r"one entry 'h_t.weight'.*\[\]"):
        SpanPooling.from_reference({name: tensor for name, tensor in state.items() if "h_t" not in name})


@pytest.mark.parametrize("interaction", ["projected", "product"])
def test_one_token_has_all_the_weight(interaction: str) -> None:
    module = pooling(interaction)
    batch = features([[CLS, 15, SEP]])
    output = module(batch)
    assert output["span_weights"][0].tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    vector = module.span_vectors(batch, [(1, 1)])
    torch.testing.assert_close(output["sentence_embedding"], vector)
    assert output["span_sharpness"].item() == 1


@pytest.mark.parametrize("interaction", ["projected", "product"])
def test_batch_mates_and_padding_change_nothing(interaction: str) -> None:
    module = pooling(interaction)
    together = module(features(IDS))
    for row, ids in enumerate(IDS):
        alone = module(features([[token for token in ids if token != PAD]]))
        torch.testing.assert_close(alone["sentence_embedding"][0], together["sentence_embedding"][row])
        ours, theirs = alone["span_weights"][0], together["span_weights"][row]
        torch.testing.assert_close(ours[ours > 0], theirs[theirs > 0])
    wide = module(features([[PAD] * 9 + ids + [PAD] * 30 for ids in IDS]))
    torch.testing.assert_close(wide["sentence_embedding"], together["sentence_embedding"])


@pytest.mark.parametrize("interaction", ["projected", "product"])
def test_nothing_to_pool_is_zero_with_zero_gradients(interaction: str) -> None:
    batch = features([[CLS, SEP], [PAD, PAD]])
    output = pooling(interaction)(batch)
    for key in ("sentence_embedding", "span_weights", "span_sharpness"):
        assert not output[key].any()
    (output["sentence_embedding"].sum() + output["span_sharpness"].sum()).backward()
    assert not batch["token_embeddings"].grad.any()


@pytest.mark.parametrize("interaction", ["projected", "product"])
def test_what_padding_holds_never_matters(interaction: str) -> None:
    module = pooling(interaction)
    clean, dirty = features(IDS), features(IDS)
    with torch.no_grad():
        dirty["token_embeddings"][dirty["attention_mask"] == 0] = torch.nan
    gradients = []
    for batch in (clean, dirty):
        module.zero_grad()
        output = module(batch)
        (output["sentence_embedding"].square().sum() + output["span_sharpness"].sum()).backward()
        gradients.append([p.grad.clone() for p in module.parameters()] + [batch["token_embeddings"].grad])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradients_of_the_exact_product_are_those_of_finite_differences() -> None:
    module = pooling("product")
    mask = torch.tensor([[True, True, False, True, True], [True, False, False, False, False], [False] * 5])
    tokens = torch.randn(3, 5, WIDTH, dtype=torch.float64, requires_grad=True)

    def attend(tokens: Tensor, project: Tensor, scorer: Tensor) -> tuple[Tensor, ...]:
        start, end = module.start(tokens), module.end(tokens)
        return product_attention(tokens, start, end, lambda x: x @ project.T, scorer, mask, 3)

    assert torch.autograd.gradcheck(attend, (tokens, module.product.weight, module.score.weight[0]))


def test_equal_weights_have_no_gradient_towards_sharpness() -> None:
    module = pooling()
    nn.init.zeros_(module.score.weight)
    output = module(features(IDS[:1]))
    assert output["span_sharpness"].item() == pytest.approx(1 / 10)
    output["span_sharpness"].sum().backward()
    assert module.score.weight.grad.abs().max() < 1e-12  # type: ignore[union-attr]


def test_it_begins_as_mean_pooling() -> None:
    module = SpanPooling(WIDTH, special_token_ids=[PAD, CLS, SEP]).double()
    nn.init.zeros_(module.score.weight)
    batch = features(IDS)
    batch["token_embeddings"] = batch["token_embeddings"].detach() * 1e-6
    embeddings = module(batch)["sentence_embedding"]
    for row, allowed in enumerate(ALLOWED):
        chosen = batch["token_embeddings"][row][torch.tensor(allowed)]
        expected = chosen.mean(dim=0) if len(chosen) else torch.zeros(WIDTH).double()
        torch.testing.assert_close(embeddings[row], expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("interaction", ["projected", "product"])
def test_the_embedding_is_the_sum_of_its_spans(interaction: str) -> None:
    module = pooling(interaction, max_span_length=3)
    batch = features(IDS[1:2])
    output = module(batch)
    weights = output["span_weights"][0]
    spans = [(i, i + k) for i, k in weights.nonzero().tolist()]
    vectors = module.span_vectors(output, spans)
    assert vectors.shape == (len(spans), WIDTH) == (6, 6)
    total = sum(weights[i, j - i] * vector for (i, j), vector in zip(spans, vectors, strict=True))
    torch.testing.assert_close(total, output["sentence_embedding"][0])
    torch.testing.assert_close(vectors, module.span_vectors(batch["token_embeddings"][0], torch.tensor(spans)))
    assert module.span_vectors(batch, []).shape == (0, WIDTH)


def test_prompts_are_left_out_wherever_padding_is() -> None:
    module = pooling(include_prompt=False)
    ids = [[CLS, 10, 11, 12, 13, SEP], [CLS, 10, 11, 14, SEP, PAD], [PAD, CLS, 10, 11, 14, SEP]]
    allowed = [[token in (12, 13, 14) for token in row] for row in ids]
    for length in (3, torch.tensor([3]), torch.tensor([3, 3, 3])):
        check(module, {**features(ids), "prompt_length": length}, allowed)
    check(module, features(ids), [[token > SEP for token in row] for row in ids])
    module.include_prompt = True
    check(module, {**features(ids), "prompt_length": 3}, [[token > SEP for token in row] for row in ids])


def test_flattened_batches_give_the_same() -> None:
    module = pooling(include_prompt=False)
    padded = features([[CLS, 10, 11, 12, SEP], [CLS, 14, SEP, PAD, PAD], [CLS, SEP, PAD, PAD, PAD]])
    expected = module({**padded, "prompt_length": 2})
    real = padded["attention_mask"].bool()
    flat = {
        "input_ids": padded["input_ids"][real][None],
        "token_embeddings": padded["token_embeddings"].detach()[real][None].requires_grad_(),
        "cu_seq_lens_q": torch.tensor([0, 5, 8, 10], dtype=torch.int32),
        "prompt_length": 2,
    }
    before = dict(flat)
    output = module(flat)
    for key in ("sentence_embedding", "span_weights", "span_sharpness"):
        torch.testing.assert_close(output[key], expected[key])
    assert all(output[key] is value for key, value in before.items())
    output["sentence_embedding"].square().sum().backward()
    expected["sentence_embedding"].square().sum().backward()
    torch.testing.assert_close(flat["token_embeddings"].grad[0], padded["token_embeddings"].grad[real])  # type: ignore[attr-defined]


def test_spans_are_written_in_training_and_when_asked_for() -> None:
    module = pooling().eval()
    assert "span_weights" not in module(features(IDS)) and "span_sharpness" not in module(features(IDS))
    with pytest.raises(RuntimeError, match="inside"), module.returning_spans() as same:
        assert same is module and {"span_weights", "span_sharpness"} <= set(module(features(IDS)))
        raise RuntimeError("inside")
    assert not module.return_spans
    assert "span_weights" in module.train()(features(IDS))


def test_large_scores_do_not_overflow() -> None:
    module = pooling("product").half()
    nn.init.constant_(module.score.weight, 6e4)
    batch = features(IDS)
    batch["token_embeddings"] = batch["token_embeddings"].detach().half()
    assert module.eval()(batch)["sentence_embedding"].isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"token_embeddings": torch.zeros(1, 4, 5)},
            r"shape \(batch, tokens, 6\), got \(1, 4, 5\).*width of your enc",
        ),
        ({"token_embeddings": torch.zeros(4, 6)}, r"shape \(batch, tokens, 6\), got \(4, 6\)"),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask has shape \(1, 3\).*\(1, 4\) token embeddings"),
        ({"input_ids": torch.ones(1, 3)}, r"input_ids of shape \(1, 4\).*got \(1, 3\).*include_special_tokens"),
        ({"input_ids": None}, r"input_ids of shape \(1, 4\).*got None"),
    ],
)
def test_features_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pooling()({**features([[CLS, 10, 11, SEP]]), **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding_dimension": 0}, "embedding_dimension must be at least 1, got 0"),
        ({"max_span_length": 0}, "max_span_length must be at least 1, or None for no limit; got 0"),
        ({"interaction": "outer"}, "interaction must be 'projected' or 'product', got 'outer'"),
    ],
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpanPooling(**{"embedding_dimension": 4, **arguments})


@pytest.mark.parametrize("span", [(-1, 0), (2, 1), (0, 4), (0, 2)])
def test_spans_outside_the_text(span: tuple[int, int]) -> None:
    module = pooling(max_span_length=2)
    with pytest.raises(ValueError, match=r"0 <= first <= last < 4 of at most 2 tokens, got"):
        module.span_vectors(features([[CLS, 10, 11, SEP]]), [(1, 2), span])
    with pytest.raises(ValueError, match="one text, got 2"):
        module.span_vectors(features([[CLS, 10], [CLS, 11]]), [(0, 1)])


def test_without_masks_every_token_counts() -> None:
    module = pooling(include_special_tokens=True)
    batch = features([[10, 11, 12]])
    check(module, {"token_embeddings": batch["token_embeddings"]}, [[True] * 3])
