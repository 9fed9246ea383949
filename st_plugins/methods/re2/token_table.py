"""A tokenizer and a vector for each of its tokens: what word vectors and learned subword vectors share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from typing_extensions import Self

from st_plugins import __version__
from st_plugins.core.files import write_tensors
from st_plugins.core.loading.files import read_object, read_tensors, regular
from st_plugins.core.precision import precise
from st_plugins.core.texts import check_texts

__all__ = ["RECORD", "TokenTable", "read_record", "write_record"]

RECORD = "source.json"
_TOKENIZER, _TENSORS = "tokenizer.json", "model.safetensors"


class TokenTable(nn.Module):
    """A source of token vectors for RE2 that looks them up in a table."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        weights: Tensor,
        trainable: bool,
        padding_id: int | None = None,
        coverage: float | None = None,
    ) -> None:
        super().__init__()
        rows = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if weights.ndim != 2 or weights.shape[0] < max(rows, 1) or weights.shape[1] < 1:
            raise ValueError(
                f"weights must have shape ({rows}, width), a row for each token of the tokenizer, got "
                f"{tuple(weights.shape)}"
            )
        if not weights.isfinite().all():
            bad = int((~weights.isfinite().all(dim=1)).nonzero()[0, 0])
            raise ValueError(
                f"weights hold NaN or infinity, first in row {bad} (token {tokenizer.id_to_token(bad)!r}); repair it"
            )
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.trainable, self.padding_id, self.coverage = trainable, padding_id, coverage
        table = precise(weights.detach().clone())
        self.embedding: nn.Embedding = nn.Embedding.from_pretrained(
            table, freeze=not trainable, padding_idx=padding_id
        )

    @property
    def embedding_dimension(self) -> int:
        """Width of the token vectors."""
        return self.embedding.embedding_dim

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
        write_record(
            folder,
            self,
            trainable=self.trainable,
            padding_id=self.padding_id,
            coverage=self.coverage,
            embedding_dimension=self.embedding_dimension,
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        record = read_record(folder, cls.__name__, (_TOKENIZER, _TENSORS))
        try:
            tokenizer = Tokenizer.from_file(str(regular(folder / _TOKENIZER)))
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"{folder / _TOKENIZER} is damaged: {error}") from error
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
        return cls(tokenizer, weights, bool(record.get("trainable")), **options)


def write_record(folder: Path, source: nn.Module, **values: Any) -> None:
    """Write ``source.json``: which source it is, and its options."""
    record = {"library": f"st-plugins {__version__}", "type": type(source).__name__, **values}
    (folder / RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_record(folder: Path, kind: str, files: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read what `write_record` wrote."""
    for name in (RECORD, *files):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} has no {name}; give a folder that {kind}.save wrote")
    record = read_object(folder / RECORD)
    if record.get("type") != kind:
        raise ValueError(f"{folder / RECORD} is of a {record.get('type')!r}, not of a {kind}")
    return record
