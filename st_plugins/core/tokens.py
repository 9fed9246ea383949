"""The tokens of a batch: which of them count, and texts brought into line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sentence_transformers.util import repad_flattened_features
from torch import Tensor

from st_plugins.core.nonfinite import NonFiniteRowsError
from st_plugins.core.rows import non_finite_rows

_ROLES = ("bos", "eos", "sep", "cls", "pad", "mask")


def unflattened(features: Mapping[str, Any]) -> dict[str, Any]:
    """Return features of shape (batch, n, …), also for a batch that flash attention flattened."""
    found = dict(features)
    return repad_flattened_features(found) if "cu_seq_lens_q" in found else found


def content_tokens(features: Mapping[str, Any], special_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the token vectors of a batch and which of them are content: no padding, special token or prompt."""
    # Special tokens are seen from the ids, so padding may be on either side, and an unknown word is a word. The tokens
    # of a prompt are the same in every text and would find each other only.
    found = unflattened(features)
    tokens, ids = found.get("token_embeddings"), found.get("input_ids")
    if tokens is None or ids is None or tokens.shape[:-1] != ids.shape:
        shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (tokens, ids)]
        raise ValueError(
            "the model must give one vector for each input token, but token_embeddings and input_ids have shapes "
            f"{shapes[0]} and {shapes[1]}; use an encoder that keeps its tokens (static embeddings do not)"
        )
    attention = found.get("attention_mask")
    mask = torch.ones_like(ids, dtype=torch.bool) if attention is None else attention.bool()
    if found.get("prompt_length") is not None:  # a number, or one a row; padding may precede the prompt
        mask = mask & (mask.cumsum(dim=1) > torch.as_tensor(found["prompt_length"], device=ids.device).reshape(-1, 1))
    return tokens, mask & ~torch.isin(ids, torch.tensor(special_ids, device=ids.device, dtype=ids.dtype))


def counted_tokens(
    features: Mapping[str, Any], width: int, module: str, include_prompt: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the token embeddings of a batch, and which of them count."""
    features = unflattened(features)
    tokens = features.get("token_embeddings")
    if tokens is None:
        raise ValueError(
            f"{module} needs token_embeddings, got {sorted(features)}; put it after a Transformer, WordEmbeddings or "
            "TokenEmbeddings (TokenEmbeddings.from_static keeps the vectors of a StaticEmbedding)"
        )
    if tokens.ndim != 3 or tokens.shape[2] != width:
        raise ValueError(
            f"token_embeddings must have shape (batch, tokens, {width}), got {tuple(tokens.shape)}; create {module} "
            "with the width of your encoder"
        )
    mask = features.get("attention_mask", tokens.new_ones(tokens.shape[:2], dtype=torch.bool))
    if mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, but there are {tuple(tokens.shape[:2])} token embeddings; "
            f"{module} needs an encoder that keeps its tokens"
        )
    counted: Tensor = mask.bool()
    prompt = features.get("prompt_length")
    if prompt is not None and not include_prompt:  # a number, or one a row; padding may precede the prompt
        length = torch.as_tensor(prompt, device=counted.device).reshape(-1, 1)
        counted = counted & (counted.cumsum(dim=1) > length)
    return tokens, counted


def left_aligned(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the tokens that count to the front of their rows, in their order, and cut off what no row needs."""
    # What follows sees a text as if it had been given alone, on whichever side it was padded.
    lengths = mask.sum(dim=1)
    longest = max(int(lengths.max()), 1)
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    aligned = tokens.gather(1, order[:, :, None].expand(-1, -1, tokens.shape[2]))
    outside = torch.arange(longest, device=mask.device) >= lengths[:, None]
    return aligned.masked_fill(outside[:, :, None], 0.0), lengths


def refuse_non_finite(embeddings: Tensor, module: str) -> None:
    """Raise an error that names the rows of a batch whose embedding is not finite."""
    # On a GPU the check would make every batch wait: there such values stay visible in the embedding.
    if embeddings.device.type != "cpu":
        return
    bad = non_finite_rows(embeddings)
    if bad:
        raise NonFiniteRowsError(
            f"the token embeddings of rows {bad[:8]} of the batch (of {len(embeddings)}) hold NaN or infinity; "
            f"weights of the encoder or of {module} are damaged, or float16 overflows (try bfloat16)",
            bad,
        )


def special_token_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the special tokens, without that of unknown words."""
    # An unknown word is a word of the text; but one token for all purposes (GPT-2's) is special.
    ids = set(tokenizer.all_special_ids)
    if tokenizer.unk_token_id not in {getattr(tokenizer, f"{role}_token_id", None) for role in _ROLES}:
        ids.discard(tokenizer.unk_token_id)
    return sorted(ids)
