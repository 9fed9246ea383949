"""The mathematics of VIRT: attention maps between two texts, and how far a student's are from a teacher's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import mse_loss

Heads = Literal["match", "mean"]
Target = Literal["softmax_slice", "full_row_slice", "logits"]
Distance = Literal["mse", "frobenius", "kl"]

# Numbers in the maps of one block: what stays in a core's cache, or keeps a GPU busy.
_BLOCK = {"cpu": 2**18}
_BLOCK_ELSEWHERE = 2**25


class MapOptions(NamedTuple):
    """What maps are made of, and how they are compared; see `VIRTLoss`."""

    heads: Heads = "match"
    target: Target = "softmax_slice"
    distance: Distance = "mse"


class PairAttention(NamedTuple):
    """Queries and keys of one layer for B pairs of texts, each text at the beginning of its rows."""

    first_query: Tensor  # (B, H, m, d_head)
    first_key: Tensor
    second_query: Tensor  # (B, H, n, d_head)
    second_key: Tensor
    scaling: float
    first_lengths: Tensor  # (B,); what stands behind a text's length is never looked at
    second_lengths: Tensor


class Block(NamedTuple):
    """Some pairs of a batch."""

    rows: slice
    first: int  # tokens of the longest first text among them
    second: int
    even: bool  # whether all have that many, so that nothing is padding


# From a block to the teacher's maps of it: first to second text (b, H, m, n), and back (b, H, n, m).
TargetMaps = Callable[[Block], tuple[Tensor, Tensor]]


def interaction_map(
    query: Tensor,
    key: Tensor,
    scaling: float,
    lengths: Tensor | None = None,
    *,
    softmax: bool = True,
    log: bool = False,
) -> Tensor:
    """Return what each token of one text attends to in the other, as far as only the other's tokens can be chosen."""
    # Scaled before the product, not after: half the size, and smaller numbers in the product.
    scores = (query * scaling) @ key.transpose(2, 3)
    if lengths is not None:
        real = row_mask(lengths, key.shape[2])
        if not softmax:
            return scores.masked_fill(~real[:, None, None, :], 0.0)
        scores += _penalty(real, scores.dtype)
    if not softmax:
        return scores
    # The softmax of a slice is the slice of the whole softmax, each row divided by its sum: nothing is invented, and a
    # student whose rows sum to 1 can reach it. The slice itself sums to less.
    return scores.log_softmax(dim=3) if log else scores.softmax(dim=3)


def map_distance(student: Tensor, target: Tensor, lengths: Tensor, distance: Distance = "mse") -> Tensor:
    """Return how far the student's map of each pair is from the teacher's."""
    if distance == "kl":
        # Σ_j T log(T / V) + 1 - Σ_j T: Kullback and Leibler's where T sums to 1, their generalized divergence where it
        # sums to less ("full_row_slice"). The student's map comes as logarithms here.
        rows = (torch.xlogy(target, target) - target * student).sum(dim=3) + 1 - target.sum(dim=3)
    else:
        rows = mse_loss(student, target, reduction="none").sum(dim=3)  # one pass forth and one back
    rows = rows.masked_fill(~row_mask(lengths, rows.shape[2])[:, None, :], 0.0)
    if distance == "frobenius":
        squares = rows.sum(dim=2)
        equal = squares == 0  # where the root has no derivative
        return squares.masked_fill(equal, 1.0).sqrt().masked_fill(equal, 0.0).mean(dim=1)
    # The mean over heads and real rows, but the sum over columns: α means the same for few heads and many, and for
    # short texts that attend and long ones.
    return rows.sum(dim=2).mean(dim=1) / lengths.clamp(min=1)


# Queries, keys, lengths and the width of a block of one of the two texts.
_Side = tuple[Tensor, Tensor, Tensor, int]


class AttentionTarget:
    """The teacher's maps, formed for some pairs at a time."""

    def __init__(
        self,
        attention: PairAttention,
        options: MapOptions,
        row_key: Tensor | None = None,
        row_lengths: Tensor | None = None,
    ) -> None:
        self._attention = attention
        self._options = options
        self._row_key, self._row_lengths = row_key, row_lengths

    def __call__(self, block: Block) -> tuple[Tensor, Tensor]:
        """Return the maps from first to second and from second to first text."""
        part = self._attention
        first = (part.first_query, part.first_key, part.first_lengths, block.first)
        second = (part.second_query, part.second_key, part.second_lengths, block.second)
        return self._map(block, first, second), self._map(block, second, first)

    def _map(self, block: Block, own: _Side, other: _Side) -> Tensor:
        rows, scaling = block.rows, self._attention.scaling
        query, key = own[0][rows, :, : own[3]], other[1][rows, :, : other[3]]
        lengths = None if block.even else other[2][rows]
        if self._row_key is None or self._row_lengths is None:
            maps = interaction_map(query, key, scaling, lengths, softmax=self._options.target != "logits")
        else:
            # "full_row_slice": the denominator is of the teacher's whole input, the numerators are of the other text.
            every = (query * scaling) @ self._row_key[rows].transpose(2, 3)
            every += _penalty(row_mask(self._row_lengths[rows], every.shape[3]), every.dtype)
            maps = interaction_map(query, key, scaling, softmax=False)
            if lengths is not None:
                maps += _penalty(row_mask(lengths, maps.shape[3]), maps.dtype)
            maps = maps.sub_(every.logsumexp(dim=3, keepdim=True)).exp_()
        # The mean of the heads' maps, not a map of their mean scores: rows that are distributions remain so.
        return maps.mean(dim=1, keepdim=True) if self._options.heads == "mean" else maps


