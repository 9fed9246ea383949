"""A fast tokenizer for texts of integers, with a place for the label in front of every pair."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from st_plugins.methods.label_token.anonymized_pairs import AnonymizedPairs

_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_PREFIX, _SUFFIX = "[LABEL:", "]"
_SHORTEST = 6  # four special tokens in a pair, and a token of each text


def build_tokenizer(
    pairs: AnonymizedPairs, minimum_frequency: int = 1, max_seq_length: int = 128
) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose vocabulary is the integers of the pairs and their labels.

    Ids: five special tokens, one token for each class, then the integers from the most frequent on; ties in the order
    of the integers. A text becomes ``[CLS] text [SEP]``; a pair becomes ``[CLS] [MASK] first [SEP] second [SEP]``,
    where the mask is the place of the label.

    Args:
        pairs: All pairs whose words are to be known: labelled, unlabelled and test-time ones.
        minimum_frequency: How often an integer must occur; the others become ``[UNK]``.
        max_seq_length: Longest input in tokens, special ones included; the longer text of a pair is cut first.

    Returns:
        The tokenizer, to be saved with the model. Plain sentence-transformers and transformers can load it.

    Raises:
        ValueError: No integer is as frequent as that, or ``max_seq_length`` holds no pair.

    Example:
        >>> tokenizer = build_tokenizer(AnonymizedPairs(["12 7"], ["7 7 9"]), minimum_frequency=2)
        >>> tokenizer.convert_ids_to_tokens(tokenizer("12 7", "7 9")["input_ids"])
        ['[CLS]', '[MASK]', '[UNK]', '7', '[SEP]', '7', '[UNK]', '[SEP]']
        >>> len(tokenizer), tokenizer.convert_tokens_to_ids(["[LABEL:0]", "[LABEL:1]", "7"])
        (8, [5, 6, 7])
    """
    if minimum_frequency < 1:
        raise ValueError(f"minimum_frequency must be at least 1, got {minimum_frequency}")
    if max_seq_length < _SHORTEST:
        raise ValueError(f"max_seq_length must be at least {_SHORTEST}, to hold a pair; got {max_seq_length}")
    frequencies = pairs.frequencies
    known = [token for token, count in frequencies.items() if count >= minimum_frequency]
    if not known:
        highest = max(frequencies.values(), default=0)
        raise ValueError(
            f"minimum_frequency={minimum_frequency} leaves no token: the most frequent of the {len(frequencies)} "
            f"occurs {highest} times; lower it, or give more pairs"
        )
    # Labels come before the integers, so that their ids do not depend on how many integers there are.
    names = [*_SPECIAL.values(), *(f"{_PREFIX}{name}{_SUFFIX}" for name in pairs.labels), *known]
    vocabulary = {token: place for place, token in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL["unk"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        # Only pairs have a place for a label; a text by itself looks as it does to any encoder.
        single="[CLS] $A [SEP]",
        pair="[CLS] [MASK] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(_SPECIAL[role], vocabulary[_SPECIAL[role]]) for role in ("cls", "sep", "mask")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_seq_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in _SPECIAL.items()},
    )


def label_token_ids(tokenizer: Any) -> dict[str, int]:
    """Return the ids of the label tokens."""
    found = {
        token.removeprefix(_PREFIX).removesuffix(_SUFFIX): place
        for token, place in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        if token.startswith(_PREFIX)
    }
    if len(found) < 2:
        raise ValueError("tokenizer has no tokens for labels; make one with build_tokenizer")
    return found


def integer_token_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the integers, the most frequent first."""
    return sorted(place for token, place in tokenizer.get_vocab().items() if token.isdigit())
