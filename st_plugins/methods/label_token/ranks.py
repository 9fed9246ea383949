"""Start from a model that read real words: the n-th most frequent integer gets the vector of its n-th word."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedModel

from st_plugins.methods.label_token.masking import check_masked_language_model
from st_plugins.methods.label_token.tokens import integer_token_ids, label_token_ids

_ROLES = ("pad", "unk", "cls", "sep", "mask")
_NOT_A_WORD = re.compile(r"\[.+\]|<.+>")  # [unused7], <extra_id_0>
_TEXTS_AT_A_TIME = 1000


def initialize_by_rank(
    pretrained: PreTrainedModel, pretrained_tokenizer: Any, tokenizer: Any, texts: Iterable[str] | None = None
) -> PreTrainedModel:
    """Copy a pretrained masked language model, with its vocabulary exchanged by matching ranks of frequency.

    The integer that is the n-th most frequent takes the embedding (and the row and bias of the output layer) of the
    n-th most frequent word of the pretrained vocabulary; special tokens take those of the same role; label tokens
    start as the unknown word, all alike. Everything else is the pretrained model's.

    **The assumption**: word frequencies follow the same order in both languages, so that ranks say something about
    words. It holds roughly for the few hundred most frequent words of texts of one kind, in one language, cut into
    words in the same way, and not at all far down the list. Training has to repair the rest.

    Args:
        pretrained: The model, a masked language model; left as it is.
        pretrained_tokenizer: Its tokenizer.
        tokenizer: The tokenizer of the integers, of `build_tokenizer`.
        texts: Readable texts to count words in, the more like the anonymised ones the better (for a text file:
            ``st_plugins.data.read_texts(path)``). None takes the order of the pretrained vocabulary for the order of
            frequency, which it is for some tokenizers and only in part for others (BERT's begins with letters).

    Returns:
        The new model.

    Raises:
        TypeError: ``pretrained`` is no masked language model, or ``texts`` is one text.
        ValueError: The pretrained vocabulary has fewer words than there are integers, or does not fit the model; or a
            special token is missing, or the model counts positions from another padding id.

    Example:
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from st_plugins.matching import AnonymizedPairs, build_tokenizer
        >>> words = build_tokenizer(AnonymizedPairs(["1 1 1 2 2 3"], ["1"]))
        >>> shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        >>> pretrained = BertForMaskedLM(BertConfig(vocab_size=len(words), **shape))
        >>> integers = build_tokenizer(AnonymizedPairs(["80 80 90"], ["80"]))
        >>> model = initialize_by_rank(pretrained, words, integers, ["2 2 2 1"])
        >>> old, new = (found.get_input_embeddings().weight for found in (pretrained, model))
        >>> two, eighty = words.convert_tokens_to_ids("2"), integers.convert_tokens_to_ids("80")
        >>> bool((old[two] == new[eighty]).all())
        True

    Reference:
        Known from the 2021 Global AI Innovation Contest (Tianchi), short-text matching on anonymised tokens; there is
        no paper. As in its published solutions, labels start as the unknown word. Ours: counting in texts of the
        user's choice, unused entries of the vocabulary left out, output biases moved along.
    """
    check_masked_language_model(pretrained, "pretrained")
    table: Any = pretrained.get_input_embeddings().weight
    rows = len(table)
    largest = max(pretrained_tokenizer.get_vocab().values())
    if largest >= rows:
        raise ValueError(
            f"pretrained_tokenizer has ids up to {largest}, but pretrained has {rows} embeddings; give its own one"
        )
    source = torch.zeros(len(tokenizer), dtype=torch.long)
    for role in _ROLES:
        found = getattr(pretrained_tokenizer, f"{role}_token_id", None)
        if found is None:
            raise ValueError(f"pretrained_tokenizer has no {role} token, which pairs need; take a model like BERT")
        source[getattr(tokenizer, f"{role}_token_id")] = found
    # Labels start all alike, as the unknown word: nothing is known of them, and training tells them apart.
    source[list(label_token_ids(tokenizer).values())] = pretrained_tokenizer.unk_token_id
    if pretrained.config.pad_token_id not in (None, tokenizer.pad_token_id):
        raise ValueError(
            f"pretrained counts positions from its padding id {pretrained.config.pad_token_id}, but the integers have "
            f"{tokenizer.pad_token_id}; take a model whose padding id is that, like BERT"
        )
    # Both lists are in the order of frequency, which is all that connects the two languages.
    integers = integer_token_ids(tokenizer)
    ranked = _ranked(pretrained_tokenizer, texts)
    if len(ranked) < len(integers):
        raise ValueError(
            f"the pretrained vocabulary has {len(ranked)} words for {len(integers)} integers; build the tokenizer "
            "with a higher minimum_frequency, or take a model with a larger vocabulary"
        )
    source[integers] = torch.tensor(ranked[: len(integers)])
    return _with_rows(pretrained, source)


def _with_rows(pretrained: PreTrainedModel, source: torch.Tensor) -> PreTrainedModel:
    """Return a copy whose token i is the old token source[i]."""
    model = copy.deepcopy(pretrained)
    model.resize_token_embeddings(len(source), mean_resizing=False)
    # Where input and output layer share their table, it is written twice with the same rows.
    pairs: list[tuple[Any, Any]] = [
        (pretrained.get_input_embeddings(), model.get_input_embeddings()),
        (pretrained.get_output_embeddings(), model.get_output_embeddings()),
    ]
    with torch.no_grad():
        for old, new in pairs:
            for name in ("weight", "bias"):
                if getattr(old, name, None) is not None:
                    getattr(new, name).copy_(getattr(old, name)[source.to(old.weight.device)])
    return model


def _ranked(tokenizer: Any, texts: Iterable[str] | None) -> list[int]:
    """Return the ids of words, the most frequent first, those never seen last in the order of the vocabulary."""
    if isinstance(texts, str):
        raise TypeError("texts must be a list of texts, got one string; read a file with st_plugins.data.read_texts")
    special = set(tokenizer.all_special_ids)
    vocabulary = tokenizer.get_vocab()
    ids = sorted(
        place for word, place in vocabulary.items() if place not in special and not _NOT_A_WORD.fullmatch(word)
    )
    counts: Counter[int] = Counter()
    remaining = iter(texts or ())
    while block := list(islice(remaining, _TEXTS_AT_A_TIME)):
        for found in tokenizer(block, add_special_tokens=False, verbose=False)["input_ids"]:
            counts.update(found)
    return sorted(ids, key=lambda place: -counts[place])  # stable: ties stay in the order of the vocabulary
