"""Pictures: escaped, self-contained, readable ink on every color, nothing lost of the text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from rich.console import Console
from sentence_transformers import SentenceTransformer

from st_plugins.explain import explain_pair, explain_text
from st_plugins.explain.inner.drawing import pieces
from st_plugins.explain.spans import Token
from st_plugins.methods.self_explaining.span_pooling import SpanPooling
from st_plugins.report.matrices import (
    Piece,
    matrix_html,
    matrix_terminal,
    numbered_html,
    numbered_terminal,
    strip_html,
    strip_terminal,
)
from st_plugins.report.palette import color, ink

Make = Callable[..., SentenceTransformer]
EVIL = '<script>alert("x")</script> a & dog <img src=x onerror=alert(1)> \' &lt;'


class _Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words += data


def _printed(thing: object, width: int = 200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(thing)
    return console.export_text()


def _pages(make_model: Make) -> list[str]:
    model = make_model("bert")
    spans = SentenceTransformer(modules=[make_model("bert")[0], SpanPooling(16)], device="cpu")
    return [
        found.to_html()
        for m in (model, spans)
        for found in (
            explain_text(m, EVIL, faithfulness=True),
            explain_pair(m, EVIL, EVIL + " two", faithfulness=True),
        )
    ]


def test_pages_are_escaped_and_self_contained(make_model: Make) -> None:
    for text in _pages(make_model):
        page = _Page(text)
        assert not {"script", "img", "iframe", "object"} & set(page.tags)
        assert "default-src 'none'" in text
        links = [value for name, value in page.attributes if name in ("href", "src")]
        assert links == ["data:,"]
        assert not [name for name, _ in page.attributes if name.startswith("on")]
        assert "http" not in text.replace("http-equiv", "") and "url(" not in text
        assert 'alert("x")' in page.words.replace("\n", "")
        assert text.count("<table") == text.count("</table>") and text.endswith("</html>\n")


def test_a_token_of_markup_is_escaped() -> None:
    page = _Page(strip_html([Piece("<script>", 1.0), Piece(" <img src=x> "), Piece('" onclick="x', -1.0)]))
    assert page.tags == ["p", "mark", "mark"] and page.words == '<script> <img src=x> " onclick="x'
    assert {name for name, _ in page.attributes} == {"class", "style", "title"}
    assert ("title", '" onclick="x: -1') in page.attributes
    assert _Page(matrix_html(["<i>"], ['"<u>'], np.ones((1, 1)), title='"><a>')).tags.count("td") == 2


def test_the_strip_is_the_text_as_it_was_written(make_model: Make) -> None:
    text = "  The man's\tbig <dog>   is un-happy. "
    found = explain_text(make_model("bert"), text)
    strip = pieces(text, found.side.tokens, found.saliency)
    assert "".join(piece.text for piece in strip if not piece.added).strip() == text.strip()
    assert _Page(strip_html(strip)).words.split() == strip_terminal(strip).plain.split()
    assert [piece.text for piece in strip if piece.added] == ["[CLS]", "[SEP]"]
    shown = [piece.value for piece in strip if piece.value is not None]
    assert shown == pytest.approx(found.saliency)


def test_tokens_without_characters_are_set_apart() -> None:
    tokens = [Token("[A]", "[A]", None, None, "special"), Token("x", "x", None, None, "text")]
    assert [piece.text for piece in pieces("x", tokens, [1, 2])] == ["[A]", " ", "x"]


@pytest.mark.parametrize("value", np.linspace(-1, 1, 81))
def test_ink_can_be_read(value: float) -> None:
    """The contrast ratio of WCAG, written out, is at least 4.5 : 1 on every color of the scale."""

    def luminance(rgb: tuple[int, int, int]) -> float:
        channels = []
        for channel in rgb:
            part = channel / 255
            channels.append(part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
        return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]

    levels = sorted([luminance(color(value)), luminance(ink(color(value)))])
    assert (levels[1] + 0.05) / (levels[0] + 0.05) >= 4.5


def test_stronger_is_darker_and_the_sign_is_the_hue() -> None:
    for sign in (-1, 1):
        steps = [sum(color(sign * value)) for value in np.linspace(0, 1, 21)]
        assert steps == sorted(steps, reverse=True) and len(set(steps)) == 21
    assert color(0.7)[2] > color(0.7)[0] and color(-0.7)[0] > color(-0.7)[2]
    assert color(5.0) == color(1.0) and color(float("nan")) == color(0.0)


def test_a_matrix_shows_its_numbers() -> None:
    values = np.array([[0.5, -0.25], [0.0, -0.0001]])
    page = matrix_html(["a", "<b>"], ["c", "d"], values, title="t")
    assert re.findall(r">(-?[0-9.]+)</td>", page) == ["50.0", "-25.0", "0.0", "0.0"]
    assert page.count('class="minus"') == 1 and "&lt;b&gt; × c: 0.00000" in page
    printed = _printed(matrix_terminal(["a", "<b>"], ["c", "d"], values, title="t"))
    assert "-25.0" in printed and "<b>" in printed


def test_all_zeros_have_no_color() -> None:
    assert "background:#f7f7f7" in strip_html([Piece("a", 0.0)]) and "#08306b" not in strip_html([Piece("a", 0.0)])


def test_terminal_shows_text_with_markup_as_it_is(make_model: Make) -> None:
    model = make_model("bert")
    pair = explain_pair(model, "[bold]a dog[/bold]", "the cat [red]", top_k=3, faithfulness=True)
    printed = _printed(pair.to_terminal())
    assert "[bold]a dog[/bold]" in printed and "the cat [red]" in printed
    assert f"{pair.similarity:.4f}" in printed and f"{pair.top_pairs[0].interaction:+.5f}" in printed
    assert "Faithfulness" in printed
    single = explain_text(model, "[bold]a dog[/bold]", top_k=2)
    assert f"{single.spans[0].weight:.4f}" in _printed(single.to_terminal())
    torch.manual_seed(0)
    spans = SentenceTransformer(modules=[model[0], SpanPooling(16)], device="cpu")
    assert "Heaviest of 6 spans" in _printed(explain_text(spans, "a dog .").to_terminal())


@pytest.mark.parametrize(("top", "scale"), [(0.118, 100), (0.0021, 10_000), (50.0, 1), (1.0, 100), (0.0, 1)])
def test_numbers_have_two_digits(top: float, scale: float) -> None:
    from st_plugins.explain.inner.drawing import _scale

    assert _scale(top) == scale and (not top or 10 <= top * scale <= 100)


def test_long_texts_gather_tokens_and_keep_the_total(make_model: Make) -> None:
    model = make_model("bert")
    model.max_seq_length = 32
    found = explain_pair(model, "a big dog " * 20, "the cat is " * 20)
    rows, columns, values, shades, *_ = found._matrix("contribution", 5)
    top = np.abs(values[:5, :5]).max()
    assert rows[-1] == "27 more" and values.shape == (6, 6) and len(columns) == 6
    assert values.sum() == pytest.approx(found.similarity, abs=1e-5)
    assert np.abs(shades).max() == 1 and shades[:5, :5] == pytest.approx(values[:5, :5] / top)
    assert not shades[5].any() and not shades[:, 5].any()
    assert len(found._matrix("contribution", 31)[0]) == 32  # "1 more" would be no shorter
    assert "cut off the last" in found.to_html()


def test_what_corresponds_has_equal_numbers_and_what_does_not_has_none() -> None:
    strip = [Piece("a <b>", 12.0), Piece(" "), Piece("dog", 0.0)]
    assert numbered_html(strip) == (
        '<p class="numbered"><span class="linked">a &lt;b&gt;<sup>12</sup></span> '
        '<span class="apart" title="no counterpart">dog</span></p>'
    )
    drawn = numbered_terminal(strip)
    assert drawn.plain == "a <b>[12] dog"
    assert [str(span.style) for span in drawn.spans] == ["underline", "bold cyan", "dim"]
