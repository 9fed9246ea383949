"""A tokenizer and a vector for each of its tokens: what word vectors and learned subword vectors share."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from typing_extensions import Self

from st_plugins.core.files import write_record, write_tensors
from st_plugins.core.loading.files import read_tensors, regular
from st_plugins.core.loading.records import read_record
from st_plugins.core.model_card import Base
from st_plugins.core.texts import check_texts
from st_plugins.core.token_embeddings import TokenEmbeddings

RECORD = "source.json"
_TOKENIZER, _TENSORS = "tokenizer.json", "model.safetensors"


class TokenTable(nn.Module):
    """A source of token vectors for RE2 that looks them up in the table of `TokenEmbeddings`."""

    # Every token of a text counts, unknown ones too; special tokens are not added. The vector of the padding stays
    # what it is, zero; without one token 0 fills up short texts, and its vector is an ordinary one.

    def __init__(
        self,
        tokenizer: Tokenizer,
        weights: Tensor,
        trainable: bool,
        padding_id: int | None = None,
        coverage: float | None = None,
    ) -> None:
        super().__init__()
        width = weights.shape[-1]
        table = TokenEmbeddings(tokenizer, width, weights=weights, trainable=trainable, special_tokens={})
        # Without the wrapper of transformers, which takes several times as long for a text.
        self.tokenizer: Tokenizer = table.tokenizer.backend_tokenizer
        self.tokenizer.post_processor = tokenizer.post_processor  # which the wrapper sets to one without effect
        self.embedding = table.embedding
        self.embedding.padding_idx = padding_id
        self.embedding_dimension = width
        self.trainable, self.padding_id, self.coverage = trainable, padding_id, coverage
        self.base: Base | None = None  # the model or file that the vectors were taken from

    def tokenize(self, texts: list[str], max_seq_length: int | None = None) -> dict[str, Tensor]:
        """Turn texts into ids."""
        texts = check_texts(texts, "texts")
        found = [
            encoding.ids[:max_seq_length] for encoding in self.tokenizer.encode_batch(texts, add_special_tokens=False)
        ]
        size = max([1, *map(len, found)])
        fill = self.padding_id or 0
        ids = torch.tensor([row + [fill] * (size - len(row)) for row in found], dtype=torch.long).reshape(-1, size)
        lengths = torch.tensor([len(row) for row in found])
        return {"input_ids": ids, "attention_mask": (torch.arange(size) < lengths[:, None]).long()}

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Look up the vectors."""
        return self.embedding(features["input_ids"]), features["attention_mask"].bool()

    def pieces(self, text: str) -> list[str]:
        """Return the tokens of a text, as strings."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return [text[begin:end] or name for (begin, end), name in zip(encoding.offsets, encoding.tokens, strict=True)]

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json``, ``model.safetensors`` and ``source.json``."""
        self.tokenizer.save(str(folder / _TOKENIZER))
        write_tensors(folder / _TENSORS, {"weights": self.embedding.weight})
        values = {name: getattr(self, name) for name in ("trainable", "padding_id", "coverage", "embedding_dimension")}
        base = {} if self.base is None else {"base": asdict(self.base)}
        write_record(folder / RECORD, type=type(self).__name__, **values, **base)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        record = read_record(folder, RECORD, cls.__name__, (_TOKENIZER, _TENSORS))
        tokenizer = TokenEmbeddings.load_parts(lambda name: regular(folder / name), {})["tokenizer"]
        try:
            weights = read_tensors(folder / _TENSORS)["weights"]
        except KeyError as error:
            raise ValueError(f"{folder / _TENSORS} is of something else: {error}") from error
        if weights.ndim != 2 or weights.shape[1] != record.get("embedding_dimension"):
            raise ValueError(
                f"{folder / _TENSORS} has vectors of shape {tuple(weights.shape)}, but {folder / RECORD} says "
                f"embedding_dimension {record.get('embedding_dimension')}; save the source again"
            )
        options = {name: record.get(name) for name in ("padding_id", "coverage")}
        table = cls(tokenizer, weights, bool(record.get("trainable")), **options)
        table.base = Base.stored(record.get("base"))
        return table
