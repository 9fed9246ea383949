"""The tables of the explain study."""

from __future__ import annotations

from typing import Any, NamedTuple

from evaluation.engine.study import Page, Record, Results, stamp
from evaluation.engine.tables import bounds, head, line, section

OURS = "alignment"
FAITHFUL = "gradient"
"""What the views are compared with: for links ours, for deletion gradient × input."""

_KINDS = ("cosine", "centered cosine")


class Column(NamedTuple):
    """A score on one set."""

    title: str
    task: str
    score: str


_WORDS = [
    Column("images, first 150", "images", "words, first 150"),
    Column("headlines, first 150", "headlines", "words, first 150"),
    Column("images, all", "images", "words"),
    Column("headlines, all", "headlines", "words"),
]
_CHUNKS = [Column("images, chunks", "images", "chunks"), Column("headlines, chunks", "headlines", "chunks")]
_LINKS = [
    Column("MTRef dev, sure", "mtref-dev", "sure"),
    Column("MTRef test, sure", "mtref-test", "sure"),
    Column("MTRef test, sure and possible", "mtref-test", "sure and possible"),
    Column("Wiki test, sure", "wiki-test", "sure"),
]
_NAMES = {
    "random": "random",
    "gradient": "gradient × input",
}


def page(study: Any, results: Results) -> Page:
    """Return the page."""
    models = [row.name for row in study.rows]
    lines = [f"# {study.title}", "", study.notes, ""]
    for title, text, columns in (
        ("iSTS: links of words", _WORD_TEXT, _WORDS),
        ("iSTS: the official alignment F1, gold chunks given", _CHUNK_TEXT, _CHUNKS),
        ("MultiMWA: links of words", _LINK_TEXT, _LINKS),
    ):
        lines += section(title, text, _links(study, models, results, columns))
    lines += section("Layer by layer", _LAYER_TEXT, _layers(models, results, [*_WORDS, *_CHUNKS, *_LINKS]))
    if any((study.task_names[-1], name) in results for name in models):
        lines += section("Deletion", _DELETION_TEXT, _deletion(study, models, results))
    first = next(iter(results.values()))[0]
    return [*lines, stamp(first, "Measured"), ""], {}


def _views(results: Results, model: str, column: Column) -> Record:
    """Return what the views of a model scored; nothing if it was not measured."""
    found = results.get((column.task, model))
    return dict(found[0]["scores"].get(column.score, {}).get("views", {})) if found else {}


def _pairs(results: Results, model: str, columns: list[Column]) -> str:
    """Return how many pairs the columns are about."""
    found = [results[column.task, model][0] for column in columns if (column.task, model) in results]
    scores = [record["scores"][column.score] for record, column in zip(found, columns, strict=False)]
    return ", ".join(str(count) for count in dict.fromkeys(score["pairs"] for score in scores))


def _of_layers(views: Record, kind: str) -> list[str]:
    """Return the views of single layers of a kind, from the word embeddings upwards."""
    return [name for name in views if name.startswith(f"{kind}, layer ")]


def _best(views: Record, kind: str) -> str:
    return max(_of_layers(views, kind), key=lambda name: float(views[name]["value"][0]))


def _rows(study: Any, results: Results, model: str, columns: list[Column]) -> dict[str, list[str]]:
    """Return the rows of a model: for each the view that it shows in each column."""
    found = [_views(results, model, column) for column in columns]
    chosen_on = _views(results, model, Column("", study.dev, "sure"))
    views = next(views for views in found if views)
    rows = {name: [name] * len(columns) for name in views if ", layer " not in name and name != OURS}
    for kind in _KINDS:
        layers = _of_layers(views, kind)
        last = layers[-1]
        if len(layers) == 1:  # word vectors
            rows[kind] = [last] * len(columns)
            continue
        rows[f"{kind}, last layer"] = [last] * len(columns)
        if chosen_on:
            best = _best(chosen_on, kind)
            rows[f"{kind}, layer {best.split()[-1]} (chosen on MTRef dev)"] = [best] * len(columns)
        rows[f"{kind}, best layer of the column"] = [_best(one, kind) if one else "" for one in found]
    if OURS in views:
        rows[f"**{OURS}**"] = [OURS] * len(columns)
    return rows


