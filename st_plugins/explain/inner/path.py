"""Take an embedding apart through the layers: what each token adds on the way from a reference to the text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import BSpline, CubicSpline, make_interp_spline
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor, func, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from st_plugins.core.host import evaluating
from st_plugins.explain.inner.layers import Depth, differentiable, place_of
from st_plugins.explain.inner.reading import Reading
from st_plugins.explain.inner.tail import Tail
from st_plugins.explain.inner.take_apart import Parts
from st_plugins.explain.inner.units import By, grouped
from st_plugins.explain.spans import Side, Span

# With e(h) what the rest of the model makes of hidden states h, x those of the text and r those of a reference text,
#     U_i = ∫ De(r + a (x - r)) [(x - r)_i] da,  a from 0 to 1,  adds up over the tokens i to e(x) - e(r).
# Each integrand is a directional derivative, one pass in forward mode: no Jacobian is formed. Where e turns quickly on
# its way, derivatives are needed more densely: the way is measured first, by encoding points on it, which costs no
# derivative, and the nodes are those of Gauss and Legendre in its arc length instead of in a. Their number is the
# smallest that integrates the velocity of the measured way well enough.

_NODES = (4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 28, 32, 40, 48, 64, 96, 128)
_POINTS = (17, 1025)  # first and last number of points that the way is measured at
_SLACK = 0.7  # of the asked error is aimed at: what is measured is a spline
_FLOOR = 0.03  # of the mean speed: where nothing moves there are nodes, too
_ROWS = 2048  # tokens of all directions that go through the model at once
_EPS = 1e-12

Array = NDArray[np.float64]


def integrated_parts(
    model: SentenceTransformer,
    reading: Reading,
    depth: Depth,
    *,
    reference: str | None = None,
    tolerance: float = 1e-3,
    by: By | None = None,
) -> Parts:
    """Take an embedding apart into the tokens (words, sentences) at a depth, and the reference, which comes last."""
    # The tolerance is that of the sum of all parts, a share of the embedding's length.
    modules = list(model)
    cut, tail = _cut(modules, model.truncate_dim, depth)
    units, members = grouped(reading, by or "token")
    # Forward derivatives of attention exist for its plain formula only.
    with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        features = batch_to_device(dict(reading.features), model.device)
        place = place_of(model, features, depth)
        name, identifiers = _reference(model, reading, reference)

        def pooled(states: Tensor) -> Tensor:
            with place.holding(states):
                return _run(steps, features)

        whole = _run(modules[:cut], features)
        steps, rows = differentiable(modules[:cut], features)
        embedding = _run(modules, features)[: model.truncate_dim]
        states = place.states(modules[0], features)
        origin = place.states(modules[0], {**features, "input_ids": identifiers.to(model.device)})
        way = _Way(pooled, origin, states - origin, tail, max(rows, len(states)))
        _check_values(whole, embedding, pooled(states), reading)
        way.measure(tolerance)
        masks = torch.from_numpy(members).to(states)
        integrals, nodes = way.integrate(masks, tolerance)
    start, end = (torch.from_numpy(way.values[k]) for k in (0, -1))
    # What is missing is carried along, so that all is divided by the length of the embedding itself.
    vectors = torch.cat([integrals, start[None], (end - start - integrals.sum(0))[None]])
    *carried, missing = tail(vectors, torch.tensor([0.0] * len(integrals) + [1.0, 0.0]).double())
    parts, length = torch.stack(carried), float(embedding.double().norm())
    weights = (parts @ embedding.double().cpu() / max(length, _EPS) ** 2).numpy()
    spans = [
        *(replace(unit, weight=float(weight)) for unit, weight in zip(units, weights, strict=False)),
        Span(name, None, None, -1, -1, float(weights[-1]), "reference"),
    ]
    side = Side(reading.text, reading.tokens, tuple(spans), None, len(spans), reading.unread)
    return Parts(
        side=side,
        unit="token",
        vectors=parts,
        alone=parts,
        saliency=weights @ side.spread(),
        sharpness=float(np.square(weights).sum()),
        embedding=embedding.cpu(),
        exact=False,
        reference=name,
        nodes=nodes,
        error=float(missing.norm()) / max(length, _EPS),
    )


def check_tolerance(tolerance: float) -> None:
    """Refuse what is no positive number."""
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be a positive number, such as 1e-3, got {tolerance!r}")


def _cut(modules: Sequence[nn.Module], dimension: int | None, depth: Depth) -> tuple[int, Tail]:
    """Return how many modules to integrate through, and the others, which divide a sum without a choice."""
    cut, tail = len(modules), Tail([], dimension)
    for position in range(len(modules) - 1, 0, -1):
        try:
            longer = Tail(modules[position:], dimension)
        except ValueError:
            break
        if longer.exact:
            cut, tail = position, longer
    return cut, tail


def _run(modules: Sequence[Callable[..., Any]], features: dict[str, Any]) -> Tensor:
    """Return the sentence embedding ``(k,)`` after some modules."""
    features = dict(features)
    for module in modules:
        features = module(features)
    embedding: Tensor = features["sentence_embedding"][0]
    return embedding


def _reference(model: SentenceTransformer, reading: Reading, reference: str | None) -> tuple[str, Tensor]:
    """Return the name of the reference and its input: special tokens and the prompt stay, all others are exchanged."""
    tokenizer: Any = model.tokenizer
    if reference is None:
        given = (tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)
        found = [identifier for identifier in given if identifier is not None]
        if not found:
            raise ValueError(
                "the tokenizer has no padding, mask, unknown or end token to put in the place of words; give a text "
                "as reference"
            )
        name, numbers = tokenizer.convert_ids_to_tokens(found[0]), found[:1]
    elif isinstance(reference, str):
        name, numbers = reference, tokenizer(reference, add_special_tokens=False)["input_ids"]
        if not numbers:
            raise ValueError(f"reference={reference!r} has no tokens; give a token or a text, such as '.'")
    else:
        raise TypeError(f"reference must be a string or None, got {type(reference).__name__}")
    identifiers = reading.features["input_ids"].clone()
    text = [position for position, token in enumerate(reading.tokens) if token.kind == "text"]
    repeated = list(itertools.islice(itertools.cycle(numbers), len(text)))
    identifiers[0, text] = torch.tensor(repeated, dtype=identifiers.dtype)
    return name, identifiers


def _check_values(whole: Tensor, embedding: Tensor, exchanged: Tensor, reading: Reading) -> None:
    if not bool(whole.isfinite().all() and embedding.isfinite().all()):
        raise ValueError(
            f"the model gave NaN or infinity for the {reading.name} {reading.text[:80]!r}; try float32, or check the "
            "model's weights"
        )
    if float((exchanged - whole).norm()) > 1e-4 * float(whole.norm()) + 1e-6:
        raise ValueError(
            "the model's embedding does not follow from its hidden states at this depth alone; use another depth, or "
            "depth='output'"
        )


@dataclass
class _Way:
    """The embedding on the straight way of the hidden states from the reference to the text."""

    pooled: Callable[[Tensor], Tensor]
    origin: Tensor  # (S, d)
    step: Tensor  # (S, d), to the text
    tail: Tail
    rows: int  # vectors that one pass makes at once
    values: Array = None  # type: ignore[assignment]  # (points, k), at equal steps
    spline: BSpline = None  # type: ignore[assignment]

    def at(self, places: Array) -> Array:
        """Return the embeddings at some places of the way, 0 to 1, ``(places, k)``."""
        given = torch.from_numpy(places).to(self.origin)
        size = max(1, _ROWS // self.rows)
        found = func.vmap(lambda a: self.pooled(self.origin + a * self.step), chunk_size=size)(given)
        return np.asarray(found.double().cpu().numpy())

    def measure(self, goal: float) -> None:
        """Encode more points of the way until those between are foreseen."""
        count, most = _POINTS
        self.values = self.at(np.linspace(0, 1, count))
        while True:
            places = np.linspace(0, 1, count)
            self.spline = make_interp_spline(places, self.values, k=5)
            between = (places[1:] + places[:-1]) / 2
            found = self.at(between)
            foreseen = self.missing(found - self.spline(between))
            self.values = np.insert(self.values, np.arange(1, count), found, axis=0)
            count = len(self.values)
            if foreseen < goal / 20 or count >= most:
                self.spline = make_interp_spline(np.linspace(0, 1, count), self.values, k=5)
                return

    def missing(self, errors: Array) -> float:
        """Return the largest length of some errors after the tail, of the embedding's length."""
        lengths = []
        for error in np.atleast_2d(errors):
            rows = torch.from_numpy(np.stack([self.values[-1] - error, error]))
            rest, lost = self.tail(rows, torch.tensor([1.0, 0.0]).double())
            lengths.append(float(lost.norm() / (rest + lost).norm().clamp_min(_EPS)))
        return max(lengths)

    def rule(self, count: int) -> tuple[Array, Array]:
        """Return so many nodes and their weights."""
        fine = np.linspace(0, 1, 8 * len(self.values) + 1)
        speed = np.linalg.norm(self.spline(fine, 1), axis=1)
        mean = float(speed.mean())
        density = (1 - _FLOOR) * speed / mean + _FLOOR if mean > 0 else np.ones_like(fine)
        length = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
        place = CubicSpline(length / length[-1], fine)
        roots, weights = np.polynomial.legendre.leggauss(count)
        where = (roots + 1) / 2
        return place(where), weights / 2 * place(where, 1)

    def integrate(self, masks: Tensor, goal: float) -> tuple[Tensor, int]:
        """Return the integrals of some directions ``(units, k)`` and the number of nodes."""
        whole = self.values[-1] - self.values[0]
        moving = (masks @ self.step.abs().sum(-1)) > 0
        integrals = torch.zeros(len(masks), whole.shape[0]).double()
        if not bool(moving.any()):
            return integrals, 0

        def foreseen(count: int) -> float:
            nodes, weights = self.rule(count)
            return self.missing(weights @ self.spline(nodes, 1) - whole)

        first = next((k for k, count in enumerate(_NODES) if foreseen(count) <= _SLACK * goal), len(_NODES) - 1)
        # Where the way was not measured well enough, more nodes follow.
        for count in _NODES[first::2]:
            nodes, weights = self.rule(count)
            found = torch.einsum("a,auk->uk", torch.from_numpy(weights), self.derivatives(nodes, masks[moving]))
            integrals[moving.cpu()] = found
            if self.missing(whole - integrals.sum(0).numpy()) <= goal:
                break
        return integrals, count

    def derivatives(self, nodes: Array, masks: Tensor) -> Tensor:
        """Return the derivatives of the embedding, ``(nodes, units, k)``, each along some tokens' step."""

        def derivative(point: Tensor, mask: Tensor) -> Tensor:
            found: Tensor = func.jvp(self.pooled, (point,), (mask[:, None] * self.step,))[1]
            return found

        # What does not depend on the direction is computed once for all that go together; of short texts several nodes
        # go together, too.
        size = max(1, _ROWS // self.rows)
        every = func.vmap(derivative, in_dims=(None, 0), chunk_size=size)
        points = self.origin + torch.from_numpy(nodes).to(self.origin)[:, None, None] * self.step
        several = _ROWS // (self.rows * len(masks))
        if several > 1:
            found = func.vmap(every, in_dims=(0, None), chunk_size=several)(points, masks)
        else:
            found = torch.stack([every(point, masks) for point in points])
        return found.double().cpu()
