"""Explain the similarities of many pairs of texts, each text looked at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
from sentence_transformers import SentenceTransformer
from torch import Tensor
from tqdm.auto import tqdm

from st_plugins.core.host import check_encoder
from st_plugins.core.texts import check_strings
from st_plugins.explain.align import Units, linked, units_of
from st_plugins.explain.eraser import Faithfulness, mean_faithfulness
from st_plugins.explain.eraser import faithfulness as measure
from st_plugins.explain.gathered import View
from st_plugins.explain.inner.about import about
from st_plugins.explain.inner.layers import Depth, check_through, full_precision
from st_plugins.explain.inner.path import check_tolerance, integrated_parts
from st_plugins.explain.inner.seen import Seen, look
from st_plugins.explain.inner.take_apart import Parts, check_apart, take_apart
from st_plugins.explain.inner.units import By, check_by, check_count
from st_plugins.explain.pair_explanation import PairExplanation

logger = logging.getLogger(__name__)

_EPS = 1e-12  # of the host's cosine


def explain_pairs(
    model: SentenceTransformer,
    pairs: Iterable[tuple[str, str]],
    top_k: int = 10,
    *,
    max_spans: int = 512,
    prompt: str | tuple[str, str] | None = None,
    by: By | None = None,
    view: View = "interaction",
    faithfulness: bool = False,
    depth: Depth = "output",
    reference: str | None = None,
    tolerance: float = 1e-3,
    batch_size: int = 32,
    show_progress_bar: bool = False,
) -> list[PairExplanation]:
    """Split the similarities of many pairs, as :func:`~st_plugins.explain.explain_pair` does that of one.

    Texts are encoded in batches, each distinct one once, and also taken apart once, which is what counts at another
    ``depth`` than the output.

    Args:
        model: As for ``explain_pair``, as all that is not said here.
        pairs: Two texts each.
        top_k: How many pairs of words each explanation lists.
        max_spans: Spans of a text that are kept one by one.
        prompt: Goes before the texts, or one for the first and one for the second ones.
        by: What to list and draw.
        view: What to list and draw first.
        faithfulness: Whether to measure by deletion, too.
        depth: Where to split: ``"output"``, ``"input"`` or the number of a layer.
        reference: What stands in the place of words at the other end of the way through the layers.
        tolerance: How much contributions may miss a similarity through the layers.
        batch_size: Texts in a batch.
        show_progress_bar: Whether to show progress.

    Returns:
        An explanation of each pair, in their order.

    Raises:
        TypeError: A pair is not two strings, or ``model`` is no SentenceTransformer.
        ValueError: As for ``explain_pair``; messages name the pair and the side.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> pairs = [("A happy dog sleeps.", "The cat is asleep."), ("A happy dog sleeps.", "A dog runs.")]
        >>> found = explain_pairs(untrained_encoder(), pairs)
        >>> [explanation.second.text for explanation in found]
        ['The cat is asleep.', 'A dog runs.']
    """
    settings = Settings(top_k, max_spans, prompt, by, view, faithfulness, depth, reference, tolerance)
    return explained(
        model,
        _checked(pairs),
        lambda row, side: f"pairs[{row}][{side}]",
        settings,
        batch_size=batch_size,
        show_progress_bar=show_progress_bar,
    )


@dataclass(frozen=True)
class Settings:
    """How pairs are explained, checked."""

    top_k: int
    max_spans: int
    prompt: str | tuple[str, str] | None
    by: By | None
    view: View
    faithfulness: bool
    depth: Depth
    reference: str | None
    tolerance: float

    def __post_init__(self) -> None:
        check_count(self.top_k, "top_k")
        check_count(self.max_spans, "max_spans")
        check_tolerance(self.tolerance)
        if self.by is not None:
            check_by(self.by, "span")
        if self.view not in get_args(View):
            raise ValueError(f"view={self.view!r} must be one of {', '.join(map(repr, get_args(View)))}")
        if self.depth == "output" and self.reference is not None:
            raise ValueError(
                f"reference={self.reference!r} is for the way through the layers; leave it out, or give a depth"
            )
        if self.depth != "output" and self.by == "span":
            raise ValueError(
                f"by='span' is for depth='output', got depth={self.depth!r}; use 'word', 'token' or 'sentence'"
            )

    @property
    def prompts(self) -> tuple[str | None, str | None]:
        """What goes before the first and the second texts."""
        return self.prompt if isinstance(self.prompt, tuple) else (self.prompt, self.prompt)


def explained(
    model: SentenceTransformer,
    pairs: Sequence[tuple[str, str]],
    named: Callable[[int, int], str],
    settings: Settings,
    *,
    batch_size: int = 1,  # a text by itself is what it is without padding, which moves some models' positions
    show_progress_bar: bool = False,
) -> list[PairExplanation]:
    """Explain pairs, whose texts messages call what ``named`` says of a pair's row and the text's side."""
    check_encoder(model)
    check_count(batch_size, "batch_size")
    function = str(model.similarity_fn_name)
    if function not in ("cosine", "dot"):
        raise ValueError(
            f"the model's similarity function is {function!r}, which is no sum over spans; set "
            "model.similarity_fn_name to 'cosine' or 'dot'"
        )
    if settings.depth == "output":
        check_apart(model)
    else:
        check_through(model, settings.depth)
        model = full_precision(model)
    # Each distinct text of a side, or of both where they have one prompt, with the name of its first place.
    prompts = settings.prompts
    names: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for row, pair in enumerate(pairs):
        for side, text in enumerate(pair):
            names[side if prompts[0] != prompts[1] else 0].setdefault(text, named(row, side))
    texts: list[dict[str, _Text]] = []
    for own, prompt in zip(names, prompts, strict=True):
        listed = list(own)
        looked = look(
            model,
            listed,
            prompt,
            layers=True,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            names=list(own.values()),
        )
        texts.append({listed[row]: _Text(model, seen, settings) for row, seen in looked})
    firsts, seconds = texts[0], texts[1] or texts[0]
    made = about(model, prompts)
    bar = tqdm(pairs, desc="Explaining", unit="pairs", disable=not show_progress_bar)
    return [_explained(model, firsts[first], seconds[second], settings, function, made) for first, second in bar]


@dataclass
class _Text:
    """A text that the model has seen, and its parts, which are made when they are first asked for."""

    model: SentenceTransformer
    seen: Seen
    settings: Settings
    _parts: dict[float, Parts] = field(default_factory=dict)
    _units: Units | None = None

    def parts(self, tolerance: float) -> Parts:
        """Return the parts, through the layers to within a tolerance."""
        asked, key = self.settings, tolerance if self.settings.depth != "output" else 0.0
        if key not in self._parts:
            self._parts[key] = (
                take_apart(self.model, self.seen, asked.max_spans)
                if asked.depth == "output"
                else integrated_parts(
                    self.model,
                    self.seen.reading,
                    asked.depth,
                    reference=asked.reference,
                    tolerance=key,
                    by=None if asked.by == "phrase" else asked.by,
                )
            )
        return self._parts[key]

    def units(self, by: By) -> Units:
        """Return the words and their vectors, for the alignment."""
        if self._units is None:
            self._units = units_of(self.seen, by)
        return self._units


def _explained(
    model: SentenceTransformer,
    first: _Text,
    second: _Text,
    settings: Settings,
    function: str,
    made: dict[str, str],
) -> PairExplanation:
    one, other = sides = _parts(first, second, settings)
    shown = check_by(settings.by, one.unit)
    norms = _lengths(sides) if function == "cosine" else 1.0
    similarity = float(model.similarity(one.embedding, other.embedding))
    contributions = (one.vectors @ other.vectors.T / norms).numpy()
    by: By = "word" if shown in ("span", "phrase") else shown
    return PairExplanation(
        first=one.side,
        second=other.side,
        contributions=contributions,
        similarity=similarity,
        similarity_function=function,
        unit=one.unit,
        exact=one.exact,
        gap=float(one.alone.sum(0) @ other.alone.sum(0)) / norms - similarity,
        top_k=settings.top_k,
        faithfulness=_faithfulness(model, one, other, settings.prompts) if settings.faithfulness else None,
        by=shown,
        alignment=linked((one.side.text, other.side.text), first.units(by), second.units(by), by),
        view=settings.view,
        about=made,
        depth=settings.depth,
        error=None if settings.depth == "output" else float(contributions.sum()) - similarity,
        reference=one.reference,
        nodes=None if settings.depth == "output" else (one.nodes, other.nodes),
    )


def _checked(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    if isinstance(pairs, str):
        raise TypeError("pairs must be a list of two texts each, got one string; see explain_pair for one pair")
    found = []
    for row, pair in enumerate(pairs):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(f"pairs[{row}] must be two strings, got {type(pair).__name__} {str(pair)[:80]}")
        check_strings(**{f"pairs[{row}][{side}]": text for side, text in enumerate(pair)})
        found.append((pair[0], pair[1]))
    return found


def _lengths(sides: Sequence[Parts]) -> float:
    """Return the product of the lengths of two embeddings."""
    # The host divides by the norms of what it compares, and by a small number where they are zero. At the output that
    # is the sum of the parts; integrals miss a little of it.
    wholes = [side.vectors.sum(0) if side.reference is None else side.embedding.double() for side in sides]
    return float(np.prod([max(float(whole.norm()), _EPS) for whole in wholes]))


def _parts(first: _Text, second: _Text, settings: Settings) -> tuple[Parts, Parts]:
    """Take both texts apart, through the layers so finely that the similarity is met."""
    tolerance = settings.tolerance
    if settings.depth == "output":
        return first.parts(tolerance), second.parts(tolerance)
    # What the parts of a text miss hardly points to the other text, so the same tolerance nearly always does; the
    # second one does in any case, if it is reached.
    for aim in (tolerance, tolerance / 3):
        sides = first.parts(aim), second.parts(aim)
        one, other = (side.vectors.sum(0) for side in sides)
        wholes = [side.embedding.double() for side in sides]
        error = float(one @ other - wholes[0] @ wholes[1]) / _lengths(sides)
        if abs(error) <= tolerance or max(side.error for side in sides) > aim:
            break
    if not abs(error) <= tolerance:
        logger.warning(
            "at depth %r contributions miss the similarity by %.1e of the product of the norms, with %d and %d nodes, "
            "where the tolerance is %.1e; give another reference or a higher tolerance",
            *(settings.depth, error, sides[0].nodes, sides[1].nodes, tolerance),
        )
    return sides


def _faithfulness(
    model: SentenceTransformer, first: Parts, second: Parts, prompts: tuple[str | None, str | None]
) -> Faithfulness:
    """Delete from either text while the other stays, and average."""
    found = []
    for side, other, prompt in ((first, second, prompts[0]), (second, first, prompts[1])):
        # What each part adds to the dot product with the other text, which stays: the order is that of the cosine.
        whole = other.vectors.sum(0)

        def score(embeddings: Tensor, fixed: Tensor = other.embedding) -> Tensor:
            compared: Tensor = model.similarity(embeddings.float(), fixed.float().to(embeddings.device)[None])[:, 0]
            return compared

        saliency = (side.vectors @ whole).numpy() @ side.side.spread()
        found.append(measure(model, side.side.text, saliency, score, prompt=prompt))
    return mean_faithfulness(found)
