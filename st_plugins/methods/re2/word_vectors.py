"""Published word vectors as a source of token vectors."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding, Transformer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from typing_extensions import Self

from st_plugins.core.model_card import Base
from st_plugins.core.texts import check_texts
from st_plugins.io import load_sentence_transformer
from st_plugins.methods.re2.token_table import TokenTable
from st_plugins.methods.re2.vectors import read_vectors

logger = logging.getLogger(__name__)

_UNKNOWN = "[UNK]"
_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}"
# Characters of Chinese and Japanese one by one; contractions apart, as in the Penn treebank and so in GloVe; then
# abbreviations, numbers and words. What matches nothing is punctuation.
_WORD = "|".join(
    [
        f"[{_CJK}]",
        r"[nN]'[tT]\b",
        r"'(?:[sSmMdD]|[rR][eE]|[vV][eE]|[lL][lL])\b",
        r"(?:[A-Za-z]\.){2,}",
        r"[A-Za-z]+?(?=[nN]'[tT]\b)",
        r"\d[\d.,]*\d",
        rf"[\w&&[^{_CJK}]](?:[\w.\-&&[^{_CJK}]]*[\w&&[^{_CJK}]])?",
    ]
)


class WordVectors(TokenTable):
    r"""Word vectors: a row of a table for each word, zeros for the words that have none.

    Make it with `from_encoder`, `from_file` or `from_static`. The table is frozen unless ``trainable=True``; rows of
    unknown words of a file stay zero even then.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "vectors.txt")
        >>> _ = path.write_text("dog 1 2\nruns 3 4\n")
        >>> source = WordVectors.from_file(path, ["A dog runs!"])
        >>> vectors, mask = source(source.tokenize(["A dog runs!", "Dog"]))
        >>> vectors[0].tolist(), mask.tolist(), round(source.coverage, 2)
        ([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]], [[True, True, True], [True, False, False]], 0.67)
    """

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        texts: Iterable[str] | None = None,
        minimum_frequency: int = 1,
        lowercase: bool = True,
        keep_punctuation: bool = False,
        trainable: bool = False,
    ) -> Self:
        """Read a text file of word2vec or GloVe.

        As in the paper, texts are made lower case and lose their punctuation. Words are split as in the Penn
        treebank ("don't" is "do" and "n't"), which is how GloVe was made; Chinese and Japanese are read by character.

        Args:
            path: The file, plain or compressed with gzip, see `read_vectors`.
            texts: Only words that occur in these are kept: give all that will be read, or None, which keeps every
                word of the file and so serves any text.
            minimum_frequency: How often a word must occur in ``texts``. The authors' code keeps every word that has a
                vector, as 1 does here.
            lowercase: Whether texts, and the words of the file, are made lower case.
            keep_punctuation: Whether punctuation marks are tokens.
            trainable: Whether the table is trained.

        Returns:
            The source; ``coverage`` is the share of the tokens in ``texts`` that have a vector. Below a half there is
            a warning.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: ``minimum_frequency`` is below 1, the file is malformed, as for `read_vectors`, or has a vector
                for no word of ``texts``.
        """
        if minimum_frequency < 1:
            raise ValueError(f"minimum_frequency must be at least 1, got {minimum_frequency}")
        given = None if texts is None else check_texts(texts, "texts")
        tokenizer = _word_tokenizer(lowercase, keep_punctuation)
        words = None if given is None else _frequent(tokenizer, given, minimum_frequency)
        found, vectors = read_vectors(path, words, tokenizer.normalizer.normalize_str)
        if not found:
            raise ValueError(
                f"{path} has a vector for none of the {0 if words is None else len(words)} words of texts; is it of "
                "another language, or not lower case (lowercase=False)?"
            )
        rows = {word: row for row, word in enumerate(found, 1) if word != _UNKNOWN}
        tokenizer.model = models.WordLevel({_UNKNOWN: 0} | rows, unk_token=_UNKNOWN)
        table = torch.from_numpy(np.concatenate([np.zeros_like(vectors[:1]), vectors]))
        source = cls(tokenizer, table, trainable, padding_id=0)
        source.base = Base(Path(path).name)
        if given is not None:
            source.coverage = source.covered(given)
            _warn_if_low(source.coverage, str(path))
        return source

    @classmethod
    def from_static(
        cls, model: StaticEmbedding | SentenceTransformer, texts: Iterable[str] | None = None, trainable: bool = False
    ) -> Self:
        """Take tokenizer and vectors of the host's ``StaticEmbedding``.

        Args:
            model: The module, or a model whose first module is one; its weights are copied.
            texts: Texts to measure the coverage on.
            trainable: Whether the table is trained.

        Returns:
            The source. A token counts as covered if its vector is not zero.

        Raises:
            TypeError: ``model`` is neither.
            ValueError: The weights hold NaN or infinity.
        """
        module = model[0] if isinstance(model, SentenceTransformer) else model
        if not isinstance(module, StaticEmbedding):
            raise TypeError(
                f"model must be a StaticEmbedding, or a SentenceTransformer that starts with one, got "
                f"{type(module).__name__}; use TransformerTokens for transformers"
            )
        source = cls(module.tokenizer, module.embedding.weight, trainable)
        source.base = Base.of(model)
        if texts is not None:
            source.coverage = source.covered(texts)
            _warn_if_low(source.coverage, "the model")
        return source

    @classmethod
    def from_encoder(
        cls,
        model: SentenceTransformer | str | Path,
        texts: Iterable[str],
        dimensions: int | None = 64,
        trainable: bool = False,
    ) -> Self:
        """Take the word embeddings of a trained encoder, whitened: its tokenizer and first table, and no layer of it.

        The tokens of the texts get mean 0 and, in the directions with the most variance, variance 1 without
        correlation. In the study ``re2`` the network judges better on the 64 directions of all-MiniLM-L6-v2 than on
        GloVe vectors.

        Args:
            model: The encoder, or its folder or hub id; it is left as it is.
            texts: The texts of the training pairs, whose tokens are counted as often as they occur.
            dimensions: How many directions to keep; None keeps all.
            trainable: Whether the table is trained.

        Returns:
            The source.

        Raises:
            TypeError: ``model`` does not start with a transformer, or ``texts`` is one string or holds something else.
            ValueError: ``dimensions`` is out of its range, the tokens of ``texts`` do not differ in so many
                directions, or the tokenizer is none that transformers calls fast.

        Example:
            >>> from st_plugins.miniature import corpus, untrained_encoder
            >>> source = WordVectors.from_encoder(untrained_encoder(), corpus(100), dimensions=8)
            >>> vectors, mask = source(source.tokenize(["a dog runs"]))
            >>> vectors.shape[-1], bool(mask.all())
            (8, True)

        Reference:
            Su et al., arXiv 2103.15316, whiten sentence vectors so; of single words it is ours.
        """
        wrong = isinstance(dimensions, bool) or not isinstance(dimensions, int | None)
        if wrong or (dimensions is not None and dimensions < 1):
            raise ValueError(f"dimensions={dimensions!r} must be a whole number of at least 1, or None for all")
        kept = check_texts(texts, "texts")
        loaded = model if isinstance(model, SentenceTransformer) else load_sentence_transformer(model, "cpu")
        first: Any = loaded[0]
        if not isinstance(first, Transformer) or not isinstance(first.model, nn.Module):
            raise TypeError(
                f"model must start with a Transformer that PyTorch computes, got {type(first).__name__}; use "
                "from_static for a StaticEmbedding"
            )
        if not isinstance(first.tokenizer, PreTrainedTokenizerFast):
            raise ValueError(
                f"model must have a fast tokenizer of transformers, got {type(first.tokenizer).__name__}; use "
                "TransformerTokens"
            )
        # A copy: what is set on it would be set on the model's own.
        tokenizer = Tokenizer.from_str(first.tokenizer.backend_tokenizer.to_str())
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # Tables are often longer than the vocabulary, whose ids may have gaps.
        size = 1 + max(tokenizer.get_vocab().values())
        encoder: Any = first.model
        table = encoder.get_input_embeddings().weight.detach().cpu().double()[:size]
        encodings = tokenizer.encode_batch(kept, add_special_tokens=False)
        ids = torch.tensor([token for encoding in encodings for token in encoding.ids], dtype=torch.long)
        whitened = _whitened(table, torch.bincount(ids, minlength=size).double(), dimensions)
        source = cls(tokenizer, whitened.float(), trainable)
        source.base = Base.of(loaded)
        return source

    def covered(self, texts: Iterable[str]) -> float:
        """Return the share of the tokens in texts that have a vector other than zero.

        Args:
            texts: The texts.

        Returns:
            From 0 to 1; 1 for texts without tokens.
        """
        encodings = self.tokenizer.encode_batch(check_texts(texts, "texts"), add_special_tokens=False)
        ids = torch.tensor([token for encoding in encodings for token in encoding.ids], dtype=torch.long)
        known = self.embedding.weight.detach().cpu().ne(0).any(dim=1)
        return float(known[ids].double().mean()) if len(ids) else 1.0


def _whitened(table: Tensor, counts: Tensor, dimensions: int | None) -> Tensor:
    """Whiten a table in float64 by its rows, each as often as it is counted."""
    share = counts / counts.sum().clamp(min=1)
    centered = table - share @ table
    values, vectors = torch.linalg.eigh((centered * share[:, None]).T @ centered)
    values, vectors = values.flip(0), vectors.flip(1)
    rank = int((values > values[0].clamp(min=0) * 1e-10).sum())
    kept = rank if dimensions is None else dimensions
    if not rank:
        raise ValueError("texts has fewer than two different tokens, which have no direction; give more texts")
    if kept > rank:
        raise ValueError(
            f"the tokens of texts differ in {rank} directions, fewer than dimensions={dimensions}; give {rank} at "
            "most, or more texts"
        )
    whitened: Tensor = centered @ (vectors[:, :kept] / values[:kept].sqrt())
    return whitened


def _word_tokenizer(lowercase: bool, keep_punctuation: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({_UNKNOWN: 0}, unk_token=_UNKNOWN))
    steps = [normalizers.NFC(), normalizers.Replace("’", "'")]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Lowercase()] if lowercase else steps)
    pattern = _WORD + (r"|[^\w\s]" if keep_punctuation else "")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    return tokenizer


def _frequent(tokenizer: Tokenizer, texts: list[str], minimum_frequency: int) -> set[str]:
    """Return the words that occur so often."""
    counted = Tokenizer.from_str(tokenizer.to_str())
    trainer = trainers.WordLevelTrainer(
        vocab_size=2**31 - 1, min_frequency=minimum_frequency, show_progress=False, special_tokens=[]
    )
    counted.train_from_iterator(texts, trainer)
    return set(counted.get_vocab())


def _warn_if_low(coverage: float, name: str) -> None:
    if coverage < 0.5:
        logger.warning(
            "Only %.1f %% of the tokens in texts have a vector in %s; the others are zeros. Use vectors of the texts' "
            "language and domain, or LearnedEmbedding.",
            100 * coverage,
            name,
        )
