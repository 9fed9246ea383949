"""The token embeddings of a transformer as a source of token vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from typing_extensions import Self

from st_plugins.core.files import write_record
from st_plugins.core.host import evaluating
from st_plugins.core.loading.encoder import load_encoder
from st_plugins.core.loading.records import read_record
from st_plugins.core.tokens import content_tokens, special_token_ids
from st_plugins.methods.re2.token_table import RECORD

_ENCODER = "encoder"


class TransformerTokens(nn.Module):
    """Token embeddings of the first module of a SentenceTransformer. Special tokens are no tokens of a text.

    A frozen transformer stays in evaluation mode and computes no gradients; its parameters are marked so, in the
    model that was given too.

    Args:
        model: The model, of which the first module is shared, or the path of one.
        trainable: Whether the transformer is trained.

    Raises:
        ValueError: The model has no tokenizer of transformers.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> source = TransformerTokens(untrained_encoder())
        >>> vectors, mask = source(source.tokenize(["a dog runs", "a dog"]))
        >>> mask.int().tolist(), source.embedding_dimension, source.pieces("a dog")
        ([[0, 1, 1, 1, 0], [0, 1, 1, 0, 0]], 64, ['a', 'dog'])
    """

    coverage: float | None = None

    def __init__(self, model: SentenceTransformer | str | Path, trainable: bool = False) -> None:
        super().__init__()
        found = model if isinstance(model, SentenceTransformer) else load_encoder(model, "cpu")
        self.tokenizer: Any = getattr(found, "tokenizer", None)
        if not hasattr(self.tokenizer, "all_special_ids"):
            raise ValueError(
                "model must have a tokenizer of transformers and a vector for each token, got a "
                f"{type(self.tokenizer).__name__}; use WordVectors.from_static for static embeddings"
            )
        self.encoder: Any = found[0]
        self.trainable = trainable
        self.special_ids = special_token_ids(self.tokenizer)
        # In the model that was given too: a frozen transformer computes no gradients for anyone.
        self.encoder.requires_grad_(trainable)
        self.train(found.training)
        with torch.no_grad(), evaluating(self.encoder):
            features = {name: value.to(found.device) for name, value in self.tokenize(["a"]).items()}
            self.embedding_dimension = int(self(features)[0].shape[-1])

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen transformer stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and self.trainable)
        return self

    def tokenize(self, texts: list[str], max_seq_length: int | None = None) -> dict[str, Tensor]:
        """Turn texts into what the transformer reads."""
        limits = [] if max_seq_length is None else [max_seq_length + self.tokenizer.num_special_tokens_to_add()]
        limits += [self.encoder.max_seq_length] if self.encoder.max_seq_length else []
        options = {"truncation": True, "max_length": min(limits)} if limits else {}
        found = self.tokenizer(list(texts), padding=True, return_tensors="pt", **options)
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Encode the tokens."""
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            return content_tokens(self.encoder(dict(features)), self.special_ids)

    def pieces(self, text: str) -> list[str]:
        """Return the tokens of a text, as strings."""
        ids = self.tokenize([text])["input_ids"][0]
        kept = [int(token) for token in ids if int(token) not in self.special_ids]
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(kept)]

    def save(self, folder: Path) -> None:
        """Write the transformer as a SentenceTransformer folder, ``encoder``, and ``source.json``."""
        device = str(next(self.encoder.parameters()).device)
        model = SentenceTransformer(modules=[self.encoder], device=device)
        model.save(str(folder / _ENCODER), create_model_card=False)
        values = {"trainable": self.trainable, "embedding_dimension": self.embedding_dimension}
        write_record(folder / RECORD, type=type(self).__name__, **values)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote, running no code from the folder."""
        record = read_record(folder, RECORD, cls.__name__, (_ENCODER,))
        source = cls(folder / _ENCODER, bool(record.get("trainable")))
        if source.embedding_dimension != record.get("embedding_dimension"):
            raise ValueError(
                f"{folder / _ENCODER} gives vectors of width {source.embedding_dimension}, but {folder} says "
                f"{record.get('embedding_dimension')}; save the source again"
            )
        return source
