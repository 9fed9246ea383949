"""Published word vectors as a source of token vectors."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from typing_extensions import Self

from st_plugins.core.texts import check_texts
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

    Make it with `from_file` or `from_static`. The table is frozen unless ``trainable=True``; rows of unknown words
    stay zero even then.

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
        if texts is not None:
            source.coverage = source.covered(texts)
            _warn_if_low(source.coverage, "the model")
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
