"""Explain one embedding: what its pooling looks at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text
from sentence_transformers import SentenceTransformer
from torch import Tensor
from typing_extensions import Self

from st_plugins.core.files import JSONText
from st_plugins.core.host import check_encoder
from st_plugins.explain.eraser import Faithfulness
from st_plugins.explain.eraser import faithfulness as measure
from st_plugins.explain.inner.drawing import pieces, place, shown
from st_plugins.explain.inner.seen import see
from st_plugins.explain.inner.take_apart import check_apart, take_apart
from st_plugins.explain.inner.units import By, check_by, check_count, gather
from st_plugins.explain.spans import Side, Span, Unit
from st_plugins.report.matrices import STYLE, Piece, legend_html, strip_html, strip_terminal
from st_plugins.report.page import escape, page, section
from st_plugins.report.table import Table
from st_plugins.report.terminal import foreign

_UNIFORM = (
    "This model pools by a mean: the weights depend on positions alone, and say nothing about the words. "
    "explain_pair shows what makes two texts similar."
)


@dataclass(frozen=True, eq=False)
class Explanation(JSONText):
    """What the embedding of one text is made of.

    Args:
        side: The text, its tokens and the heaviest spans.
        unit: ``"span"`` (SpanPooling) or ``"token"`` (mean poolings).
        saliency: ``(n,)``: weight of every token, that of a span spread evenly over its tokens; sums to 1.
        sharpness: Σ α² over all spans: 1 for a single span, 1 / number of spans when all weigh the same.
        faithfulness: What deletion says about it, if asked for.
        by: What ``top`` lists: ``"span"``, those of the pooling, or ``"word"``, ``"token"`` or ``"sentence"``, whose
            weights are the sums of their tokens' shares.
        top_k: How many ``top`` lists.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> found = explain_text(untrained_encoder(), "A happy dog sleeps.", top_k=3)
        >>> len(Explanation.from_json(found.to_json()).top)
        3
    """

    side: Side
    unit: Unit
    saliency: NDArray[np.float64]
    sharpness: float
    faithfulness: Faithfulness | None = None
    by: By = "span"
    top_k: int = 10

    @property
    def text(self) -> str:
        """The text."""
        return self.side.text

    @property
    def spans(self) -> tuple[Span, ...]:
        """The heaviest parts that the pooling itself adds up, in order of weight."""
        spans = [span for span in self.side.spans if span.kind != "rest"]
        return tuple(sorted(spans, key=lambda span: -span.weight))

    @property
    def top(self) -> tuple[Span, ...]:
        """The ``top_k`` heaviest words (see ``by``), in order of weight, without special tokens."""
        spans = [span for span in self.gathered() if span.kind not in ("special", "rest")]
        return tuple(sorted(spans, key=lambda span: -span.weight)[: self.top_k])

    def gathered(self) -> tuple[Span, ...]:
        """Return the spans, or all words, tokens or sentences (see ``by``) with their share of the weight."""
        if self.by == "span":
            return self.side.spans
        # Saliency covers all spans, while only the heaviest have been kept: words are summed up from tokens.
        count = len(self.side.tokens)
        tokens = tuple(
            Span(token.text, token.start, token.end, place, place, float(weight), token.kind)
            for place, (token, weight) in enumerate(zip(self.side.tokens, self.saliency, strict=True))
        )
        return gather(dataclasses.replace(self.side, spans=tokens, rest=None, total=count), self.by)[0]

    @classmethod
    def _stored(cls, stored: dict[str, Any]) -> Self:
        found = stored["faithfulness"]
        return cls(
            Side.from_dict(stored["side"]),
            stored["unit"],
            np.array(stored["saliency"]),
            stored["sharpness"],
            None if found is None else Faithfulness.from_dict(found),
            stored["by"],
            stored["top_k"],
        )

    def to_terminal(self) -> Group:
        """Return a heat map of the text and its heaviest spans, for ``rich.console.Console().print``."""
        parts: list[RenderableType] = [Padding(strip_terminal(self._strip(), self._full_color()), (1, 0))]
        parts += [self._table().to_terminal(), *map(foreign, [self._summary(), *self._notes()])]
        if self.faithfulness is not None:
            parts += [Text(), self.faithfulness.to_table()]
        return Group(*parts)

    def to_html(self) -> str:
        """Return one self-contained HTML page."""
        limit = self._full_color()
        body = [
            "<h1>What the embedding is made of</h1>",
            f'<p class="summary">{escape(self._summary())}</p>',
            *(f'<p class="note">{escape(line)}</p>' for line in self._notes()),
            section("Weight of the tokens", strip_html(self._strip(), limit) + legend_html(limit, signed=False)),
            self._table().to_html(),
        ]
        if self.faithfulness is not None:
            body.append(self.faithfulness.to_html())
        return page("What an embedding is made of", body, STYLE)

    def _strip(self) -> list[Piece]:
        return pieces(self.text, self.side.tokens, self.saliency)

    def _full_color(self) -> float:
        """Return the weight that gets full color: equal weights get half of it."""
        return float(max(self.saliency.max(), 2 / len(self.saliency)))

    def _number_of_units(self) -> int:
        return self.side.total if self.by == "span" else len(self.gathered())

    def _table(self) -> Table:
        rows = [[f"{span.weight:.4f}", shown(span), place(span)] for span in self.top]
        title, words = f"Heaviest of {self._number_of_units():,} {self.by}s", (self.by, "characters")
        return Table(title, ["weight", *words], rows, words=words)

    def _summary(self) -> str:
        listed, whole = (sum(span.weight for span in spans) for spans in (self.top, self.gathered()))
        return (
            f"{self._number_of_units():,} {self.by}s; the {len(self.top)} heaviest hold "
            f"{100 * listed / whole:.1f} % of the weight. Sharpness Σα² = {self.sharpness:.4f} (1 for a single "
            f"{self.unit}, {1 / self.side.total:.4f} for equal weights)."
        )

    def _notes(self) -> list[str]:
        lines = [_UNIFORM] if self.unit == "token" else []
        if self.side.unread:
            lines.append(f"The model cut off the last {self.side.unread:,} characters of the text.")
        return lines


def explain_text(
    model: SentenceTransformer,
    text: str | Sequence[str],
    top_k: int = 10,
    *,
    prompt: str | None = None,
    by: By | None = None,
    faithfulness: bool = False,
) -> Explanation:
    """Say which spans of a text its embedding is made of.

    With SpanPooling these are the attention weights the embedding is summed with: not an estimate, but what the model
    does. With a mean pooling the weights are known without looking (every token counts the same, or by its position),
    so that :func:`~st_plugins.explain.explain_pair` says more.

    Args:
        model: A model with SpanPooling, a mean pooling, or a StaticEmbedding; as it was afterwards.
        text: The text; or a pair of texts that the model reads as one, as with `SelfExplainingLoss`.
        top_k: How many spans to list. All spans count in ``saliency`` and ``sharpness``; none but these gets a vector.
        prompt: Goes before the text, as in ``encode``; None takes the model's default prompt, ``""`` takes none.
        by: What to list: ``"word"``, ``"token"`` or ``"sentence"``, with SpanPooling also ``"span"``. None takes spans
            where there are such, else words.
        faithfulness: Whether to measure by deletion how far the embedding moves (its cosine to itself) without the
            most salient tokens, and with them alone.

    Returns:
        Spans with weights, and saliency of the tokens.

    Raises:
        TypeError: ``model`` is no SentenceTransformer.
        ValueError: The pooling is not supported, there is nothing to explain in ``text``, or ``top_k`` is below 1.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> explanation = explain_text(untrained_encoder(), "A happy dog sleeps.", top_k=3)
        >>> round(float(explanation.saliency.sum()), 6), len(explanation.spans)
        (1.0, 3)
    """
    check_encoder(model)
    check_count(top_k, "top_k")
    if by is not None:
        check_by(by, "span")
        if by == "phrase":
            raise ValueError("by='phrase' is for two texts, whose phrases correspond; use 'word' for one")
    check_apart(model)
    parts = take_apart(model, see(model, [text], prompt)[0], top_k)
    found = None
    if faithfulness:
        whole = parts.embedding.float()

        def score(embeddings: Tensor) -> Tensor:
            return torch.cosine_similarity(embeddings.float(), whole.to(embeddings.device)[None])

        # At the top of a cosine to itself all gradients vanish: there is nothing to compare with.
        found = measure(model, text, parts.saliency, score, gradient=False, prompt=prompt)
    shown = check_by(by, parts.unit)
    return Explanation(parts.side, parts.unit, parts.saliency, parts.sharpness, found, shown, top_k)
