"""Whether what is given as texts is texts, and can be encoded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping


def text_fault(text: str) -> str:
    r"""Return why a text cannot be encoded, or nothing."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        return (
            f"holds half a character, {half} (a lone surrogate, as cutting a text in the middle leaves it); repair it"
        )
    return ""


def check_strings(**texts: object) -> None:
    """Refuse what is no string, by the name of the argument."""
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a string, got a {type(text).__name__}; give one text at a time")


def check_texts(texts: Iterable[str], name: str) -> list[str]:
    """Return texts as a list; refuse what is none, and texts that cannot be encoded."""
    if isinstance(texts, str | bytes):
        raise TypeError(f"{name} must be a list of strings, got one string; put it into a list")
    # Iterating over a dictionary or a table of pandas gives its columns' names, which are strings too.
    if isinstance(texts, Mapping) or hasattr(texts, "columns"):
        raise TypeError(f"{name} must be a list of strings, got a {type(texts).__name__}; give one column of it")
    if not isinstance(texts, Iterable):
        raise TypeError(f"{name} must be a list of strings, got {type(texts).__name__}")
    found = list(texts)
    for index, text in enumerate(found):
        if not isinstance(text, str):
            raise TypeError(f"{name} must be strings, but {name}[{index}] is a {type(text).__name__}")
        if fault := text_fault(text):
            raise ValueError(f"{name}[{index}] {fault}")
    return found


def checksum(texts: Iterable[str]) -> str:
    """Return the SHA-256 of the texts, each with its length before it."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        # With its length before it, so that no two lists of texts look alike.
        digest.update(b"%d\n%b\n" % (len(encoded), encoded))
    return digest.hexdigest()
