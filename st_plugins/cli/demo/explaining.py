"""The third step: why two sentences are similar, and which words of a query decided about what it found."""

from __future__ import annotations

import re
from pathlib import Path

from sentence_transformers import SentenceTransformer

from st_plugins.cli.demo.documentation import Documentation
from st_plugins.cli.demo.evaluating import Evaluated
from st_plugins.cli.demo.found import Found
from st_plugins.explain.pair import explain_pair
from st_plugins.explain.query import explain_query

PAIR, HIT = "explained-pair.html", "explained-hit.html"
_AMONG = 100  # documents in which the query is searched again, its own among them
_WORDS = range(5, 12)  # of a query that is shown


def explain(model: SentenceTransformer, texts: Documentation, evaluated: Evaluated, folder: Path) -> Found:
    """Explain a query and the document it found; ``folder`` gets a page of the pair and one of the search."""
    query, document = shown(texts, evaluated)
    asked, text = texts.search.queries[query], texts.search.corpus[document]
    pair = explain_pair(model, asked, first_sentence(text))
    (folder / PAIR).write_text(pair.to_html(), encoding="utf-8")
    others = [other for key, other in texts.search.corpus.items() if key != document][: _AMONG - 1]
    search = explain_query(model, asked, [text, *others], 5)
    (folder / HIT).write_text(search.to_html(), encoding="utf-8")

    best = pair.top_pairs[0]
    decided = search.decided(1)[0].word.text if search.average is not None else ""
    sentence = (
        f"{asked!r} and {first_sentence(text)!r} are similar ({pair.similarity:.2f}), most of all by "
        f"{best.first.text!r} and {best.second.text!r}"
        + (f", and the word that decided the search is {decided!r}." if decided else ".")
    )
    pages = {"Why two sentences are similar": PAIR, "Why a document was found": HIT}
    return Found(sentence=sentence, pages=pages)


def shown(texts: Documentation, evaluated: Evaluated) -> tuple[str, str]:
    """Return a query that found its document first, although they share as few words as possible."""
    search = texts.search
    first = [rank == 1 for rank in evaluated.task.per_unit["mrr_at_10"]]
    found = [(query, next(iter(search.qrels[query]))) for query, hit in zip(search.queries, first, strict=True) if hit]
    short = [(query, key) for query, key in found if len(search.queries[query].split()) in _WORDS]
    return min(short or found, key=lambda one: shared(search.queries[one[0]], search.corpus[one[1]]))


def shared(first: str, second: str) -> int:
    """Count the words that two texts have in common."""
    words = [set(re.findall(r"[a-z]+", text.lower())) for text in (first, second)]
    return len(words[0] & words[1])


def first_sentence(text: str) -> str:
    """Return the beginning of a text."""
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
