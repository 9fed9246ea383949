"""Embeddings of batches of texts, with what is kept of them: the callable that Ray Data maps over a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_plugins.core.appending import width_of
from st_plugins.core.encoding import encode_longest_first
from st_plugins.core.host import check_encoder, check_prompt
from st_plugins.core.numbers import check_count
from st_plugins.core.quantization import Quantization, check_precision
from st_plugins.core.texts import check_texts
from st_plugins.io import load_sentence_transformer
from st_plugins.scale.summary import Summary

VECTOR, SUMMARY = "vector", "summary"
"""Columns that `Encode` writes."""


class Encode:
    """Embed the texts of a batch: a callable class for ``map_batches`` of Ray Data, which loads its model once.

    Texts of like length share a batch of the model, which runs on a GPU where the process sees one. With ``summary``
    the batch's statistics come back in the same pass: beside the vectors as a column ``summary`` whose first row has
    them (the others are empty), or, with ``vectors=False``, instead of them as one row a batch. `MomentsAggregate`
    adds them up. Float32 embeddings of a text differ by rounding (1e-7) with the texts that share its batch; the same
    batches give the same bits.

    Args:
        model: A model, which Ray sends to the workers, or the path or name of one, which each of them loads.
        column: Column of the texts.
        precision: What is returned of the vectors: ``"float32"``, ``"float16"``, ``"binary"``, or a `Quantization`
            with ranges, for ``"int8"`` and others.
        summary: A summary whose settings those of the batches have, such as ``Summary(384)``; None: there are none.
        vectors: Whether the vectors come back.
        prompt: What goes before the texts; None is the model's default prompt, if it has one.
        route: Whose texts these are in a model with routes, "query" or "document" for example.
        batch_size: Texts that the model encodes at a time.
        device: ``"cpu"``, ``"cuda"``, …; None: the best there is where the worker runs.

    Raises:
        TypeError: ``model`` is no SentenceTransformer, or a text is no string.
        ValueError: The model cannot be loaded where the worker runs, or gives NaN or infinity.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> encode = Encode(untrained_encoder(16), "body", summary=Summary(16))
        >>> batch = encode({"id": np.array([1, 2]), "body": np.array(["a dog", "a cat"], dtype=object)})
        >>> list(batch), batch["vector"].shape, Summary.from_bytes(batch["summary"][0]).count
        (['id', 'body', 'vector', 'summary'], (2, 16), 2)
    """

    def __init__(
        self,
        model: SentenceTransformer | str | Path,
        column: str = "text",
        *,
        precision: str | Quantization = "float32",
        summary: Summary | None = None,
        vectors: bool = True,
        prompt: str | None = None,
        route: str | None = None,
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        check_prompt(prompt)
        check_count("batch_size", batch_size)
        if not vectors and summary is None:
            raise ValueError(
                "vectors=False without a summary leaves nothing to return; give summary=Summary(dimension)"
            )
        self.column, self.summary, self.returns_vectors = column, summary, vectors
        self.batch_size, self.prompt, self.route = batch_size, prompt, route
        self.model = _loaded(model, device)
        self.precision = _quantization(precision, self.model)

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return the batch with the vectors, or its summary.

        Args:
            batch: Columns as arrays, as Ray Data gives them, among them that of the texts.

        Returns:
            The columns, with ``vector`` and ``summary`` as asked for.
        """
        if self.column not in batch:
            raise ValueError(f"column={self.column!r} is not in the batch; there are {', '.join(batch)}")
        texts = check_texts(list(batch[self.column]), self.column)
        vectors = self.embed(texts)
        result = dict(batch) if self.returns_vectors else {}
        if self.returns_vectors:
            result[VECTOR] = self.precision.quantize(vectors)
        if self.summary is not None:
            found = self.summary.empty().add(vectors, texts).to_bytes()
            rows = [found] + [b""] * (len(texts) - 1 if self.returns_vectors else 0)
            result[SUMMARY] = np.array(rows, dtype=object)
        return result

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the embeddings of texts in float32, ``(N, d)``.

        Args:
            texts: At least one text.

        Returns:
            The embeddings, before any other precision.
        """
        given = {"prompt": self.prompt} | ({} if self.route is None else {"task": self.route})
        # Characters are near enough to tokens to put texts of like length into a batch.
        lengths = [len(text) for text in texts]
        return encode_longest_first(
            self.model, texts, lengths, batch_size=self.batch_size, show_progress_bar=False, arguments=given
        )


def _loaded(model: SentenceTransformer | str | Path, device: str | None) -> SentenceTransformer:
    if isinstance(model, str | Path):
        try:
            return load_sentence_transformer(model, device)
        except (OSError, ValueError) as error:
            import socket

            raise ValueError(
                f"model {str(model)!r} cannot be loaded on {socket.gethostname()}: {error}; put it where every worker "
                "sees it, or give the loaded model, which is sent to them"
            ) from error
    check_encoder(model)
    return model if device is None else model.to(device)


def _quantization(precision: str | Quantization, model: SentenceTransformer) -> Quantization:
    if isinstance(precision, Quantization):
        return precision
    check_precision(precision)
    if precision not in ("float32", "float16", "binary"):
        raise ValueError(
            f"precision={precision!r} needs ranges; give a Quantization: Quantization.load(folder) of a compressed "
            f"model, or Quantization.fit({precision!r}, embeddings)"
        )
    return Quantization(precision, width_of(model))
