"""Explain a similarity: which spans of one text meet which spans of the other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from sentence_transformers import SentenceTransformer
from torch import Tensor
from typing_extensions import Self

from st_plugins.explain.eraser import Faithfulness, mean_faithfulness
from st_plugins.explain.eraser import faithfulness as measure
from st_plugins.explain.parts import Parts, Unit, take_apart
from st_plugins.explain.single import check_count, to_json
from st_plugins.explain.spans import Side, Span
from st_plugins.explain.units import By, check_by, gather

__all__ = ["AlignedPair", "Gathered", "PairExplanation", "explain_pair"]

_EPS = 1e-12  # of the host's cosine


class AlignedPair(NamedTuple):
    """A span of each text, and what they add to the similarity.

    Args:
        first: Of the first text.
        second: Of the second text.
        contribution: Their entry of the contributions.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_pair
        >>> found = explain_pair(untrained_encoder(), "A happy dog sleeps.", "The cat is asleep.")
        >>> found.top_pairs[0].contribution >= found.top_pairs[1].contribution
        True
    """

    first: Span
    second: Span
    contribution: float


class Gathered(NamedTuple):
    """Contributions of words, sentences or tokens."""

    first: tuple[Span, ...]
    second: tuple[Span, ...]
    contributions: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PairExplanation:
    """The similarity of two texts as a sum over pairs of spans.

    Args:
        first: The first text with its spans.
        second: The second text with its spans.
        contributions: ``(spans of the first, spans of the second)``, float64; the total is the similarity.
        similarity: What ``model.similarity`` gives.
        similarity_function: ``"cosine"`` or ``"dot"``.
        unit: ``"span"`` (SpanPooling) or ``"token"`` (mean poolings).
        exact: Whether every entry is what the model computes. False after an activation, where the total is still the
            similarity, but how it is divided is a choice (see :class:`~st_plugins.explain.tail.Tail`).
        gap: How much the total would miss the similarity if every span passed the activations by itself; rounding
            where ``exact``.
        top_k: How many pairs ``top_pairs`` has.
        faithfulness: What deletion says, mean of both texts, if asked for.
        by: What ``top_pairs`` and the pictures show: ``"word"``, ``"token"``, ``"sentence"``, or ``"span"``, the spans
            themselves. A word's contributions are sums over its tokens; the total stays the similarity.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_pair
        >>> found = explain_pair(untrained_encoder(), "A happy dog sleeps.", "The cat is asleep.")
        >>> again = PairExplanation.from_json(found.to_json())
        >>> again.similarity - found.similarity, len(again.top_pairs)
        (0.0, 10)
    """

    first: Side
    second: Side
    contributions: NDArray[np.float64]
    similarity: float
    similarity_function: str
    unit: Unit
    exact: bool
    gap: float
    top_k: int
    faithfulness: Faithfulness | None = None
    by: By = "token"

    @property
    def tokens(self) -> NDArray[np.float64]:
        """``(n_1, n_2)``: the contributions with each span spread evenly over its tokens; the same total."""
        return np.asarray(self.first.spread().T @ self.contributions @ self.second.spread())

    @property
    def first_saliency(self) -> NDArray[np.float64]:
        """``(n_1,)``: what each token of the first text adds to the similarity, row sums of ``tokens``."""
        return np.asarray(self.contributions.sum(1) @ self.first.spread())

    @property
    def second_saliency(self) -> NDArray[np.float64]:
        """``(n_2,)``: what each token of the second text adds to the similarity, column sums of ``tokens``."""
        return np.asarray(self.contributions.sum(0) @ self.second.spread())

    @property
    def top_pairs(self) -> tuple[AlignedPair, ...]:
        """The ``top_k`` pairs of words (see ``by``) that add most, in order, without special tokens and the rest."""
        first, second, table = self.gathered()
        rows, columns = (
            [k for k, unit in enumerate(units) if unit.kind not in ("special", "rest")] for units in (first, second)
        )
        listed = table[np.ix_(rows, columns)]
        best = np.argsort(-listed, axis=None, kind="stable")[: self.top_k]
        return tuple(
            AlignedPair(first[rows[row]], second[columns[column]], float(listed[row, column]))
            for row, column in zip(*np.unravel_index(best, listed.shape), strict=True)
        )

    def gathered(self, by: By | None = None) -> Gathered:
        """Return the contributions added up to words, sentences or tokens.

        Args:
            by: To what; None takes the explanation's own ``by``.

        Returns:
            The units of both texts, special tokens and the rest included, and their contributions, ``(units
            of the first, units of the second)``; the total is the similarity.
        """
        by = self.by if by is None else check_by(by, self.unit)
        (first, table_a), (second, table_b) = gather(self.first, by), gather(self.second, by)
        return Gathered(first, second, np.asarray(table_a @ self.contributions @ table_b.T))

    def to_json(self) -> str:
        """Return everything as JSON text, which :meth:`from_json` reads."""
        return to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read :meth:`to_json` back.

        Args:
            text: JSON text.

        Returns:
            The explanation.
        """
        stored = json.loads(text)
        stored["first"], stored["second"] = Side.from_dict(stored["first"]), Side.from_dict(stored["second"])
        stored["contributions"] = np.array(stored["contributions"])
        if stored["faithfulness"] is not None:
            stored["faithfulness"] = Faithfulness.from_dict(stored["faithfulness"])
        return cls(**stored)

    def to_terminal(self) -> Group:
        """Return heat maps of both texts and the pairs that add most, for ``rich.console.Console().print``."""
        from st_plugins.explain.report import pair_terminal

        return pair_terminal(self)

    def to_html(self) -> str:
        """Return one self-contained HTML page."""
        from st_plugins.explain.report import pair_html

        return pair_html(self)


