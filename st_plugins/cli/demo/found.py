"""What a step of the demo found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found, in one sentence and in a few words, and the pages that say more: their paths by title."""

    sentence: str
    short: str = ""  # empty where the summary leaves it out
    pages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A step that was taken."""

    title: str
    texts: str  # which ones it is about
    found: Found
    seconds: float
