"""A text as the model reads it: its tokens, and where in the text they stand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

__all__ = ["Kind", "Reading", "Token", "read"]

Kind = Literal["text", "special", "prompt", "rest"]


@dataclass(frozen=True)
class Token:
    """One token of a text.

    Args:
        text: The characters it covers; for a special token its name.
        piece: The tokenizer's own writing of it, such as ``"##ing"``.
        start: Its first character in the text, None if it covers none or the tokenizer does not say.
        end: The character after its last.
        kind: ``"text"``, ``"special"`` (added by the tokenizer) or ``"prompt"``.
    """

    text: str
    piece: str
    start: int | None
    end: int | None
    kind: Kind


@dataclass(frozen=True)
class Reading:
    """A text turned into the input of a model.

    Args:
        text: The text.
        features: What the model's first module takes, a batch of one.
        tokens: One a position, special tokens and padding included.
        unread: Characters at the end that the model cut off.
    """

    text: str
    features: dict[str, Any]
    tokens: tuple[Token, ...]
    unread: int


def read(model: SentenceTransformer, text: str, prompt: str | None = None) -> Reading:
    """Tokenize a text as ``model.encode`` does, and keep track of the characters.

    Args:
        model: A model that starts with a Transformer or a StaticEmbedding.
        text: The text, not empty.
        prompt: Goes before the text; None takes the model's default prompt, ``""`` takes none.

    Returns:
        Features on the CPU, tokens, and the number of characters cut off.

    Raises:
        TypeError: ``text`` is no string.
        ValueError: ``text`` is empty or has only special tokens, or the model reads text in another way.

    Example:
        >>> from st_plugins.data.miniature import untrained_encoder
        >>> reading = read(untrained_encoder(), "A dog sleeps.")
        >>> [token.text for token in reading.tokens][:3], reading.tokens[1].start, reading.unread
        (['[CLS]', 'A', 'dog'], 0, 0)
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, got {type(text).__name__}; explain one text at a time")
    if not text.strip():
        raise ValueError(f"text {text!r} is empty, there is nothing to explain; give at least one word")
    if prompt is None and model.default_prompt_name is not None:
        prompt = model.prompts.get(model.default_prompt_name)
    prompt = prompt or ""
    module = model[0]
    if isinstance(module, StaticEmbedding):
        features = model.preprocess([text], prompt=prompt)
        encoding = module.tokenizer.encode(prompt + text, add_special_tokens=False)
        tokens = _tokens(text, len(prompt), encoding.tokens, encoding.offsets, [0] * len(encoding.tokens))
        limit = None
    elif isinstance(module, Transformer) and module.tokenizer is not None:
        features, tokens = _transformer(model, module, text, prompt)
        limit = model.max_seq_length
    else:
        raise ValueError(
            f"model starts with a {type(module).__name__}, but explanations need a Transformer or a StaticEmbedding"
        )
    read_to = max((token.end for token in tokens if token.kind == "text" and token.end is not None), default=None)
    if not any(token.kind == "text" for token in tokens):
        raise ValueError(
            f"text {text[:80]!r} has no tokens but special ones for this model, there is nothing to explain; give at "
            "least one word that its tokenizer knows"
        )
    cut = limit is not None and len(tokens) >= limit and read_to is not None
    return Reading(text, features, tokens, len(text[read_to:].strip()) if cut else 0)


def _transformer(
    model: SentenceTransformer, module: Transformer, text: str, prompt: str
) -> tuple[dict[str, Any], tuple[Token, ...]]:
    tokenizer: Any = module.tokenizer
    fast = bool(getattr(tokenizer, "is_fast", False))
    extra = {"return_special_tokens_mask": True, "return_offsets_mapping": fast}
    features = model.preprocess([text], prompt=prompt, processing_kwargs={"text": extra})
    if features.get("modality", "text") != "text":
        raise ValueError(
            f"the model turns text into {features['modality']!r} input (a chat template?), whose tokens cannot be "
            "traced back to the text; explanations need a model that reads plain text"
        )
    identifiers = features["input_ids"][0].tolist()
    offsets = features.pop("offset_mapping").reshape(-1, 2).tolist() if "offset_mapping" in features else None
    special = features.pop("special_tokens_mask", None)
    known = set(tokenizer.all_special_ids)
    mask = [i in known for i in identifiers] if special is None else special.reshape(-1).tolist()
    return features, _tokens(text, len(prompt), tokenizer.convert_ids_to_tokens(identifiers), offsets, mask)


def _tokens(
    text: str,
    prompt_length: int,
    pieces: list[str],
    offsets: list[tuple[int, int]] | None,
    special: list[int] | list[bool],
) -> tuple[Token, ...]:
    tokens: list[Token] = []
    for position, piece in enumerate(pieces):
        if special[position] or offsets is None:
            tokens.append(Token(piece, piece, None, None, "special" if special[position] else "text"))
            continue
        start, end = (index - prompt_length for index in offsets[position])
        if end <= 0 and prompt_length:
            tokens.append(Token(piece, piece, None, None, "prompt"))
            continue
        start = max(start, 0)  # "Ġword" may begin with the last character of the prompt
        covered = text[start:end]
        if covered.strip():
            start += len(covered) - len(covered.lstrip())
            end -= len(covered) - len(covered.rstrip())
        token = Token(text[start:end], piece, start, end, "text")
        previous = tokens[-1] if tokens else None
        if not token.text or (previous is not None and (start, end) == (previous.start, previous.end)):
            token = replace(token, text=piece)  # bytes of one character
        tokens.append(token)
    return tuple(tokens)
