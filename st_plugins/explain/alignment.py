"""Which words of two texts correspond."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.padding import Padding
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from typing_extensions import Self

from st_plugins.core.files import JSONText
from st_plugins.explain.inner.drawing import pieces
from st_plugins.explain.inner.units import By, inside
from st_plugins.explain.spans import Span
from st_plugins.report.matrices import STYLE, Piece, numbered_html, numbered_terminal
from st_plugins.report.page import escape, page, section
from st_plugins.report.table import Table
from st_plugins.report.terminal import foreign

LinkKind = Literal["counterpart", "phrase"]

_MANY = 30  # counterparts that are listed without being asked for
MEANING = (
    "The alignment says which {by}s correspond, from the middle layers of the model. It is a reading of the layers, "
    "and no part of the sum that the similarity is."
)


class Link(NamedTuple):
    """A word of each text that correspond.

    Args:
        first: The word of the first text.
        second: The word of the second text.
        strength: Their similarity, from -1 to 1: the mean over layers of the cosine of their vectors, from which the
            mean of all words of both texts has been taken.
        kind: ``"counterpart"``: each is the other's best; ``"phrase"``: one of them has no counterpart of its own, but
            stands in the middle of a phrase that has.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import align
        >>> link = align(untrained_encoder(), "A happy dog sleeps.", "The dog sleeps.").links[-1]
        >>> link.first.text, link.second.text, link.kind
        ('.', '.', 'counterpart')
    """

    first: Span
    second: Span
    strength: float
    kind: LinkKind


class Phrase(NamedTuple):
    """Words that hang together by links.

    Args:
        first: The words of the first text.
        second: The words of the second text.
        strength: Mean of the links between them.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import align
        >>> phrase = align(untrained_encoder(), "A happy dog sleeps.", "The dog sleeps.").phrases[-1]
        >>> [word.text for word in phrase.first], [word.text for word in phrase.second]
        (['.'], ['.'])
    """

    first: tuple[Span, ...]
    second: tuple[Span, ...]
    strength: float


@dataclass(frozen=True, eq=False)
class Alignment(JSONText):
    """Which words of two texts correspond, and which have no counterpart.

    Args:
        texts: Both texts.
        first: The n words of the first text.
        second: The m words of the second text.
        similarities: ``(n, m)``, float64, from -1 to 1: how similar the vectors of two words are.
        links: Words that correspond, in the order of the first text. Swapping the texts swaps the links.
        by: What the words are: ``"word"``, ``"token"`` or ``"sentence"``.
        layers: The layers that were read; 0 is the embedding layer.
        unread: Characters at the end of each text that the model cut off.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import align
        >>> found = align(untrained_encoder(), "A happy dog sleeps.", "The dog sleeps.")
        >>> again = Alignment.from_json(found.to_json())
        >>> again.links == found.links, again.similarities.shape
        (True, (5, 4))
    """

    texts: tuple[str, str]
    first: tuple[Span, ...]
    second: tuple[Span, ...]
    similarities: NDArray[np.float64]
    links: tuple[Link, ...]
    by: By
    layers: tuple[int, ...]
    unread: tuple[int, int] = (0, 0)

    @property
    def phrases(self) -> tuple[Phrase, ...]:
        """Words that hang together, a phrase for each counterpart, in the order of the first text."""
        # Two sides of one graph: words of the second text are counted after those of the first.
        count = len(self.first)
        places = np.array(self.places, dtype=int).reshape(-1, 2)
        total = count + len(self.second)
        graph = coo_array((np.ones(len(places)), (places[:, 0], places[:, 1] + count)), shape=(total, total))
        names = connected_components(graph, directed=False)[1]
        found = []
        for name in dict.fromkeys(names[places[:, 0]].tolist()):
            own = np.flatnonzero(names == name)
            strengths = [link.strength for link, place in zip(self.links, places, strict=True) if place[0] in own]
            first, second = own[own < count], own[own >= count] - count
            words = tuple(self.first[k] for k in first), tuple(self.second[k] for k in second)
            found.append(Phrase(*words, float(np.mean(strengths))))
        return tuple(found)

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """The links as places in ``first`` and ``second``, counted from 0."""
        first, second = ({word: place for place, word in enumerate(words)} for words in (self.first, self.second))
        return tuple((first[link.first], second[link.second]) for link in self.links)

    @property
    def without_counterpart(self) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
        """The words of each text that nothing in the other corresponds to."""
        linked = {link.first for link in self.links}, {link.second for link in self.links}
        first, second = (
            tuple(word for word in words if word not in known)
            for words, known in zip((self.first, self.second), linked, strict=True)
        )
        return first, second

    @classmethod
    def _stored(cls, stored: dict[str, Any]) -> Self:
        made: dict[str, Any] = {
            "texts": tuple(stored["texts"]),
            "first": tuple(Span(**word) for word in stored["first"]),
            "second": tuple(Span(**word) for word in stored["second"]),
            "similarities": np.array(stored["similarities"]),
            "layers": tuple(stored["layers"]),
            "unread": tuple(stored["unread"]),
        }
        made["links"] = tuple(Link(Span(**one), Span(**other), *rest) for one, other, *rest in stored["links"])
        return cls(**{**stored, **made})

    def to_terminal(self) -> Group:
        """Return both texts with numbers at what corresponds, for ``rich.console.Console().print``."""
        strips: list[RenderableType] = [Padding(numbered_terminal(strip), (0, 0, 1, 0)) for strip in self._numbered()]
        table = [self._table().to_terminal()] if self.links else []
        return Group(*strips, *table, foreign(self.summary()))

    def to_html(self) -> str:
        """Return one self-contained HTML page."""
        return page(f"Which {self.by}s correspond?", [f"<h1>Which {self.by}s correspond?</h1>", self.card()], STYLE)

    def card(self, folded: bool = False) -> str:
        """Return the alignment as cards of a page.

        Args:
            folded: Whether they have to be opened.

        Returns:
            HTML.
        """
        note = f'<p class="note">{escape(MEANING.format(by=self.by))}</p>'
        drawn = section(
            f"Which {self.by}s correspond", f"<p>{escape(self.summary())}</p>{self.strips()}{note}", folded
        )
        return drawn + (self._table(folded or len(self.phrases) > _MANY).to_html() if self.links else "")

    def strips(self) -> str:
        """Return both texts as HTML, with numbers at what corresponds."""
        return "".join(numbered_html(strip) for strip in self._numbered())

    def within(self, first: Span, second: Span) -> Self:
        """Return what corresponds inside a sentence of each text.

        Args:
            first: The sentence of the first text.
            second: The sentence of the second text.

        Returns:
            The alignment of their words.
        """
        rows, columns = inside(self.first, first), inside(self.second, second)
        kept = set(rows), set(columns)
        links = [link for link, (i, j) in zip(self.links, self.places, strict=True) if i in kept[0] and j in kept[1]]
        texts = self.texts[0][: first.end][first.start :], self.texts[1][: second.end][second.start :]
        # Words are found in their text by characters, which are counted from the sentence now.
        moved = [
            {word: _moved(word, sentence.start or 0) for word in words}
            for words, sentence in ((self.first, first), (self.second, second))
        ]
        return dataclasses.replace(
            self,
            texts=texts,
            first=tuple(moved[0][self.first[k]] for k in rows),
            second=tuple(moved[1][self.second[k]] for k in columns),
            similarities=self.similarities[np.ix_(rows, columns)],
            links=tuple(link._replace(first=moved[0][link.first], second=moved[1][link.second]) for link in links),
        )

    def _numbered(self) -> tuple[list[Piece], list[Piece]]:
        """Return both texts with the number of its phrase at each word, 0 at those without counterpart."""
        phrases, found = self.phrases, []
        for text, words, side in zip(self.texts, (self.first, self.second), ("first", "second"), strict=True):
            numbers = {word: n for n, phrase in enumerate(phrases, 1) for word in getattr(phrase, side)}
            found.append(pieces(text, words, [numbers.get(word, 0) for word in words]))
        return found[0], found[1]

    def summary(self) -> str:
        """Return in a sentence how much corresponds."""
        first, second = self.without_counterpart
        parts = [
            f"{len(self.first) - len(first)} of {len(self.first)} {self.by}s of the first text and "
            f"{len(self.second) - len(second)} of {len(self.second)} of the second have a counterpart."
        ]
        for name, words in (("first", first), ("second", second)):
            if words:
                listed = ", ".join(word.text for word in words[:12]) + (", …" if len(words) > 12 else "")
                parts.append(f"Without one in the {name}: {listed}.")
        for name, unread in zip(("first", "second"), self.unread, strict=True):
            if unread:
                parts.append(f"The model cut off the last {unread:,} characters of the {name} text.")
        return " ".join(parts)

    def _table(self, folded: bool = False) -> Table:
        rows = [
            [str(number), f"{phrase.strength:.2f}", _joined(phrase.first), _joined(phrase.second)]
            for number, phrase in enumerate(self.phrases, 1)
        ]
        columns = ["number", "strength", "first text", "second text"]
        return Table("Counterparts", columns, rows, folded=folded, words=("first text", "second text"))


def _moved(word: Span, by: int) -> Span:
    if word.start is None or word.end is None:
        return word
    return dataclasses.replace(word, start=word.start - by, end=word.end - by)


def _joined(words: Sequence[Span]) -> str:
    """Return words in a row, with a mark where others are left out."""
    parts = [words[0].text]
    for before, word in pairwise(words):
        apart = word.first - before.last > 1
        # Words of a script without spaces follow each other as they do in the text.
        space = before.end is None or word.start is None or word.start > before.end
        parts.append(" … " if apart else " " if space else "")
        parts.append(word.text)
    return "".join(parts)
