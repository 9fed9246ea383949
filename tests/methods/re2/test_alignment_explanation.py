"""Pictures of alignment maps: what is drawn, and that nothing is lost on the way."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from st_plugins.methods.re2.alignment_explanation import AlignmentExplanation, AlignmentMap


def explanation(m: int = 3, n: int = 4, blocks: int = 2) -> AlignmentExplanation:
    rng = np.random.default_rng(0)

    def rows(first: int, second: int) -> np.ndarray:
        table = rng.random((first, second))
        return table / table.sum(axis=1, keepdims=True)

    maps = tuple(AlignmentMap(rows(m, n), rows(n, m)) for _ in range(blocks))
    a, b = (tuple(f"{side}{k}" for k in range(count)) for side, count in (("a", m), ("b", n)))
    return AlignmentExplanation("first <b>text</b>", "second & text", a, b, maps, {"no": 0.25, "yes": 0.75})


def terminal(found: AlignmentExplanation, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(found.to_terminal())
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


class Tables(HTMLParser):
    """The numbers of every table of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[float]]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tbody":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        self.inside = tag == "td" and bool(dict(attrs).get("title"))

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tables[-1][-1].append(float(data))
        self.inside = False


def test_every_map_is_drawn_in_per_cent() -> None:
    found = explanation()
    text = terminal(found)
    tables = [[row for row in table if row] for table in Tables(found.to_html()).tables]
    maps = [table for block in found.blocks for table in (block.first_to_second, block.second_to_first)]
    assert len(tables) == 4
    for table, expected in zip(tables, maps, strict=True):
        np.testing.assert_allclose(table, 100 * expected, atol=0.051)
    for block in (1, 2):
        assert f"Block {block}: what the first text finds in the second" in text
        assert f"Block {block}: what the second text finds in the first" in text
    for value in maps[0].flatten():
        assert f"{100 * value:.1f}" in text
    assert text.startswith("yes 0.750, no 0.250")
    page = found.to_html()
    assert "first &lt;b&gt;text&lt;/b&gt;" in page and "<b>text" not in page and "second &amp; text" in page
    assert "<script" not in page and page.startswith("<!DOCTYPE html>")


def test_long_texts_keep_the_tokens_that_most_is_found_of() -> None:
    found = explanation(m=20, n=5, blocks=1)
    text = terminal(found)
    received = found.blocks[0].second_to_first.sum(axis=0)
    kept = sorted(np.argsort(-received)[:12])
    shown = [name for name in found.first_tokens if re.search(rf"\b{name}\b", text)]
    assert shown == [found.first_tokens[k] for k in kept] and "8 more" in text
    (first, second) = found._drawn(12)
    np.testing.assert_allclose(first.values.sum(axis=1), 1.0)
    np.testing.assert_allclose(second.values.sum(axis=1), 1.0)
    others = [k for k in range(20) if k not in kept]
    np.testing.assert_allclose(first.values[-1], found.blocks[0].first_to_second[others].mean(axis=0))
    np.testing.assert_allclose(second.values[:, -1], found.blocks[0].second_to_first[:, others].sum(axis=1))
    assert not first.shades[-1].any() and not second.shades[:, -1].any() and second.shades[:, :-1].all()
    assert "8 more" not in found.to_html()  # there is more room
    assert "more" not in terminal(explanation(m=13))  # one token is better than "1 more"


def test_json_brings_everything_back() -> None:
    found = explanation()
    again = AlignmentExplanation.from_json(found.to_json())
    assert (
        again.to_json() == found.to_json()
        and again.first_tokens == found.first_tokens
        and again.scores == found.scores
    )
    assert isinstance(again.blocks[0], AlignmentMap)
    np.testing.assert_array_equal(again.blocks[1].second_to_first, found.blocks[1].second_to_first)
    assert again.to_html() == found.to_html()


def test_counterparts_are_the_largest_shares() -> None:
    found = explanation()
    for block in (0, -1):
        table = found.blocks[block].first_to_second
        for row, (token, other, share) in enumerate(found.counterparts(block)):
            assert token == f"a{row}" and share == max(table[row])
            assert table[row][int(other[1:])] == pytest.approx(share)
