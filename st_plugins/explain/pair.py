"""Explain a similarity exactly, by splitting it into contributions of spans."""

from __future__ import annotations

from typing import get_args

import numpy as np
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_plugins.explain.align import alignment_of
from st_plugins.explain.eraser import Faithfulness, mean_faithfulness
from st_plugins.explain.eraser import faithfulness as measure
from st_plugins.explain.gathered import View
from st_plugins.explain.inner.about import about
from st_plugins.explain.inner.seen import see
from st_plugins.explain.inner.take_apart import Parts, check_apart, take_apart
from st_plugins.explain.inner.units import By, check_by, check_count
from st_plugins.explain.pair_explanation import PairExplanation

_EPS = 1e-12  # of the host's cosine


def explain_pair(
    model: SentenceTransformer,
    first: str,
    second: str,
    top_k: int = 10,
    *,
    max_spans: int = 512,
    prompt: str | tuple[str, str] | None = None,
    by: By | None = None,
    view: View = "interaction",
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

    Most of a contribution is what a span adds by itself, to whatever it meets. With r and c the sums of rows and
    columns, and α and β divided by their sums::

        contribution(s, t) = β_t r_s + α_s c_t - α_s β_t Σr  +  interaction(s, t)

    where the first three are the ``main_effects``, with the same total, and rows and columns of the ``interaction``
    sum to zero: it is what two spans have in common beyond that. Which words correspond is said by neither, but by
    the ``alignment``, see :func:`~st_plugins.explain.align`.

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
        view: What to list and draw first: ``"interaction"`` or ``"contribution"``.
        faithfulness: Whether to measure by deletion how the similarity reacts when tokens of either text are removed.

    Returns:
        The contributions.

    Raises:
        ValueError: The pooling, a module after it, or the similarity function is not supported, there is nothing to
            explain in a text, ``top_k`` or ``max_spans`` is below 1, or ``by`` or ``view`` is unknown.

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
    if view not in get_args(View):
        raise ValueError(f"view={view!r} must be one of {', '.join(map(repr, get_args(View)))}")
    function = str(model.similarity_fn_name)
    if function not in ("cosine", "dot"):
        raise ValueError(
            f"the model's similarity function is {function!r}, which is no sum over spans; set "
            "model.similarity_fn_name to 'cosine' or 'dot'"
        )
    prompts = prompt if isinstance(prompt, tuple) else (prompt, prompt)
    check_apart(model)
    seen = [see(model, [text], own, layers=True)[0] for text, own in zip((first, second), prompts, strict=True)]
    sides = [take_apart(model, text, max_spans) for text in seen]
    one, other = sides
    shown = check_by(by, one.unit)
    norms = 1.0
    if function == "cosine":
        # The host divides by the norms of what it compares, and by a small number where they are zero.
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
        by=shown,
        alignment=alignment_of(seen[0], seen[1], "word" if shown == "span" else shown),
        view=view,
        about=about(model, prompts),
    )


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
