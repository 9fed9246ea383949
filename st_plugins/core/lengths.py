"""How many tokens an encoder can read: its table of positions against the length that is asked for."""

from __future__ import annotations

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import nn

__all__ = ["check_length", "positions", "set_length"]

_TABLES = ("position_embeddings", "embed_positions", "wpe")  # as transformers' encoders call it
_NO_LIMIT = 10**9  # tokenizers without a limit of their own say 1e30


def positions(model: SentenceTransformer) -> int | None:
    """Return how many tokens the encoder has positions for."""
    found = []
    for encoder in _encoders(model):
        configured = getattr(encoder.config, "max_position_embeddings", None)
        for name, module in encoder.named_modules():
            if name.rpartition(".")[2] in _TABLES and isinstance(module, nn.Embedding):
                # RoBERTa and its family begin to count after the padding token.
                rows = module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
                found.append(min(rows, configured or rows))
    return min(found, default=None)


def set_length(model: SentenceTransformer, max_seq_length: int) -> None:
    """Cut texts to so many tokens from now on."""
    _check(max_seq_length, positions(model))
    try:
        model.max_seq_length = max_seq_length
    except AttributeError:
        raise ValueError(
            f"max_seq_length={max_seq_length}: a {type(model[0]).__name__} has no length limit that could be set; "
            "leave it out"
        ) from None


def check_length(model: SentenceTransformer) -> None:
    """Refuse a model whose length is set to more than its encoder has positions for, before PyTorch does."""
    length, there = getattr(model, "max_seq_length", None), positions(model)
    if not isinstance(length, int) or length >= _NO_LIMIT:
        return
    # What the host sets itself, the configured number, counts RoBERTa's padding in; short texts never notice.
    configured = [getattr(encoder.config, "max_position_embeddings", None) for encoder in _encoders(model)]
    if length not in configured:
        _check(length, there)


def _encoders(model: SentenceTransformer) -> list[nn.Module]:
    return [module.model for module in model.modules() if isinstance(module, Transformer)]


def _check(length: int, there: int | None) -> None:
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ValueError(f"max_seq_length={length!r} must be a whole number of at least 1")
    if there is not None and length > there:
        raise ValueError(f"max_seq_length={length} is more than the encoder's {there} positions; give at most {there}")