def pair_distance(student: PairAttention, target: TargetMaps, options: MapOptions) -> Tensor:
    """Return the distance of one layer: the average over pairs of the average of both directions."""
    # A pair with an empty text has no map and is left out of the average.
    tensors = student[:4]
    first_lengths, second_lengths = student.first_lengths, student.second_lengths
    full = (first_lengths > 0) & (second_lengths > 0)
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    # One share for each pair that counts, and half of it for each direction.
    weights = full.to(dtype) / full.sum().clamp(min=1) / 2

    def evaluate(block: Block, *part: Tensor) -> Tensor:
        rows, even = block.rows, block.even
        first_query, first_key, second_query, second_key = part
        first, second = first_lengths[rows], second_lengths[rows]
        first_target, second_target = (maps.to(dtype) for maps in target(block))
        maps = _student_map(first_query, second_key, student.scaling, None if even else second, options)
        distances = map_distance(maps, first_target, first, options.distance)
        maps = _student_map(second_query, first_key, student.scaling, None if even else first, options)
        distances = distances + map_distance(maps, second_target, second, options.distance)
        return (distances * weights[rows]).sum()

    with torch.autocast(tensors[0].device.type, enabled=False):
        result: Tensor = _EvaluateWithGradient.apply(
            evaluate, _blocks(student), torch.is_grad_enabled(), *(tensor.to(dtype) for tensor in tensors)
        )
        return result


def _blocks(attention: PairAttention) -> list[Block]:
    """Divide a batch so that the maps of a block are small, and on a CPU without padding that none needs."""
    batch, heads, first, _ = attention.first_query.shape
    second = attention.second_query.shape[2]
    device = attention.first_query.device.type
    pairs = max(1, _BLOCK.get(device, _BLOCK_ELSEWHERE) // max(heads * first * second, 1))
    slices = [slice(begin, begin + pairs) for begin in range(0, batch, pairs)]
    if device != "cpu":  # where looking at the lengths would wait for the device
        return [Block(rows, first, second, even=False) for rows in slices]
    blocks = []
    for rows in slices:
        both = [lengths[rows] for lengths in (attention.first_lengths, attention.second_lengths)]
        m, n = (int(lengths.max()) for lengths in both)
        blocks.append(Block(rows, m, n, even=all(bool((lengths == lengths[0]).all()) for lengths in both)))
    return blocks


def _student_map(query: Tensor, key: Tensor, scaling: float, lengths: Tensor | None, options: MapOptions) -> Tensor:
    log = options.distance == "kl"
    maps = interaction_map(query, key, scaling, lengths, softmax=options.target != "logits", log=log)
    if options.heads == "match":
        return maps
    if log:
        # The logarithm of the mean of H maps that are given as logarithms: log Σ_h exp(log V_h) - log H.
        mean: Tensor = maps.logsumexp(dim=1, keepdim=True) - math.log(maps.shape[1])
        return mean
    return maps.mean(dim=1, keepdim=True)


class _EvaluateWithGradient(torch.autograd.Function):
    """The sum of a function over blocks of pairs; its gradient is computed at once and kept instead of its graph."""

    @staticmethod
    def forward(
        ctx: Any, evaluate: Callable[..., Tensor], blocks: list[Block], gradients: bool, *tensors: Tensor
    ) -> Tensor:
        # What waits for the backward pass is no map, but one gradient of the size of the queries and keys.
        total = tensors[0].new_zeros(())
        kept = [torch.zeros_like(tensor) for tensor in tensors] if gradients else []
        for block in blocks:
            places = [(block.rows, slice(None), slice(width)) for width in (block.first,) * 2 + (block.second,) * 2]
            parts = [
                tensor[place].detach().requires_grad_(gradients) for tensor, place in zip(tensors, places, strict=True)
            ]
            with torch.set_grad_enabled(gradients):
                value = evaluate(block, *parts)
            if gradients:
                for whole, place, gradient in zip(kept, places, torch.autograd.grad(value, parts), strict=True):
                    whole[place] = gradient
            total += value.detach()
        ctx.save_for_backward(*kept)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Exact, as the loss is one number: what comes from above is a factor.
        return None, None, None, *(gradient * kept for kept in ctx.saved_tensors)


def row_mask(lengths: Tensor, width: int) -> Tensor:
    """Say which tokens are real."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def _penalty(real: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what to add to scores so that only real columns are attended to."""
    # Half the lowest number: differences to it do not overflow, and a row without any real column stays finite.
    return (~real).to(dtype).mul_(torch.finfo(dtype).min / 2)[:, None, None, :]
