"""Texts through an encoder: longest first, and put back into their own order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from st_plugins.core.host import evaluating
from st_plugins.core.rows import non_finite_rows
from st_plugins.core.tokens import content_tokens

_BATCHES_A_CALL = 16


def longest_first(
    lengths: Sequence[int], batch_size: int, *, description: str = "Encoding", show_progress_bar: bool = False
) -> Iterator[list[int]]:
    """Yield the rows of one batch after the other, of like length, so that little is padded."""
    # The longest come first, so that memory that does not suffice is known at once, and time left is overestimated.
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    with tqdm(total=len(order), desc=description, unit="texts", disable=not show_progress_bar) as bar:
        for begin in range(0, len(order), batch_size):
            yield order[begin : begin + batch_size]
            bar.update(len(order[begin : begin + batch_size]))


def encode_longest_first(
    model: SentenceTransformer,
    texts: Sequence[str],
    lengths: Sequence[int],
    *,
    batch_size: int,
    show_progress_bar: bool,
    description: str = "Encoding",
    arguments: Mapping[str, Any] | None = None,
) -> NDArray[np.float32]:
    """Return the embeddings of texts, ``(texts, d)`` in float32, with the model in evaluation mode."""
    embeddings: NDArray[np.float32] | None = None
    shown: dict[str, Any] = {"description": description, "show_progress_bar": show_progress_bar}
    with evaluating(model):
        # The host sorts by length and batches by itself what it gets; each call of it costs some time.
        for rows in longest_first(lengths, _BATCHES_A_CALL * batch_size, **shown):
            batch = model.encode(
                [texts[row] for row in rows],
                batch_size=batch_size,
                show_progress_bar=False,
                convert_to_tensor=True,
                **(arguments or {}),
            )
            vectors = batch.to(device="cpu", dtype=torch.float32).numpy()
            if embeddings is None:
                embeddings = np.empty((len(texts), vectors.shape[1]), dtype=np.float32)
            embeddings[rows] = vectors
    if embeddings is None:
        raise ValueError("texts is empty; give at least one text to encode")
    bad = non_finite_rows(embeddings)
    if bad:
        raise ValueError(
            f"the model gave NaN or infinity for {len(bad)} of {len(texts)} sentences, the first is row {bad[0]}: "
            f"{texts[bad[0]][:80]!r}; try dtype float32 or check the model's weights"
        )
    return embeddings


def encode_batch(
    model: SentenceTransformer, texts: list[str], special_ids: Sequence[int], prompt: str | None
) -> list[Tensor]:
    """Return the token vectors of one batch; gradients and dropout are as the caller has set them."""
    features = batch_to_device(model.preprocess(texts, prompt=prompt), model.device)
    return unpadded(*content_tokens(model(features), special_ids))


def encode_tokens(
    model: SentenceTransformer,
    texts: list[str],
    special_ids: Sequence[int],
    prompt: str | None,
    batch_size: int,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Return the token vectors of texts, ``(tokens, d)`` each; gradients and dropout as for `encode_batch`."""
    found: dict[int, Tensor] = {}
    # By characters: tokens would have to be counted first, and nearly the same order is good enough.
    for rows in longest_first([len(text) for text in texts], batch_size):
        batch = encode_batch(model, [texts[row] for row in rows], special_ids, prompt)
        for row, vectors in zip(rows, batch, strict=True):
            found[row] = vectors if dtype is None else vectors.to(dtype)
            if not found[row].isfinite().all():  # of what is returned: float16 may overflow
                raise ValueError(
                    f"the token vectors of text {row}, {texts[row][:80]!r}, hold NaN or infinity in "
                    f"{found[row].dtype}; try float32 or bfloat16, or check the model's weights"
                )
    return [found[row] for row in range(len(texts))]


def padded(texts: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Put texts of different lengths, ``(tokens, …)`` each, into one tensor; with it goes where they are."""
    lengths = torch.tensor([len(tokens) for tokens in texts], device=device)
    batch = pad_sequence(list(texts), batch_first=True).to(device)
    return batch, torch.arange(batch.shape[1], device=device) < lengths[:, None]


def unpadded(tokens: Tensor, mask: Tensor) -> list[Tensor]:
    """Take the texts of a batch apart again."""
    return list(tokens[mask].split(mask.sum(dim=1).tolist()))
