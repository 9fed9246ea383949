"""Maps and distances against plain loops; gradients, blocks, half precision, empty texts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from st_plugins.methods.virt import maps as virt_maps
from st_plugins.methods.virt.maps import (
    AttentionTarget,
    Block,
    MapOptions,
    PairAttention,
    interaction_map,
    map_distance,
    pair_distance,
)

HEADS, DEPTH, SCALING = 3, 4, 0.5
FIRST, SECOND = [3, 1, 4, 0, 2], [2, 1, 5, 3, 0]
CHOICES = [
    MapOptions(heads, target, distance)
    for heads, target, distance in itertools.product(
        ("match", "mean"), ("softmax_slice", "full_row_slice", "logits"), ("mse", "frobenius", "kl")
    )
    if (target, distance) != ("logits", "kl")
]


def pairs(seed: int, dtype: torch.dtype = torch.float64, heads: int = HEADS, scale: float = 1.0) -> PairAttention:
    generator = torch.Generator().manual_seed(seed)
    widths = (max(FIRST), max(FIRST), max(SECOND), max(SECOND))
    tensors = [scale * torch.randn(len(FIRST), heads, w, DEPTH, generator=generator) for w in widths]
    return PairAttention(*(t.to(dtype) for t in tensors), SCALING, torch.tensor(FIRST), torch.tensor(SECOND))


def target_of(attention: PairAttention, options: MapOptions) -> AttentionTarget:
    """The teacher's input is made up: the first text, the second text, and 2 special tokens with keys of 0.3."""
    if options.target != "full_row_slice":
        return AttentionTarget(attention, options)
    lengths = [m + n + 2 for m, n in zip(FIRST, SECOND, strict=True)]
    rows = torch.full((len(FIRST), attention.first_key.shape[1], max(lengths) + 1, DEPTH), 0.3, dtype=torch.float64)
    for row, (m, n) in enumerate(zip(FIRST, SECOND, strict=True)):
        rows[row, :, :m] = attention.first_key[row, :, :m]
        rows[row, :, m : m + n] = attention.second_key[row, :, :n]
        rows[row, :, lengths[row] :] = 99.0
    return AttentionTarget(attention, options, rows, torch.tensor(lengths))


def scores_oracle(query: list[float], keys: list[list[float]]) -> list[float]:
    return [SCALING * sum(q * k for q, k in zip(query, key, strict=True)) for key in keys]


def softmax_oracle(scores: list[float], others: list[float]) -> list[float]:
    total = sum(math.exp(score) for score in [*scores, *others])
    return [math.exp(score) / total for score in scores]


def map_oracle(attention: PairAttention, row: int, first: bool, target: str) -> list[list[list[float]]]:
    """Rows of numbers for each head."""
    m, n = (FIRST[row], SECOND[row]) if first else (SECOND[row], FIRST[row])
    queries, keys = (
        (attention.first_query, attention.second_key) if first else (attention.second_query, attention.first_key)
    )
    own = attention.first_key if first else attention.second_key
    maps = []
    for head in range(queries.shape[1]):
        rows = []
        for i in range(m):
            query = queries[row, head, i].tolist()
            scores = scores_oracle(query, keys[row, head, :n].tolist())
            if target == "logits":
                rows.append(scores)
            elif target == "softmax_slice":
                rows.append(softmax_oracle(scores, []))
            else:
                rest = [*own[row, head, :m].tolist(), [0.3] * DEPTH, [0.3] * DEPTH]
                rows.append(softmax_oracle(scores, scores_oracle(query, rest)))
        maps.append(rows)
    return maps


def mean_over_heads(maps: list[list[list[float]]]) -> list[list[list[float]]]:
    rows, columns = len(maps[0]), len(maps[0][0])
    return [[[sum(head[i][j] for head in maps) / len(maps) for j in range(columns)] for i in range(rows)]]


def distance_oracle(student: Any, target: Any, distance: str) -> float:
    heads = []
    for v_map, t_map in zip(student, target, strict=True):
        rows = []
        for v_row, t_row in zip(v_map, t_map, strict=True):
            if distance == "kl":
                cells = [t * math.log(t / v) for v, t in zip(v_row, t_row, strict=True)]
                rows.append(sum(cells) + 1 - sum(t_row))
            else:
                rows.append(sum((v - t) ** 2 for v, t in zip(v_row, t_row, strict=True)))
        heads.append(math.sqrt(sum(rows)) if distance == "frobenius" else sum(rows) / len(rows))
    return sum(heads) / len(heads)


def pair_oracle(student: PairAttention, teacher: PairAttention, options: MapOptions) -> float:
    values = []
    for row in range(len(FIRST)):
        if not FIRST[row] or not SECOND[row]:
            continue
        both = []
        for first in (True, False):
            own = map_oracle(student, row, first, "logits" if options.target == "logits" else "softmax_slice")
            other = map_oracle(teacher, row, first, options.target)
            if options.heads == "mean":
                own, other = mean_over_heads(own), mean_over_heads(other)
            both.append(distance_oracle(own, other, options.distance))
        values.append(sum(both) / 2)
    return sum(values) / len(values)


@pytest.mark.parametrize("options", CHOICES, ids="/".join)
def test_the_distance_is_its_formula(options: MapOptions) -> None:
    student, teacher = pairs(0), pairs(1, heads=HEADS if options.heads == "match" else 2)
    value = pair_distance(student, target_of(teacher, options), options)
    assert value.item() == pytest.approx(pair_oracle(student, teacher, options), rel=1e-10)
    assert value > 0.01


