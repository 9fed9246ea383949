"""Explain a similarity exactly, by splitting it into contributions of spans."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import get_args

import numpy as np
from sentence_transformers import SentenceTransformer
from torch import Tensor

from st_plugins.explain.align import alignment_of
from st_plugins.explain.eraser import Faithfulness, mean_faithfulness
from st_plugins.explain.eraser import faithfulness as measure
from st_plugins.explain.gathered import View
from st_plugins.explain.inner.about import about
from st_plugins.explain.inner.layers import Depth, check_through, full_precision
from st_plugins.explain.inner.path import check_tolerance, integrated_parts
from st_plugins.explain.inner.seen import Seen, see
from st_plugins.explain.inner.take_apart import Parts, check_apart, take_apart
from st_plugins.explain.inner.units import By, check_by, check_count
from st_plugins.explain.pair_explanation import PairExplanation

logger = logging.getLogger(__name__)

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
    depth: Depth = "output",
    reference: str | None = None,
    tolerance: float = 1e-3,
) -> PairExplanation:
    """Split the similarity of two texts into contributions of their spans: exactly, or through the layers.

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

    At another ``depth`` than the output the parts of an embedding are those of the tokens as they enter a layer. With
    e(h) what the rest of the model, up to its last linear modules, makes of hidden states h, x those of the text and r
    those of a reference text of the same length, whose words say nothing::

        e(x) = e(r) + Σ_i U_i      U_i = ∫ De(r + a (x - r)) [(x - r)_i] da, a from 0 to 1

    so that the similarity is a sum over pairs of parts again, the reference being one more part of each text. Any
    pooling and any activation will do. The integrals are sums over as many nodes as the tolerance asks for; what they
    miss is ``error``. The price is a pass for each token and node: see ``by`` for long texts.

    Args:
        model: A model with SpanPooling, Pooling by ``"mean"``, ``"weightedmean"`` or ``"mean_sqrt_len_tokens"``, or a
            StaticEmbedding, and cosine or dot similarity; through the layers any Transformer whose attention is
            ``"sdpa"`` or ``"eager"`` and any pooling; one in half precision is copied to float32. As it was
            afterwards.
        first: First text.
        second: Second text.
        top_k: How many pairs to list.
        max_spans: A text with more spans (n tokens have n (n + 1) / 2) keeps the heaviest and puts the others into
            one last row or column, the rest, which is exact as a whole: its vector is the embedding minus the spans
            kept. Memory stays linear in the text. Through the layers there is no rest.
        prompt: Goes before the texts, as in ``encode``, or one for each; None takes the model's default prompt.
        by: What to list and draw: ``"word"``, ``"token"`` or ``"sentence"``, with SpanPooling also ``"span"``. None
            takes spans where there are such, else words. ``contributions`` are those of spans or tokens in any case,
            but through the layers those of what is given here: a sentence is integrated at once, which is cheap.
        view: What to list and draw first: ``"interaction"`` or ``"contribution"``.
        faithfulness: Whether to measure by deletion how the similarity reacts when tokens of either text are removed.
        depth: ``"output"``; ``"input"``, the token embeddings; or k, the hidden states after layer k of the encoder.
        reference: A token such as ``"[MASK]"``, or a text: its tokens, repeated or cut to the length, stand in the
            place of those of the text, while special tokens and a prompt stay. None takes the tokenizer's padding
            token, else its mask, unknown or end token.
        tolerance: Through the layers: how much contributions may miss the similarity, of the product of the norms.
            Nodes are added until that is reached, up to a limit; if it is not, a warning and the page say how near.

    Returns:
        The contributions.

    Raises:
        ValueError: The pooling, a module after it, or the similarity function is not supported, there is nothing to
            explain in a text, ``top_k`` or ``max_spans`` is below 1, ``by`` or ``view`` is unknown, or
            the encoder cannot be gone through at ``depth``.

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
        weighted sum of spans. Splitting a similarity with it is ours. Moeller, Nikolaev & Padó, "An Attribution Method
        for Siamese Encoders" (2023), arXiv 2310.05703, for the integrated split through the layers, which subtracts
        the terms of the reference, where we list them; Sundararajan, Taly & Yan, "Axiomatic Attribution for Deep
        Networks" (2017), arXiv 1703.01365, for the integral. Derivatives in forward mode, at nodes by arc length, are
        ours.
    """
    check_count(top_k, "top_k")
    check_count(max_spans, "max_spans")
    check_tolerance(tolerance)
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
    if depth == "output":
        if reference is not None:
            raise ValueError(
                f"reference={reference!r} is for the way through the layers; leave it out, or give a depth"
            )
        check_apart(model)
    else:
        if by == "span":
            raise ValueError(
                f"by='span' is for depth='output', got depth={depth!r}; use 'word', 'token' or 'sentence'"
            )
        check_through(model, depth)
        model = full_precision(model)
    seen = [see(model, [text], own, layers=True)[0] for text, own in zip((first, second), prompts, strict=True)]
    if depth == "output":
        sides = [take_apart(model, text, max_spans) for text in seen]
    else:
        sides = _through(model, seen, depth, reference, tolerance, by)
    one, other = sides
    shown = check_by(by, one.unit)
    norms = _lengths(sides) if function == "cosine" else 1.0
    similarity = float(model.similarity(one.embedding, other.embedding))
    found = None
    if faithfulness:
        found = _faithfulness(model, one, other, prompts)
    contributions = (one.vectors @ other.vectors.T / norms).numpy()
    return PairExplanation(
        first=one.side,
        second=other.side,
        contributions=contributions,
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
        depth=depth,
        error=None if depth == "output" else float(contributions.sum()) - similarity,
        reference=one.reference,
        nodes=None if depth == "output" else (one.nodes, other.nodes),
    )


def _lengths(sides: Sequence[Parts]) -> float:
    """Return the product of the lengths of two embeddings."""
    # The host divides by the norms of what it compares, and by a small number where they are zero. At the output that
    # is the sum of the parts; integrals miss a little of it.
    wholes = [side.vectors.sum(0) if side.reference is None else side.embedding.double() for side in sides]
    return float(np.prod([max(float(whole.norm()), _EPS) for whole in wholes]))


def _through(
    model: SentenceTransformer,
    seen: Sequence[Seen],
    depth: Depth,
    reference: str | None,
    tolerance: float,
    by: By | None,
) -> list[Parts]:
    """Take both texts apart at a depth, so finely that the similarity is met."""
    # What the parts of a text miss hardly points to the other text, so the same tolerance nearly always does; the
    # second one does in any case, if it is reached.
    for aim in (tolerance, tolerance / 3):
        sides = [
            integrated_parts(model, text.reading, depth, reference=reference, tolerance=aim, by=by) for text in seen
        ]
        one, other = (side.vectors.sum(0) for side in sides)
        wholes = [side.embedding.double() for side in sides]
        error = float(one @ other - wholes[0] @ wholes[1]) / _lengths(sides)
        if abs(error) <= tolerance or max(side.error for side in sides) > aim:
            break
    if not abs(error) <= tolerance:
        logger.warning(
            "explain_pair: at depth %r contributions miss the similarity by %.1e of the product of the norms, with %d "
            "and %d nodes, where the tolerance is %.1e; give another reference or a higher tolerance",
            *(depth, error, sides[0].nodes, sides[1].nodes, tolerance),
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
