"""Where the heaviest span of a text is: whether a pooling that has become sharp has collapsed to one place."""

from __future__ import annotations

from collections import Counter

import numpy as np

from evaluation.engine.study import Record
from evaluation.engine.tables import head, line, section
from st_plugins.explain import Explanation

HEAVIEST = (
    "Of {count} texts, first seed: how much weight the heaviest span has, how many of the text's tokens it has "
    "(medians), in how many texts it begins at the first token or ends at the last, and what it is most often. A "
    "collapse is the same place, or the same word, in nearly all texts."
)


def heaviest(explanation: Explanation) -> Record:
    """Return which of a text's words the heaviest span has."""
    span = explanation.spans[0]
    places = [place for place, token in enumerate(explanation.side.tokens) if token.kind == "text"]
    return {
        "first": places.index(span.first),
        "last": places.index(span.last),
        "tokens": len(places),
        "weight": round(span.weight, 4),
        "text": span.text,
    }


def heaviest_section(results: dict[str, list[Record]]) -> list[str]:
    """Return the section on where the heaviest span is, of records by row; nothing if that has not been recorded."""
    known = {name: seeds[0]["heaviest"] for name, seeds in results.items() if "heaviest" in seeds[0]}
    if not known:
        return []
    lines = head("pooling | >weight | >tokens | >begins the text | >ends it", "most often | >texts")
    for name, spans in known.items():
        lengths = [(span["last"] - span["first"] + 1) / span["tokens"] for span in spans]
        ((word, count),) = Counter(span["text"].lower() for span in spans).most_common(1)
        shares = [
            np.median(lengths),
            *np.mean([(s["first"] == 0, s["last"] == s["tokens"] - 1) for s in spans], axis=0),
        ]
        cells = [f"{np.median([span['weight'] for span in spans]):.2f}", *(f"{100 * share:.0f} %" for share in shares)]
        lines.append(line([name, *cells, f"“{word}”", f"{100 * count / len(spans):.0f} %"]))
    return section("The heaviest span", HEAVIEST.format(count=len(spans)), lines)
