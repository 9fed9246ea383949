"""Learned vectors of subwords as a source of token vectors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from typing_extensions import Self

from st_plugins.core.token_embeddings import PADDING, learn_bytes
from st_plugins.methods.re2.token_table import TokenTable


class LearnedEmbedding(TokenTable):
    """A vector for each subword, learned with the network: needs no word vectors, and knows all words.

    Make it with `from_texts`, which learns the subwords too, or with `from_tokenizer`. The vectors start as draws from
    a standard normal distribution.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> texts = ["a dog runs", "two dogs ran"]
        >>> source = LearnedEmbedding.from_texts(texts, embedding_dimension=8, minimum_frequency=1)
        >>> vectors, mask = source(source.tokenize(["a dog runs", "dogs"]))
        >>> tuple(vectors.shape), mask.sum(dim=1).tolist(), source.pieces("dogs ran")
        ((2, 3, 8), [3, 1], ['dogs', 'ran'])
    """

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        embedding_dimension: int,
        vocabulary_size: int = 8000,
        minimum_frequency: int = 2,
        lowercase: bool = True,
        trainable: bool = True,
    ) -> Self:
        """Learn subwords from texts: pairs of bytes of a word that occur often become one (byte-level BPE).

        The same texts give the same subwords in the same order.

        Args:
            texts: The training texts.
            embedding_dimension: Width of the vectors.
            vocabulary_size: Most subwords, the 256 bytes and the padding token included.
            minimum_frequency: How often two parts must occur side by side to become one.
            lowercase: Whether texts are made lower case, and lose their accents.
            trainable: Whether the vectors are trained.

        Returns:
            The source.

        Raises:
            ValueError: ``embedding_dimension`` is below 1, or there are no texts.
        """
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)  # the space tells words from parts
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), to_bytes])
        learn_bytes(tokenizer, texts, "subwords", vocabulary_size, minimum_frequency)
        return cls.from_tokenizer(tokenizer, embedding_dimension, trainable)

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Tokenizer | PreTrainedTokenizerFast, embedding_dimension: int, trainable: bool = True
    ) -> Self:
        """Use the subwords of a tokenizer.

        Args:
            tokenizer: A tokenizer of the ``tokenizers`` library, or a fast one of transformers; copied.
            embedding_dimension: Width of the vectors.
            trainable: Whether the vectors are trained.

        Returns:
            The source.

        Raises:
            ValueError: ``embedding_dimension`` is below 1.
        """
        if embedding_dimension < 1:
            raise ValueError(f"embedding_dimension must be at least 1, got {embedding_dimension}")
        padding = getattr(tokenizer, "pad_token", None) or PADDING
        fast: Tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
        rows = 1 + max(fast.get_vocab(with_added_tokens=True).values(), default=0)
        weights = torch.randn(rows, embedding_dimension)
        padding_id = fast.token_to_id(padding)
        if padding_id is not None:
            weights[padding_id] = 0.0
        return cls(fast, weights, trainable, padding_id)
