"""The augmentations as functions of tensors, against loops written from their definitions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from st_plugins.methods.contrastive import functional

HALF = (torch.float16, torch.bfloat16, torch.float32)
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1]])


def distinct_keys(*shape: int) -> Tensor:
    """Uniform keys without ties."""
    return torch.stack([torch.randperm(math.prod(shape[1:])) for _ in range(shape[0])]).view(shape) / math.prod(
        shape[1:]
    )


def smallest(keys: dict[Any, float], count: int) -> set[Any]:
    return set(sorted(keys, key=lambda place: keys[place])[:count])


def oracle(name: str, embeddings: Tensor, mask: Tensor, rate: float, keys: Tensor) -> Tensor:
    result = embeddings.clone()
    sentences, tokens, features = embeddings.shape
    for s in range(sentences):
        real = [t for t in range(tokens) if mask[s, t]]
        if name == "token_cutoff":
            for t in smallest({t: keys[s, t].item() for t in real}, int(len(real) * rate)):
                result[s, t] = 0
        elif name == "feature_cutoff":
            for f in smallest({f: keys[s, f].item() for f in range(features)}, int(features * rate)):
                result[s, :, f] = 0
        else:
            places = {(t, f): keys[s, t, f].item() for t in real for f in range(features)}
            for t, f in smallest(places, int(len(real) * features * rate)):
                result[s, t, f] = 0
    return result


def call(name: str, embeddings: Tensor, mask: Tensor, rate: float, keys: Tensor | None = None) -> Tensor:
    function: Callable[..., Tensor] = getattr(functional, name)
    arguments = (embeddings, rate, keys) if name == "feature_cutoff" else (embeddings, mask, rate, keys)
    return function(*arguments)


def keys_for(name: str, embeddings: Tensor) -> Tensor:
    sentences, tokens, features = embeddings.shape
    shapes = {"token_cutoff": (tokens,), "feature_cutoff": (features,), "embedding_dropout": (tokens, features)}
    return distinct_keys(sentences, *shapes[name])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.15, 0.2, 0.34, 0.5, 0.99])
@pytest.mark.parametrize("name", ["token_cutoff", "feature_cutoff", "embedding_dropout"])
def test_cut_exactly_what_the_definition_says(name: str, rate: float, dtype: torch.dtype) -> None:
    embeddings = torch.randn(4, 7, 9).to(dtype)
    keys = keys_for(name, embeddings)
    output = call(name, embeddings, MASK, rate, keys)
    assert output.dtype == dtype
    assert torch.equal(output, oracle(name, embeddings, MASK, rate, keys))


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.29, 0.5, 0.97])
def test_dropout_counts_are_exact_at_full_size(rate: float) -> None:
    mask = torch.ones(6, 64, dtype=torch.long)
    for sentence, length in enumerate((64, 63, 40, 7, 1)):
        mask[sentence, length:] = 0
    embeddings = torch.randn(6, 64, 768)
    output = functional.embedding_dropout(embeddings, mask, rate)
    cut = output == 0
    assert cut.sum(dim=(1, 2)).tolist() == [int(n * 768 * rate) for n in mask.sum(dim=1).tolist()]
    assert torch.equal(output[~cut], embeddings[~cut])
    assert not cut[mask == 0].any()


def test_dropout_survives_ties_and_unlucky_keys() -> None:
    embeddings = torch.ones(3, 4, 5)
    for keys in (torch.full((3, 4, 5), 0.3), torch.zeros(3, 4, 5), torch.full((3, 4, 5), 0.999)):
        output = functional.embedding_dropout(embeddings, torch.ones(3, 4), 0.3, keys)
        assert (output == 0).sum(dim=(1, 2)).tolist() == [6, 6, 6]


@pytest.mark.parametrize("rate", [0.1, 0.15, 0.29, 0.57, 0.58, 1 / 3, 0.7])
def test_counts_round_as_python_does(rate: float) -> None:
    counts = torch.arange(2000)
    assert functional._share(counts, rate).tolist() == [int(n * rate) for n in range(2000)]


def test_features_cut_differ_between_sentences() -> None:
    cut = functional.feature_cutoff(torch.ones(20, 3, 50), 0.2) == 0
    assert (cut == cut[:, :1]).all() and cut[:, 0].sum(dim=1).tolist() == [10] * 20
    assert len({tuple(row.tolist()) for row in cut[:, 0]}) == 20


def chi_square(counts: list[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


@pytest.mark.parametrize("name", ["token_cutoff", "feature_cutoff", "embedding_dropout"])
def test_all_subsets_are_equally_likely(name: str) -> None:
    shapes = {"token_cutoff": (20_000, 6, 1), "feature_cutoff": (20_000, 1, 6), "embedding_dropout": (20_000, 2, 3)}
    embeddings = torch.ones(shapes[name])
    cut = call(name, embeddings, torch.ones(embeddings.shape[:2]), 0.5) == 0
    codes = cut.flatten(1).long() @ (2 ** torch.arange(6))
    subsets = [sum(2**place for place in chosen) for chosen in itertools.combinations(range(6), 3)]
    counts = [int((codes == subset).sum()) for subset in subsets]
    assert sum(counts) == 20_000
    assert chi_square(counts) < 43.8  # 99.9 % quantile, 19 degrees of freedom


def test_all_permutations_are_equally_likely() -> None:
    permutations = functional.shuffle_permutation(torch.ones(24_000, 4)).tolist()
    counts = [permutations.count(list(order)) for order in itertools.permutations(range(4))]
    assert sum(counts) == 24_000
    assert chi_square(counts) < 49.7  # 99.9 % quantile, 23 degrees of freedom


def test_permutation_moves_real_tokens_only() -> None:
    keys = distinct_keys(4, 7)
    permutation = functional.shuffle_permutation(MASK, keys)
    for s in range(4):
        real = [t for t in range(7) if MASK[s, t]]
        expected = list(range(7))
        for place, source in zip(real, sorted(real, key=lambda t: keys[s, t].item()), strict=True):
            expected[place] = source
        assert permutation[s].tolist() == expected


@pytest.mark.parametrize("name", ["token_cutoff", "feature_cutoff", "embedding_dropout", "shuffle"])
@pytest.mark.parametrize(("before", "after"), [(0, 5), (5, 0), (2, 3)])
def test_padding_changes_nothing_given_the_same_keys(name: str, before: int, after: int) -> None:
    embeddings, mask = torch.randn(3, 6, 10), torch.ones(3, 6, dtype=torch.long)
    pad = torch.nn.functional.pad

    def padded(keys: Tensor) -> Tensor:
        """Keep the keys of real tokens, draw new ones for pads."""
        wide = torch.rand(3, before + 6 + after, *keys.shape[2:])
        wide[:, before : before + 6] = keys
        return wide

    wide_mask = pad(mask, (before, after))
    if name == "shuffle":
        keys = distinct_keys(3, 6)
        narrow = functional.shuffle_permutation(mask, keys)
        wide = functional.shuffle_permutation(wide_mask, padded(keys))
        assert torch.equal(wide[:, before : before + 6] - before, narrow)
        return
    keys = keys_for(name, embeddings)
    wide = call(
        name,
        pad(embeddings, (0, 0, before, after), value=3.0),
        wide_mask,
        0.34,
        keys if name == "feature_cutoff" else padded(keys),
    )
    assert torch.equal(wide[:, before : before + 6], call(name, embeddings, mask, 0.34, keys))
    if name != "feature_cutoff":
        assert (wide[wide_mask == 0] == 3).all()


@pytest.mark.parametrize("name", ["token_cutoff", "feature_cutoff", "embedding_dropout"])
def test_what_is_cut_gets_no_gradient(name: str) -> None:
    embeddings = torch.randn(4, 7, 9).abs().add(1).requires_grad_()
    output = call(name, embeddings, MASK, 0.4)
    output.sum().backward()
    assert embeddings.grad is not None
    assert torch.equal(embeddings.grad, (output != 0).float())


@pytest.mark.parametrize("name", ["token_cutoff", "feature_cutoff", "embedding_dropout"])
def test_drawn_from_torch_so_that_a_replay_is_exact(name: str) -> None:
    embeddings = torch.randn(4, 7, 9)
    state = torch.get_rng_state()
    first = call(name, embeddings, MASK, 0.4)
    assert not torch.equal(first, call(name, embeddings, MASK, 0.4))
    torch.set_rng_state(state)
    assert torch.equal(first, call(name, embeddings, MASK, 0.4))


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4])
@pytest.mark.parametrize("dtype", [*HALF, torch.float64])
def test_adversarial_step(dtype: torch.dtype, scale: float) -> None:
    gradient = (torch.randn(4, 7, 9, dtype=torch.float64) * scale).to(dtype)
    gradient[0, 0] = 0
    delta = functional.adversarial_delta(gradient, MASK, 0.7)
    expected = torch.zeros(4, 7, 9, dtype=torch.float64)
    for s, t in MASK.nonzero().tolist():
        length = math.sqrt(sum(value.item() ** 2 for value in gradient[s, t]))
        for f in range(9):
            expected[s, t, f] = 0.7 * gradient[s, t, f].item() / (length + 1e-10)
    assert delta.dtype == dtype
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-6)
    torch.testing.assert_close(delta.double(), expected, atol=tolerance, rtol=tolerance)
    lengths = delta.double().norm(dim=2)
    assert (lengths[MASK == 0] == 0).all() and lengths[0, 0] == 0


def test_adversarial_norm_of_each_sentence() -> None:
    gradient = torch.randn(4, 7, 9, requires_grad=True)
    delta = functional.adversarial_delta(gradient, MASK, torch.tensor([1.0, 0.0, 0.25, 2.0]))
    lengths = delta.norm(dim=2)
    for s, norm in enumerate((1.0, 0.0, 0.25, 2.0)):
        torch.testing.assert_close(lengths[s][MASK[s] == 1], torch.full((int(MASK[s].sum()),), norm))
    assert not delta.requires_grad