def _links(study: Any, models: list[str], results: Results, columns: list[Column]) -> list[str]:
    """Return F1 of all views, and how far ours is above each."""
    lines = head("model | >pairs | view", *(f"{column.title} | {OURS} minus it" for column in columns))
    for model in models:
        found = [_views(results, model, column) for column in columns]
        for title, shown in _rows(study, results, model, columns).items() if any(found) else ():
            cells = []
            for views, name in zip(found, shown, strict=True):
                cells += _cells(views[name], -1) if name in views else ["", ""]
            lines.append(line([model, _pairs(results, model, columns), title, *cells]))
    return lines


def _cells(view: Record, sign: int) -> list[str]:
    """Return a score with its interval, and the difference times a sign with its own; bold where it has no zero."""
    value, low, high = view["value"]
    shown = [f"{100 * value:.1f} {bounds(low, high)}"]
    if "above" not in view:
        return [*shown, ""]
    gain, *ends = (sign * number for number in view["above"])
    text = f"{100 * gain:+.1f} {bounds(min(ends), max(ends), '+')}"
    return [*shown, text if view["verdict"] == "not separable" else f"**{text}**"]


def _layers(models: list[str], results: Results, columns: list[Column]) -> list[str]:
    """Return F1 of the cosine of every layer, and the same centered."""
    lines = head("model | >layer", *(f">{column.title}" for column in columns))
    for model in models:
        found = [_views(results, model, column) for column in columns]
        first = next((views for views in found if views), {})
        names = (_of_layers(first, kind) for kind in _KINDS)
        for pair in zip(*names, strict=True):
            cells = [" / ".join(f"{100 * views[name]['value'][0]:.1f}" for name in pair if views) for views in found]
            lines.append(line([model, pair[0].split()[-1], *cells]))
    return lines


def _deletion(study: Any, models: list[str], results: Results) -> list[str]:
    """Return how the similarity reacts when what a view names is deleted, or left alone."""
    scores = ("comprehensiveness", "sufficiency")
    titles = (f"{score} ({good}) | minus gradient × input" for score, good in zip(scores, _GOOD, strict=True))
    lines = head("model | >pairs | view", *titles)
    for model in models:
        columns = [Column("", study.task_names[-1], score) for score in scores]
        found = [_views(results, model, column) for column in columns]
        for name in found[0]:
            cells = [cell for views in found for cell in _cells(views[name], 1)]
            lines.append(line([model, _pairs(results, model, columns), _NAMES.get(name, name), *cells]))
    return lines


_GOOD = ("high is good", "low is good")
_WORD_TEXT = (
    "F1 x 100 with 95 % bootstrap intervals over pairs. Gold links are all pairs of words of aligned chunks; a view's "
    "links are the mutual best of its word x word matrix (those of the alignment are its own). Precision is over "
    "links, recall over aligned words that got a right link, both averaged over pairs. Differences are paired on the "
    "same resamples, not corrected for their number, bold where p < 0.05. The best layer of a column is known "
    "afterwards only: no user has it, and it is the hardest to beat."
)
_CHUNK_TEXT = (
    "The organisers' alignment F1 (Ali) over all 375 pairs, the gold chunks of both sides given. Chunks are paired "
    "one to one so that the strengths of a view's word links inside the pairs add up to the most; a chunk without a "
    "link has no counterpart. Nothing is chosen."
)
_LINK_TEXT = (
    "Precision is over links here, and so is recall; both are averaged over pairs. Where only sure links are gold, a "
    "link that people call possible is a wrong one. The alignment's constants and the layers of the rows that say so "
    "were chosen on MTRef dev: that column shows what they were chosen by."
)
_LAYER_TEXT = "F1 x 100 of the cosine of token vectors, as they are / less the mean of both texts' tokens."
_DELETION_TEXT = (
    "Deletion as in ERASER on drawn pairs of STS-B dev, × 100: how much the similarity falls when the tokens that "
    "a view names first are deleted from one text (comprehensiveness), or are all that is left of it (sufficiency), "
    "mean over 1, 5, 10, 20 and 50 % of the tokens and over both texts. Ten random orders a text."
)
