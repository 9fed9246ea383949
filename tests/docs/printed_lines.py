"""Whether a program printed what its page shows."""

from __future__ import annotations

import re

ABSOLUTE, RELATIVE = 0.02, 0.02  # numbers differ between processors and versions
_NUMBER = re.compile(r"[-−+]?(?:\d[\d,]*)(?:\.\d+)?(?:e[-+]?\d+)?")


def same(shown: str, line: str) -> bool:
    """Whether two lines have the same words and nearly the same numbers; the width of columns does not count."""
    if shown == line:
        return True
    if _NUMBER.sub("0", " ".join(shown.split())) != _NUMBER.sub("0", " ".join(line.split())):
        return False
    for one, other in zip(_NUMBER.findall(shown), _NUMBER.findall(line), strict=True):
        first, second = (float(text.replace(",", "").replace("−", "-")) for text in (one, other))
        if abs(first - second) > max(ABSOLUTE, RELATIVE * abs(first)) + 1e-12:
            return False
    return True


def difference(shown: str, printed: str) -> str | None:
    """Return the first line of a page that was not printed in its place; ``...`` stands for any lines."""
    lines = printed.rstrip().split("\n")
    at, anywhere = 0, False
    for line in shown.rstrip().split("\n"):
        if line.strip() == "...":
            anywhere = True
            continue
        while anywhere and at < len(lines) and not same(line, lines[at]):
            at += 1
        if at == len(lines) or not same(line, lines[at]):
            return line or "(an empty line)"
        at, anywhere = at + 1, False
    return None if anywhere or at == len(lines) else f"(nothing, but there is also) {lines[at]}"
