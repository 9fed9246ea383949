"""A trainable vector for each token: the first module of a model without a Transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from typing_extensions import Self

from st_plugins.core.loading.files import Shapes
from st_plugins.core.loading.sizes import check_whole
from st_plugins.core.module import StoredModule
from st_plugins.core.rows import non_finite_rows
from st_plugins.core.texts import check_texts

_TOKENIZER = "tokenizer.json"
PADDING = "[PAD]"
_USUAL_NAMES = {"pad_token": (PADDING, "<pad>"), "unk_token": ("[UNK]", "<unk>")}


class TokenEmbeddings(StoredModule, InputModule):
    """A table with a vector for each token of a tokenizer, for a pooling that reads tokens.

    With `TextCNNPooling`, `TextRNNPooling` or `TextRCNNPooling` it makes a sentence-transformers model without a
    Transformer, which trains on a CPU. `from_texts` learns the tokens from your texts, and the vectors begin random;
    `from_static` begins with the vectors of a ``StaticEmbedding``. Special tokens are not added; an empty text has no
    token at all.

    The host's ``WordEmbeddings`` serves as well where the vectors come from a file of word vectors; it learns no
    tokens, and tokenizes one text after the other.

    Args:
        tokenizer: A tokenizer of the ``tokenizers`` library, or a fast one of transformers; copied.
        embedding_dimension: Width d of the vectors.
        weights: The table, ``(tokens, d)``, copied, in float32 at least; None draws the vectors from a standard
            normal distribution, with torch's generator.
        special_tokens: Names of the tokens with a role, ``{"pad_token": "[PAD]"}`` for example. None takes those of
            a tokenizer of transformers, and looks for the usual names in others.
        trainable: Whether the vectors are trained.
        max_seq_length: Most tokens of a text that are read; None for all.

    Reads / Writes:
        ``input_ids`` and ``attention_mask`` ``(batch, n)``, from `preprocess` → ``token_embeddings``
        ``(batch, n, d)``

    Example:
        >>> tokens = TokenEmbeddings.from_texts(["a dog runs", "two dogs ran"], 8, minimum_frequency=1)
        >>> features = tokens(tokens.preprocess(["a dog runs", "dogs"]))
        >>> tuple(features["token_embeddings"].shape), features["attention_mask"].tolist()
        ((2, 3, 8), [[1, 1, 1], [1, 0, 0]])
    """

    __module__ = "st_plugins.modules"  # what a model folder records is public, wherever the class is written

    config_parts = ("tokenizer", "weights")
    save_in_root = False

    def __init__(
        self,
        tokenizer: Tokenizer | PreTrainedTokenizerFast,
        embedding_dimension: int,
        *,
        weights: Tensor | NDArray[np.floating] | None = None,
        special_tokens: dict[str, str] | None = None,
        trainable: bool = True,
        max_seq_length: int | None = None,
    ) -> None:
        super().__init__()
        if embedding_dimension < 1:
            raise ValueError(f"embedding_dimension must be at least 1, got {embedding_dimension}")
        if max_seq_length is not None and max_seq_length < 1:
            raise ValueError(f"max_seq_length must be at least 1, or None for no limit; got {max_seq_length}")
        self.tokenizer: PreTrainedTokenizerFast = _copied(tokenizer, special_tokens)
        self.embedding_dimension, self.trainable, self.max_seq_length = embedding_dimension, trainable, max_seq_length
        # By the highest id, not the number of tokens: ids may have gaps.
        rows = 1 + max(self.tokenizer.get_vocab().values(), default=-1)
        table = torch.randn(rows, embedding_dimension) if weights is None else torch.as_tensor(weights)
        if table.ndim != 2 or len(table) < rows or table.shape[1] != embedding_dimension:
            raise ValueError(
                f"weights must have shape ({rows}, {embedding_dimension}), a row for each token of the tokenizer, got "
                f"{tuple(table.shape)}"
            )
        bad = non_finite_rows(table)
        if bad:
            name = self.tokenizer.convert_ids_to_tokens(bad[0])
            raise ValueError(f"weights hold NaN or infinity, first in row {bad[0]} (token {name!r}); repair that row")
        table = table.detach().to(torch.promote_types(table.dtype, torch.float32), copy=True)
        self.embedding = nn.Embedding.from_pretrained(table, freeze=not trainable)

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        embedding_dimension: int,
        *,
        vocabulary_size: int = 8000,
        minimum_frequency: int = 2,
        lowercase: bool = True,
        max_seq_length: int | None = None,
    ) -> Self:
        """Learn tokens from texts, by byte pairs (BPE): every text can be read, there are no unknown words.

        Args:
            texts: Texts like those the model will read.
            embedding_dimension: Width of the vectors, which begin random.
            vocabulary_size: Most tokens, the 256 bytes and the padding token included.
            minimum_frequency: How often two parts must occur side by side to become one.
            lowercase: Whether upper and lower case are the same.
            max_seq_length: As for the class.

        Returns:
            The module.

        Raises:
            TypeError: ``texts`` is one string.
            ValueError: There are no words in ``texts``.
        """
        tokenizer = Tokenizer(models.BPE())
        steps: list[Any] = [normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else [])]
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        learn_bytes(tokenizer, texts, "tokens", vocabulary_size, minimum_frequency)
        return cls(tokenizer, embedding_dimension, max_seq_length=max_seq_length)

    @classmethod
    def from_static(
        cls, model: StaticEmbedding | SentenceTransformer, *, trainable: bool = True, max_seq_length: int | None = None
    ) -> Self:
        """Take tokenizer and vectors of the host's ``StaticEmbedding``, whose mean it is no longer bound to.

        Args:
            model: The module, or a model that begins with one; left as it is.
            trainable: As for the class.
            max_seq_length: As for the class.

        Returns:
            The module. With the host's mean pooling behind it, embeddings are those of the StaticEmbedding.

        Raises:
            TypeError: ``model`` is neither.

        Example:
            >>> static = StaticEmbedding(TokenEmbeddings.from_texts(["a dog"], 4).tokenizer, embedding_dim=4)
            >>> features = TokenEmbeddings.from_static(static).preprocess(["a dog"])
            >>> mean = TokenEmbeddings.from_static(static)(features)["token_embeddings"].mean(dim=1)
            >>> float((mean - static(static.preprocess(["a dog"]))["sentence_embedding"]).detach().abs().max()) < 1e-6
            True
        """
        module = model[0] if isinstance(model, SentenceTransformer) else model
        if not isinstance(module, StaticEmbedding):
            raise TypeError(
                "model must be a StaticEmbedding, or a SentenceTransformer that begins with one, got "
                f"{type(module).__name__}"
            )
        weights = module.embedding.weight
        return cls(
            module.tokenizer, weights.shape[1], weights=weights, trainable=trainable, max_seq_length=max_seq_length
        )

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Tokenize texts.

        Args:
            inputs: The texts.
            prompt: Put before each of them.
            **kwargs: Ignored.

        Returns:
            ``input_ids`` and ``attention_mask``, ``(batch, n)`` with n at least 1, and with a prompt its number of
            tokens in each text, ``prompt_length``.

        Raises:
            TypeError: An input is no string, but a pair for example.
        """
        for index, text in enumerate(inputs):
            if not isinstance(text, str):
                raise TypeError(
                    f"TokenEmbeddings reads texts, but input {index} is a {type(text).__name__}; give the texts of a "
                    "pair in two columns"
                )
        limit = {"truncation": True, "max_length": self.max_seq_length} if self.max_seq_length else {}
        encoded = self.tokenizer(
            [(prompt or "") + text for text in inputs],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
            **limit,
        )
        rows: list[list[int]] = encoded["input_ids"]
        lengths = torch.tensor([len(row) for row in rows])
        width = max(1, int(lengths.max()))  # also where all texts are empty, as the modules that follow need
        padding = self.tokenizer.pad_token_id or 0
        features: dict[str, Any] = {
            "input_ids": torch.tensor([row + [padding] * (width - len(row)) for row in rows]),
            "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
        }
        if prompt:  # a token may hold the end of the prompt and the beginning of the text: then it is the text's
            ends = [[end for _, end in row] for row in encoded["offset_mapping"]]
            features["prompt_length"] = torch.tensor([sum(end <= len(prompt) for end in row) for row in ends])
        return features

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Look the vectors of what `preprocess` returned up, on the device of the table."""
        features["token_embeddings"] = self.embedding(features["input_ids"])
        return features

    def get_embedding_dimension(self) -> int:
        """Return the width of the vectors."""
        return self.embedding_dimension

    @property
    def special_tokens(self) -> dict[str, str]:
        """Names of the tokens with a role."""
        return {role: name for role, name in self.tokenizer.special_tokens_map.items() if isinstance(name, str)}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the module's files and ``tokenizer.json`` into an existing folder."""
        super().save(output_path)
        self.tokenizer.backend_tokenizer.save(str(Path(output_path) / _TOKENIZER))

    @classmethod
    def check_stored(cls, values: dict[str, Any], held: Shapes, where: str) -> None:
        """Compare the width with the table's; how many rows it must have, the tokenizer says."""
        check_whole(values, where)
        table = held.get("embedding.weight", ())
        if set(held) != {"embedding.weight"} or len(table) != 2 or table[1] != values.get("embedding_dimension"):
            raise ValueError(
                f"{where} does not describe a {cls.__name__}: embedding_dimension is "
                f"{values.get('embedding_dimension')!r}, but its tensors are {held}; save the model again"
            )

    @classmethod
    def load_parts(cls, find: Callable[[str], Path], state: dict[str, Tensor]) -> dict[str, Any]:
        """Read the tokenizer, and find the table among the tensors."""
        path = find(_TOKENIZER)
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"{path} is damaged: {error}") from error
        return {"tokenizer": tokenizer, "weights": state.get("embedding.weight")}


