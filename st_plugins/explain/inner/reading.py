"""A text as the model reads it: its tokens, and where in the text they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from st_plugins.core.host import check_prompt
from st_plugins.core.texts import check_texts
from st_plugins.core.token_embeddings import TokenEmbeddings
from st_plugins.explain.spans import Token

_BETWEEN = " ‖ "


@dataclass(frozen=True)
class Reading:
    """A text turned into the input of a model."""

    text: str  # of a pair both, with a mark between them
    features: dict[str, Any]  # a batch of one, on the CPU
    tokens: tuple[Token, ...]  # one a position, special tokens and padding included
    unread: int  # characters at the end that the model cut off
    name: str = "text"  # what messages call it


def check_route(module: Any) -> None:
    """Refuse a Router, and name the model that can be explained."""
    if isinstance(module, Router):
        raise ValueError(
            "model starts with a Router, whose routes read texts in different ways; explain the model of one route, "
            f"SentenceTransformer(modules=[*model[0].sub_modules[{next(iter(module.sub_modules))!r}], *model[1:]])"
        )


def read(
    model: SentenceTransformer, text: str | Sequence[str], prompt: str | None = None, name: str = "text"
) -> Reading:
    """Tokenize a text as ``model.encode`` does, and keep track of the characters."""
    texts = (text,) if isinstance(text, str) else tuple(text)
    if not isinstance(text, str) and not (len(texts) == 2 and all(isinstance(part, str) for part in texts)):
        raise TypeError(
            f"{name} must be a string, or two strings that the model reads as one text; got "
            f"{type(text).__name__} {str(text)[:80]}; explain one text at a time"
        )
    if not all(part.strip() for part in texts):
        raise ValueError(f"{name} {text!r} is empty, there is nothing to explain; give at least one word")
    check_texts(texts, name)
    check_prompt(prompt)
    # As `encode`: None is the model's default prompt, an empty one is none.
    if prompt is None and model.default_prompt_name is not None:
        prompt = model.prompts.get(model.default_prompt_name)
    prompt = prompt or ""
    module = model[0]
    if isinstance(module, StaticEmbedding):
        if len(texts) == 2:
            raise ValueError("a StaticEmbedding cannot read two texts as one; explain_pair explains their similarity")
        # The host keeps no offsets here: the tokenizer is asked again, as the host does without special tokens.
        features = model.preprocess([texts[0]], prompt=prompt)
        encoding = module.tokenizer.encode(prompt + texts[0], add_special_tokens=False)
        tokens = _tokens(texts[0], len(prompt), encoding.tokens, encoding.offsets, [0] * len(encoding.tokens))
        return _reading(name, texts, features, [tokens], cut=False)
    if isinstance(module, TokenEmbeddings) and len(texts) == 1:
        features = module.preprocess(texts, prompt=prompt)
        count = int(features["attention_mask"].sum())
        encoded = module.tokenizer(prompt + texts[0], add_special_tokens=False, return_offsets_mapping=True)
        pieces: list[str] = module.tokenizer.convert_ids_to_tokens(encoded["input_ids"][:count])  # type: ignore[assignment]
        tokens = _tokens(texts[0], len(prompt), pieces, encoded["offset_mapping"][:count], [0] * count)
        return _reading(name, texts, features, [tokens], cut=count < len(encoded["input_ids"]))
    check_route(module)
    if not (isinstance(module, Transformer) and module.tokenizer is not None):
        raise ValueError(
            f"model starts with a {type(module).__name__}, but explanations need a Transformer, a StaticEmbedding or "
            "TokenEmbeddings, which say which tokens they read"
        )
    features, parts = _transformer(model, module, texts, prompt)
    return _reading(name, texts, features, parts, cut=sum(map(len, parts)) >= (model.max_seq_length or float("inf")))


def _reading(
    name: str, texts: tuple[str, ...], features: dict[str, Any], parts: list[tuple[Token, ...]], cut: bool
) -> Reading:
    """Put the texts and their tokens, each with characters of its own text, into one."""
    tokens: list[Token] = []
    shift = unread = 0
    for text, part in zip(texts, parts, strict=True):
        if not any(token.kind == "text" for token in part):
            raise ValueError(
                f"{name} {text[:80]!r} has no tokens but special ones for this model, there is nothing to explain; "
                "give at least one word that its tokenizer knows"
            )
        # Only where the input is full was something cut; characters that no tokenizer keeps end some texts, too.
        ends = [token.end for token in part if token.kind == "text" and token.end is not None]
        unread += len(text[max(ends) :].strip()) if cut and ends else 0
        for token in part:
            if token.start is not None and token.end is not None:
                token = replace(token, start=token.start + shift, end=token.end + shift)
            tokens.append(token)
        shift += len(text) + len(_BETWEEN)
    return Reading(_BETWEEN.join(texts), features, tuple(tokens), unread, name)


def _transformer(
    model: SentenceTransformer, module: Transformer, texts: tuple[str, ...], prompt: str
) -> tuple[dict[str, Any], list[tuple[Token, ...]]]:
    """Return the features, and the tokens of each text; a separator belongs to the text before it."""
    tokenizer: Any = module.tokenizer
    fast = bool(getattr(tokenizer, "is_fast", False))
    extra = {"return_special_tokens_mask": True, "return_offsets_mapping": fast}
    given: Any = list(texts) if len(texts) == 1 else [texts]
    features = model.preprocess(given, prompt=prompt, processing_kwargs={"text": extra})
    if features.get("modality", "text") != "text":
        raise ValueError(
            f"the model turns text into {features['modality']!r} input (a chat template?), whose tokens cannot be "
            "traced back to the text; explanations need a model that reads plain text"
        )
    identifiers = features["input_ids"][0].tolist()
    offsets = features.pop("offset_mapping").reshape(-1, 2).tolist() if "offset_mapping" in features else None
    special = features.pop("special_tokens_mask", None)
    # Where the tokenizer does not say which tokens it added, those written in the text count as added, too.
    known = set(tokenizer.all_special_ids)
    mask = [i in known for i in identifiers] if special is None else special.reshape(-1).tolist()
    pieces, begin = tokenizer.convert_ids_to_tokens(identifiers), 0
    parts = []
    for number, text in enumerate(texts):
        stop = len(pieces) if number == len(texts) - 1 else _separator(mask) + 1
        own = offsets and offsets[begin:stop]
        parts.append(_tokens(text, 0 if number else len(prompt), pieces[begin:stop], own, mask[begin:stop]))
        begin = stop
    return features, parts


def _separator(special: Sequence[int | bool]) -> int:
    """Return the position of the first special token after the first text of a pair."""
    first = next((position for position, flag in enumerate(special) if not flag), 0)
    found = next((position for position in range(first, len(special)) if special[position]), None)
    if found is None:
        raise ValueError("the tokenizer puts no special token between the texts of a pair; explain each by itself")
    return found


def _tokens(
    text: str,
    prompt_length: int,
    pieces: list[str],
    offsets: Sequence[tuple[int, int]] | None,
    special: Sequence[int | bool],
) -> tuple[Token, ...]:
    tokens: list[Token] = []
    for position, piece in enumerate(pieces):
        if special[position] or offsets is None:
            tokens.append(Token(piece, piece, None, None, "special" if special[position] else "text"))
            continue
        # Prompt and text are tokenized together: a token that ends inside the prompt belongs to it.
        start, end = (index - prompt_length for index in offsets[position])
        if end <= 0 and prompt_length:
            tokens.append(Token(piece, piece, None, None, "prompt"))
            continue
        start = max(start, 0)  # "Ġword" may begin with the last character of the prompt
        # Some tokenizers count the space before a word as its first character.
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