def explain_pair(
    model: SentenceTransformer,
    first: str,
    second: str,
    top_k: int = 10,
    *,
    max_spans: int = 512,
    prompt: str | tuple[str, str] | None = None,
    by: By | None = None,
    faithfulness: bool = False,
) -> PairExplanation:
    """Split the similarity of two texts into contributions of their spans, exactly.

    An embedding made by SpanPooling is a sum of span vectors h with weights α that sum to 1; a mean pooling is the
    same with tokens. Affine modules f after it keep that (the weights carry the bias), and a Normalize, or a
    LayerNorm after its centring, only divides by one number. So with embeddings u and v::

        contribution(s, t) = α_s β_t ⟨f(h_s), f(h_t)⟩ / (|u| |v|)      (without the division for dot products)

    and all contributions add up to the similarity. A contribution can be negative. Special tokens are in the host's
    mean and are shown as what they are. A token's vector has seen the whole text: a contribution says which
    positions the similarity is read from, not what it would be without the others; ``faithfulness`` measures that.

    Args:
        model: A model with SpanPooling, Pooling by ``"mean"``, ``"weightedmean"`` or ``"mean_sqrt_len_tokens"``, or a
            StaticEmbedding, and cosine or dot similarity; as it was afterwards.
        first: First text.
        second: Second text.
        top_k: How many pairs to list.
        max_spans: A text with more spans (n tokens have n (n + 1) / 2) keeps the heaviest and puts the others into
            one last row or column, the rest, which is exact as a whole: its vector is the embedding minus the spans
            kept. Memory stays linear in the text.
        prompt: Goes before the texts, as in ``encode``, or one for each; None takes the model's default prompt.
        by: What to list and draw: ``"word"``, ``"token"`` or ``"sentence"``, with SpanPooling also ``"span"``. None
            takes spans where there are such, else words. ``contributions`` are those of spans or tokens in any case.
        faithfulness: Whether to measure by deletion how the similarity reacts when tokens of either text are removed.

    Returns:
        The contributions.

    Raises:
        ValueError: The pooling, a module after it, or the similarity function is not supported, there is nothing to
            explain in a text, or ``top_k`` or ``max_spans`` is below 1.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> model = untrained_encoder()
        >>> explanation = explain_pair(model, "A happy dog sleeps.", "The cat is asleep.")
        >>> embeddings = model.encode(["A happy dog sleeps.", "The cat is asleep."])
        >>> gap = explanation.contributions.sum() - float(model.similarity(*embeddings))
        >>> explanation.exact, bool(abs(gap) < 1e-5), explanation.top_pairs[0].first.text != ""
        (True, True, True)

    Reference:
        Sun, Fan, Han, Wu & Li, "Self-Explaining Structures Improve NLP Models" (2020), arXiv 2012.01786, for the
        weighted sum of spans. Splitting a similarity with it is ours.
    """
    check_count(top_k, "top_k")
    check_count(max_spans, "max_spans")
    if by is not None:
        check_by(by, "span")
    function = str(model.similarity_fn_name)
    if function not in ("cosine", "dot"):
        raise ValueError(
            f"the model's similarity function is {function!r}, which is no sum over spans; set "
            "model.similarity_fn_name to 'cosine' or 'dot'"
        )
    prompts = prompt if isinstance(prompt, tuple) else (prompt, prompt)
    sides = [take_apart(model, *given) for given in zip((first, second), (max_spans,) * 2, prompts, strict=True)]
    one, other = sides
    norms = 1.0
    if function == "cosine":
        norms = float(np.prod([max(float(side.vectors.sum(0).norm()), _EPS) for side in sides]))
    similarity = float(model.similarity(one.embedding, other.embedding))
    found = None
    if faithfulness:
        found = _faithfulness(model, one, other, prompts)
    return PairExplanation(
        first=one.side,
        second=other.side,
        contributions=(one.vectors @ other.vectors.T / norms).numpy(),
        similarity=similarity,
        similarity_function=function,
        unit=one.unit,
        exact=one.exact,
        gap=float(one.alone.sum(0) @ other.alone.sum(0)) / norms - similarity,
        top_k=top_k,
        faithfulness=found,
        by=check_by(by, one.unit),
    )


def _faithfulness(
    model: SentenceTransformer, first: Parts, second: Parts, prompts: tuple[str | None, str | None]
) -> Faithfulness:
    """Delete from either text while the other stays, and average."""
    found = []
    for side, other, prompt in ((first, second, prompts[0]), (second, first, prompts[1])):
        whole = other.vectors.sum(0)

        def score(embeddings: Tensor, fixed: Tensor = other.embedding) -> Tensor:
            compared: Tensor = model.similarity(embeddings.float(), fixed.float().to(embeddings.device)[None])[:, 0]
            return compared

        saliency = (side.vectors @ whole).numpy() @ side.side.spread()
        found.append(measure(model, side.side.text, saliency, score, prompt=prompt))
    return mean_faithfulness(found)
