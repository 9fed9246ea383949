"""What has to be known about the inside of encoders: where their token embeddings leave, and who reads positions.

The views act on the output of the embedding layer: the sum of word, position and type embeddings, after LayerNorm
and dropout, where the architecture has a module that returns it; otherwise on the output of the word embedding.

The published token shuffle gives the tokens each other's position ids. That says nothing to an encoder whose attention
is biased by the distance between slots. `TokenShuffle` therefore does one of two things:

``position_ids``
    The ids that the encoder is about to look up (or to rotate by) are permuted among the real tokens, wherever they
    start: at 0, or at padding_idx + 1 = 2 as in RoBERTa. Masks are not affected: a causal decoder goes on reading from
    left to right, ModernBERT's local attention keeps its window, and only the angles are shuffled.

``embeddings``
    The encoder reads the tokens in a random order, and its outputs return to the places of their tokens before they
    are pooled. Absolute positions, if there are any, stay with the slots, so that both kinds of positions agree about
    the new order; this is why MPNet, and DeBERTa with absolute positions, are shuffled so.

For an encoder with absolute positions and full attention the one is the other with the inverse permutation, unless
something else goes by slots, as Nyströmformer's convolution does; over random permutations both are the same.

==============================  ======================================  ==================
model_type                      token embeddings are the output of      shuffled
==============================  ======================================  ==================
bert, roberta, xlm-roberta,     ``embeddings``                          ``position_ids``
distilbert, nystromformer
albert, electra                 ``embeddings``, before the projection   ``position_ids``
                                to the hidden size
modernbert                      ``embeddings`` (rotary positions)       ``position_ids``
gpt2                            ``drop``: word + position               ``position_ids``
llama and other decoders        word embedding (rotary positions)       ``position_ids``
with ``rotary_emb``
mpnet                           ``embeddings``                          ``embeddings``
deberta, deberta-v2 (v2, v3)    ``embeddings``                          ``embeddings``
t5, mt5, umt5, longt5           ``encoder.embed_tokens``                ``embeddings``
xlnet                           ``word_embedding``                      ``embeddings``
StaticEmbedding (host module)   the embedding bag, taken apart          not at all
TokenEmbeddings (our module)    its table                               not at all
any other                       ``embeddings`` if it has such a child,  ``position_ids``
                                else ``get_input_embeddings()``         if a position
                                                                        table or rotary
                                                                        module is found,
                                                                        else
                                                                        ``embeddings``
==============================  ======================================  ==================
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule, Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from torch import nn

ShuffleKind = Literal["position_ids", "embeddings", "none"]

# Tested architectures, with the way their tokens are shuffled.
_TESTED: dict[str, ShuffleKind] = {
    "albert": "position_ids",
    "bert": "position_ids",
    "deberta": "embeddings",
    "deberta-v2": "embeddings",
    "distilbert": "position_ids",
    "electra": "position_ids",
    "gpt2": "position_ids",
    "llama": "position_ids",
    "modernbert": "position_ids",
    "mpnet": "embeddings",
    "nystromformer": "position_ids",
    "roberta": "position_ids",
    "t5": "embeddings",
    "xlm-roberta": "position_ids",
    "xlnet": "embeddings",
}
# Biased by the distance of slots, although they have (or may have) a table of absolute positions.
_RELATIVE_TOO = {"deberta", "deberta-v2", "mpnet"}
# The embedding layer, where the general rule does not find it. T5's get_input_embeddings() is a module never called.
_EMBEDDING_PATHS = {
    "gpt2": "drop",
    **dict.fromkeys(("t5", "mt5", "umt5", "longt5"), "encoder.embed_tokens"),
}
_TOKENS_FIRST = {"xlnet"}  # works on (tokens, batch, features)
_POSITION_TABLES = ("position_embeddings", "wpe", "embed_positions")
_ROTARY = "rotary_emb"


@dataclass(frozen=True)
class EncoderParts:
    """The modules of an encoder that views act on."""

    transformer: nn.Module  # the host's module around the encoder
    embedding: nn.Module  # whose output are the token embeddings; for static embeddings the bag that averages them
    positions: nn.Module | None  # called with the position ids, where there is such a one
    shuffle: ShuffleKind
    tokens_first: bool = False  # whether the embeddings are (tokens, batch, features)


def supported_models() -> dict[str, ShuffleKind]:
    """Return the tested architectures (``model_type`` of the configuration) and how their tokens are shuffled.

    Others work too if the general rule of this module's table fits them.

    Returns:
        ``"position_ids"`` or ``"embeddings"`` for each.

    Example:
        >>> supported_models()["roberta"], supported_models()["t5"]
        ('position_ids', 'embeddings')
    """
    return dict(_TESTED)


def shuffle_kind(model: SentenceTransformer) -> ShuffleKind:
    """Return what `TokenShuffle` permutes in this model: its position ids or its token embeddings.

    Args:
        model: A model whose first module is a Transformer, a StaticEmbedding or TokenEmbeddings.

    Returns:
        ``"position_ids"`` or ``"embeddings"``; ``"none"`` for static embeddings, which know no order, and for
        `TokenEmbeddings`, whose order only the pooling reads.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> shuffle_kind(untrained_encoder())
        'position_ids'
    """
    return encoder_parts(model).shuffle


def encoder_parts(model: SentenceTransformer) -> EncoderParts:
    """Find the modules that views act on."""
    transformer = next(iter(model), None)
    if isinstance(transformer, StaticEmbedding) and isinstance(transformer.embedding, nn.EmbeddingBag):
        return EncoderParts(transformer, transformer.embedding, None, "none")
    table = getattr(transformer, "embedding", None)
    if isinstance(transformer, InputModule) and isinstance(table, nn.Embedding):  # TokenEmbeddings
        return EncoderParts(transformer, table, None, "none")
    if not isinstance(transformer, Transformer) or not isinstance(transformer.model, nn.Module):
        raise ValueError(
            f"model starts with a {type(transformer).__name__}, but views need a StaticEmbedding, or "
            f"TokenEmbeddings, or a Transformer with token embeddings, such as {', '.join(_TESTED)}"
        )
    wrapped: Any = transformer.model
    encoder: Any = getattr(wrapped, "base_model", wrapped)  # without the head or adapter around it
    model_type = str(getattr(encoder.config, "model_type", ""))
    embedding = _embedding(encoder, model_type)
    if embedding is None:
        raise ValueError(
            f"no embedding layer was found in the encoder {type(encoder).__name__} (model_type {model_type!r}); "
            f"views work with {', '.join(_TESTED)}, and with encoders that have an 'embeddings' module or "
            "implement get_input_embeddings()"
        )
    positions = _positions(encoder, embedding)
    # Ids permuted alone would leave the distances between slots as they were, and the sentence half shuffled.
    relative = positions is None or model_type in _RELATIVE_TOO
    return EncoderParts(
        transformer, embedding, positions, "embeddings" if relative else "position_ids", model_type in _TOKENS_FIRST
    )


def _embedding(encoder: Any, model_type: str) -> nn.Module | None:
    if model_type in _EMBEDDING_PATHS:
        module = encoder
        for name in _EMBEDDING_PATHS[model_type].split("."):
            module = getattr(module, name, None)
    else:
        module = getattr(encoder, "embeddings", None)
    if isinstance(module, nn.Module):
        return module
    try:
        module = encoder.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return module if isinstance(module, nn.Module) else None


def _positions(encoder: Any, embedding: nn.Module) -> nn.Module | None:
    # BERT has the table inside its embedding layer, GPT-2 beside it.
    for parent in (embedding, encoder):
        for name in _POSITION_TABLES:
            table = getattr(parent, name, None)
            if type(table) is nn.Embedding:  # subclasses are often called with something else than ids
                return table
    rotary = getattr(encoder, _ROTARY, None)
    if isinstance(rotary, nn.Module) and "position_ids" in inspect.signature(rotary.forward).parameters:
        return rotary
    return None


def special_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the tokens that views spare if they are told to."""
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id}
    # An unknown or masked word is a word, unless its id also marks an end, as in GPT-2.
    words = {tokenizer.unk_token_id, tokenizer.mask_token_id} - ends
    return sorted(set(tokenizer.all_special_ids) - words)
