"""Explain the similarity of two texts, by splitting it into contributions of spans."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer

from st_plugins.core.texts import check_strings
from st_plugins.explain.gathered import View
from st_plugins.explain.inner.layers import Depth
from st_plugins.explain.inner.units import By
from st_plugins.explain.pair_explanation import PairExplanation
from st_plugins.explain.pairs import Settings, explained


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
    pooling and any activation will do; where they have kinks (a maximum, ReLU) many nodes are needed. The integrals
    are sums over as many nodes as the tolerance asks for; what they miss is ``error``. The price is a pass for each
    token and node: see ``by`` for long texts.

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
        by: What to list and draw: ``"word"``, ``"phrase"`` (words in a row that correspond to the same, see
            ``alignment``), ``"token"`` or ``"sentence"``, with SpanPooling also ``"span"``. None takes spans where
            there are such, else words. ``contributions`` are those of spans or tokens in any case, but through the
            layers those of what is given here: a sentence is integrated at once, which is cheap.
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
        TypeError: ``model`` is no SentenceTransformer.
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
    check_strings(first=first, second=second)
    settings = Settings(top_k, max_spans, prompt, by, view, faithfulness, depth, reference, tolerance)
    (found,) = explained(model, [(first, second)], lambda row, side: ("first text", "second text")[side], settings)
    return found