@pytest.mark.parametrize("options", CHOICES, ids="/".join)
def test_gradients_are_those_of_finite_differences(options: MapOptions) -> None:
    student, target = pairs(0), target_of(pairs(1), options)

    def distance(*tensors: Tensor) -> Tensor:
        return pair_distance(PairAttention(*tensors, *student[4:]), target, options)

    assert torch.autograd.gradcheck(distance, [tensor.requires_grad_() for tensor in student[:4]], fast_mode=True)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for numbers in (1, 150, 2**18):  # one pair, two pairs, all at a time
        monkeypatch.setitem(virt_maps._BLOCK, "cpu", numbers)
        student, options = pairs(0), MapOptions()
        inputs = [tensor.requires_grad_() for tensor in student[:4]]
        value = pair_distance(student, target_of(pairs(1), options), options)
        results.append([value.detach(), *torch.autograd.grad(3 * value, inputs)])
    for other in results[1:]:
        for left, right in zip(results[0], other, strict=True):
            torch.testing.assert_close(left, right)


def test_without_gradients_the_value_is_the_same() -> None:
    student, options = pairs(0), MapOptions()
    target = target_of(pairs(1), options)
    inputs = [tensor.requires_grad_() for tensor in student[:4]]
    with torch.no_grad():
        value = pair_distance(PairAttention(*inputs, *student[4:]), target, options)
    assert not value.requires_grad and value == pair_distance(student, target, options)


def test_rows_are_distributions_over_the_real_tokens() -> None:
    attention = pairs(0)
    maps = interaction_map(attention.first_query, attention.second_key, SCALING, attention.second_lengths)
    for row, (m, n) in enumerate(zip(FIRST, SECOND, strict=True)):
        if n:
            torch.testing.assert_close(maps[row, :, :m, :n].sum(dim=2), torch.ones(HEADS, m, dtype=torch.float64))
            assert not maps[row, :, :, n:].any()
    assert maps.isfinite().all()


@pytest.mark.parametrize("options", CHOICES, ids="/".join)
def test_padding_is_never_looked_at(options: MapOptions) -> None:
    student, teacher = pairs(0), pairs(1)
    value = pair_distance(student, target_of(teacher, options), options)
    lengths = (FIRST, FIRST, SECOND, SECOND)
    for tensor, rows in zip(student[:4], lengths, strict=True):
        for row, length in enumerate(rows):
            tensor[row, :, length:] = 1e4
    assert pair_distance(student, target_of(teacher, options), options) == pytest.approx(value.item(), rel=1e-10)


@pytest.mark.parametrize("options", CHOICES, ids="/".join)
def test_swapping_the_texts_swaps_the_maps(options: MapOptions) -> None:
    def mirrored(block: Block) -> Block:
        return block._replace(first=block.second, second=block.first)

    def swapped(attention: PairAttention) -> PairAttention:
        query, key, other_query, other_key, scaling, first, second = attention
        return PairAttention(other_query, other_key, query, key, scaling, second, first)

    student, teacher = pairs(0), pairs(1)
    target = target_of(teacher, options)
    value = pair_distance(student, target, options)
    again = pair_distance(swapped(student), lambda block: target(mirrored(block))[::-1], options)
    assert again.item() == pytest.approx(value.item(), rel=1e-10)


def test_equal_maps_have_no_distance_and_a_finite_gradient() -> None:
    for options in CHOICES:
        if options.target != "full_row_slice":
            student = pairs(0)
            inputs = [tensor.requires_grad_() for tensor in student[:4]]
            teacher = PairAttention(*(t.detach() for t in inputs), *student[4:])
            value = pair_distance(student, target_of(teacher, options), options)
            assert value.item() == pytest.approx(0, abs=1e-12)
            assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, inputs))


def test_one_token_attends_to_one_token() -> None:
    one = torch.tensor([1])
    student, teacher = (PairAttention(*torch.randn(4, 1, 2, 1, 8), 0.35, one, one) for _ in range(2))
    assert interaction_map(student.first_query, student.second_key, 0.35, one).tolist() == [[[[1.0]], [[1.0]]]]
    assert pair_distance(student, AttentionTarget(teacher, MapOptions()), MapOptions()) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", CHOICES, ids="/".join)
def test_half_precision_is_computed_in_float32(options: MapOptions, dtype: torch.dtype) -> None:
    student, teacher = pairs(0, dtype, scale=8.0), pairs(1, scale=8.0)
    inputs = [tensor.requires_grad_() for tensor in student[:4]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = pair_distance(student, target_of(teacher, options), options)
    exact = PairAttention(*(tensor.detach().double() for tensor in inputs), *student[4:])
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(pair_distance(exact, target_of(teacher, options), options).item(), rel=1e-4)
    for gradient in torch.autograd.grad(value, inputs):
        assert gradient.dtype == dtype and gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("options", CHOICES, ids="/".join)
@pytest.mark.parametrize("width", [0, 2])
def test_empty_texts_alone_give_zero_with_a_gradient(options: MapOptions, width: int) -> None:
    none = torch.zeros(2, dtype=torch.long)
    shapes = [(2, HEADS, width, DEPTH), (2, HEADS, width, DEPTH), (2, HEADS, 3, DEPTH), (2, HEADS, 3, DEPTH)]
    student, teacher = (
        PairAttention(*(torch.randn(shape, requires_grad=own) for shape in shapes), 0.5, none, none + 3)
        for own in (True, False)
    )
    if options.target == "full_row_slice":
        target = AttentionTarget(teacher, options, torch.randn(2, HEADS, 5, DEPTH), none + 5)
    else:
        target = AttentionTarget(teacher, options)
    value = pair_distance(student, target, options)
    assert value == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(value, student[:4]))


def test_map_distance_of_a_map_without_rows_is_zero() -> None:
    maps = torch.rand(2, 1, 3, 3)
    assert map_distance(maps, torch.zeros_like(maps), torch.tensor([0, 3]))[0] == 0