def learn_bytes(
    tokenizer: Tokenizer, texts: Iterable[str], what: str, vocabulary_size: int, minimum_frequency: int
) -> None:
    """Learn from texts which pairs of bytes become one token, after the tokenizer's own normalization."""
    given = check_texts(texts, "texts")
    if not any(text.strip() for text in given):
        raise ValueError(f"texts has no words to learn {what} from; give the training texts")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=minimum_frequency,
        show_progress=False,
        special_tokens=[PADDING],
        # All bytes, whether they occur or not: so there is no text that cannot be read.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(given, trainer)


def _copied(tokenizer: Any, special_tokens: dict[str, str] | None) -> PreTrainedTokenizerFast:
    """Return a copy that neither cuts nor pads unless told to."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        found = {role: name for role, name in tokenizer.special_tokens_map.items() if isinstance(name, str)}
        tokenizer = tokenizer.backend_tokenizer
    elif isinstance(tokenizer, Tokenizer):
        known = tokenizer.get_vocab()
        found = {role: name for role, names in _USUAL_NAMES.items() for name in names if name in known}
    else:
        raise TypeError(
            "tokenizer must be one of the tokenizers library, or a fast one of transformers, got "
            f"{type(tokenizer).__name__}"
        )
    # A tokenizer's own truncation and padding would come before ours, and are shared with whoever else uses it.
    own = Tokenizer.from_str(tokenizer.to_str())
    own.no_truncation()
    own.no_padding()
    return PreTrainedTokenizerFast(tokenizer_object=own, **(found if special_tokens is None else special_tokens))
