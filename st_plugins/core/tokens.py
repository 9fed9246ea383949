"""The tokens of a batch: which of them count, and texts brought into line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sentence_transformers.util import repad_flattened_features
from torch import Tensor

from st_plugins.core.nonfinite import NonFiniteRowsError

__all__ = ["content_tokens", "counted_tokens", "left_aligned", "padded", "refuse_non_finite", "special_token_ids"]

_ROLES = ("bos", "eos", "sep", "cls", "pad", "mask")


def content_tokens(features: Mapping[str, Any], special_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the token vectors of a batch and which of them are content: no padding, special token or prompt.

    The tokens of a prompt are the same in every text and would find each other only. Which tokens are special is seen
    from the ids, so padding may be on either side, and an unknown word is a word.

    Args:
        features: What a model made of a batch: ``token_embeddings`` ``(N, n, d)``, ``input_ids`` and
            ``attention_mask`` ``(N, n)``, or all of them flattened, with ``cu_seq_lens_q``; ``prompt_length``.
        special_ids: Ids of the special tokens.

    Returns:
        The vectors ``(N, n, d)`` and the mask ``(N, n)``, boolean.

    Raises:
        ValueError: There are no token vectors, or not one for each input token.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.core.tokens import special_token_ids
        >>> model = untrained_encoder()
        >>> features = model(model.preprocess(["a dog", "a dog runs"]))
        >>> content_tokens(features, special_token_ids(model.tokenizer))[1].int().tolist()
        [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]]
    """
    found = dict(features)
    if "cu_seq_lens_q" in found:
        found = repad_flattened_features(found)
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


def padded(features: Mapping[str, Any]) -> dict[str, Any]:
    """Return features of shape (batch, n, …), also for a batch that flash attention flattened.

    Args:
        features: What an encoder produced; left as they are.

    Returns:
        A copy.

    Example:
        >>> flat = {"token_embeddings": torch.ones(1, 5, 2), "input_ids": torch.ones(1, 5, dtype=torch.long)}
        >>> tuple(padded({**flat, "cu_seq_lens_q": torch.tensor([0, 3, 5])})["token_embeddings"].shape)
        (2, 3, 2)
    """
    found = dict(features)
    return repad_flattened_features(found) if "cu_seq_lens_q" in found else found


def counted_tokens(
    features: Mapping[str, Any], width: int, module: str, include_prompt: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the token embeddings of a batch, and which of them count.

    Args:
        features: What an encoder produced.
        width: Width the token embeddings must have.
        module: Name of the module that pools them, for messages.
        include_prompt: Whether the tokens of a prompt count, as for the host's ``Pooling``.

    Returns:
        The token embeddings, ``(batch, n, width)``, and the mask, ``(batch, n)``, boolean.

    Raises:
        ValueError: There are no token embeddings, they have another width, or the mask does not fit them.

    Example:
        >>> features = {"token_embeddings": torch.ones(1, 3, 4), "attention_mask": torch.tensor([[1, 1, 0]])}
        >>> counted_tokens(features, 4, "Pooling")[1].tolist()
        [[True, True, False]]
    """
    features = padded(features)
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
    """Move the tokens that count to the front of their rows, in their order, and cut off what no row needs.

    What follows sees a text as if it had been given alone, on whichever side it was padded.

    Args:
        tokens: ``(batch, n, d)``, of any values where the mask is False.
        mask: ``(batch, n)``, boolean.

    Returns:
        The tokens, ``(batch, m, d)`` with m the number of the longest text's tokens, at least 1, and zero after the
        end of a text; and the number of tokens of each text, ``(batch,)``.

    Example:
        >>> tokens = torch.tensor([[[7.0], [1.0], [2.0]], [[3.0], [8.0], [9.0]]])
        >>> aligned, lengths = left_aligned(tokens, torch.tensor([[False, True, True], [True, False, False]]))
        >>> aligned[:, :, 0].tolist(), lengths.tolist()
        ([[1.0, 2.0], [3.0, 0.0]], [2, 1])
    """
    lengths = mask.sum(dim=1)
    longest = max(int(lengths.max()), 1)
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    aligned = tokens.gather(1, order[:, :, None].expand(-1, -1, tokens.shape[2]))
    outside = torch.arange(longest, device=mask.device) >= lengths[:, None]
    return aligned.masked_fill(outside[:, :, None], 0.0), lengths


def refuse_non_finite(embeddings: Tensor, module: str) -> None:
    """Raise an error that names the rows of a batch whose embedding is not finite.

    On a GPU the check would make every batch wait: there such values stay visible in the embedding.

    Args:
        embeddings: ``(batch, d)``.
        module: Name of the module that made them.

    Raises:
        NonFiniteRowsError: A row holds NaN or infinity, and the tensor is on the CPU; a ValueError.

    Example:
        >>> refuse_non_finite(torch.ones(2, 3), "Pooling")
    """
    if embeddings.device.type != "cpu":
        return
    bad = (~embeddings.detach().isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteRowsError(
            f"the token embeddings of rows {bad[:8]} of the batch (of {len(embeddings)}) hold NaN or infinity; "
            f"weights of the encoder or of {module} are damaged, or float16 overflows (try bfloat16)",
            bad,
        )


def special_token_ids(tokenizer: Any) -> list[int]:
    """Return the ids of the special tokens, without that of unknown words.

    An unknown word is a word of the text. Where a tokenizer has one token for all purposes (GPT-2), it is special.

    Args:
        tokenizer: A tokenizer of transformers.

    Returns:
        The ids, ascending.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> tokenizer = untrained_encoder().tokenizer
        >>> tokenizer.convert_ids_to_tokens(special_token_ids(tokenizer))
        ['[PAD]', '[CLS]', '[SEP]', '[MASK]']
    """
    ids = set(tokenizer.all_special_ids)
    if tokenizer.unk_token_id not in {getattr(tokenizer, f"{role}_token_id", None) for role in _ROLES}:
        ids.discard(tokenizer.unk_token_id)
    return sorted(ids)
