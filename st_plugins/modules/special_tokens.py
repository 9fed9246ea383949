"""Which ids of a tokenizer are no part of what a text says."""

from __future__ import annotations

from typing import Any

__all__ = ["special_token_ids"]

_ROLES = ("bos", "eos", "sep", "cls", "pad", "mask")


def special_token_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the special tokens, without that of unknown words.

    An unknown word is a word of the text. Where a tokenizer has one token for all purposes (GPT-2), it is special.

    Args:
        tokenizer: A tokenizer of transformers.

    Returns:
        The ids, ascending.

    Example:
        >>> from st_plugins.data.miniature import untrained_encoder
        >>> tokenizer = untrained_encoder().tokenizer
        >>> tokenizer.convert_ids_to_tokens(special_token_ids(tokenizer))
        ['[PAD]', '[CLS]', '[SEP]', '[MASK]']
    """
    ids = set(tokenizer.all_special_ids)
    if tokenizer.unk_token_id not in {getattr(tokenizer, f"{role}_token_id", None) for role in _ROLES}:
        ids.discard(tokenizer.unk_token_id)
    return sorted(ids)
