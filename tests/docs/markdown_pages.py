"""The README and the pages of ``docs`` as the tests of this folder read them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
# What a page needs that a test of all pages cannot give it, and where its blocks run instead.
ELSEWHERE = {
    "docs/training-on-several-machines.md": "tests/test_training_page.py",  # torchrun and Ray
    "docs/statistics-with-spark.md": "tests/scale/test_pages_of_other_engines.py",
    "docs/statistics-with-dask.md": "tests/scale/test_pages_of_other_engines.py",
}
# Blocks that are parts of a program on a cluster: only compiled, and their imports run.
CLUSTER = {"docs/scale.md", "docs/scale-plan.md", "docs/scale-evaluation.md"}

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^ *```[ \t]*$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One block of code, and what the page says that it prints."""

    page: str
    number: int
    language: str
    body: str
    printed: str | None = None

    def __str__(self) -> str:
        return f"{self.page.removeprefix('docs/').removesuffix('.md')}-{self.number}"


def blocks(page: str, text: str, language: str) -> list[Block]:
    """Return the blocks of one language, numbered from 1; a text block directly after one is what it prints."""
    fences = list(_FENCE.finditer(text))
    found: list[Block] = []
    for index, fence in enumerate(fences):
        if fence["language"] != language:
            continue
        after = fences[index + 1] if index + 1 < len(fences) else None
        printed = None
        if after is not None and after["language"] == "text" and not text[fence.end() : after.start()].strip():
            printed = after["body"]
        found.append(Block(page, len(found) + 1, language, fence["body"], printed))
    return found


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return _FENCE.sub("", text)
