"""The figures of the HTML report, as SVG data URIs drawn with matplotlib (extra ``report``)."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from st_plugins.evaluation.pages.tables import METRICS
from st_plugins.evaluation.result import Score, SuiteResult, TaskResult
from st_plugins.evaluation.task_result import TasksResult
from st_plugins.report.table import percent

MAX_POINTS = 1500
_MAX_SCATTERS = 40

# Drawn in this color, then replaced by the page's text color, which follows the light or dark theme.
_INK = "#010203"
_BLUE, _ORANGE, _GREY, _DARK_GREY = "#3b82d0", "#e07b39", "#939ca9", "#656e7b"
_THEME = "<style>svg{color:#1d232c}@media(prefers-color-scheme:dark){svg{color:#e4e8ee}}</style>"
_RC: Any = {
    "svg.hashsalt": "st-plugins",  # the same ids in every run
    "svg.fonttype": "none",  # text stays text: smaller, and the browser has the glyphs
    "text.parse_math": False,  # a $ in a name is a dollar sign
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


@dataclass(frozen=True)
class Picture:
    """One figure."""

    group: str  # "overview" or "scatter"
    caption: str
    alt: str  # what it shows, for readers who do not see it
    uri: str


def pictures(result: SuiteResult | TasksResult) -> list[Picture] | None:
    """Draw all figures for which the result holds the numbers."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    with _style():
        if isinstance(result, TasksResult):
            return [_task_bars(result)]
        drawn = [_score_bars(result), _histogram(result), _spectrum(result)]
        drawn += [_scatter(task) for task in result.tasks[:_MAX_SCATTERS]]
    return [picture for picture in drawn if picture is not None]


def picture(
    group: str, caption: str, alt: str, width: float, height: float, paint: Callable[[Any], None]
) -> Picture | None:
    """Draw one figure in the style of the reports; None without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    with _style():
        return Picture(group, caption, alt, _draw(width, height, paint))


@contextlib.contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser chooses the font
        matplotlib.rcdefaults()  # the user's own style must not change the report
        matplotlib.rcParams.update(_RC)
        yield


def _draw(width: float, height: float, paint: Callable[[Any], None]) -> str:
    """Let ``paint`` draw on empty axes and return the figure as a data URI."""
    from matplotlib.figure import Figure

    # Not pyplot, which would choose a backend and keep the figure. Transparent, for the page may be dark.
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    paint(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", dpi=110, metadata={"Date": None})
    svg = buffer.getvalue().decode("utf-8")
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    end = svg.index(">") + 1
    svg = svg[:end] + _THEME + svg[end:]
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")


def _score_bars(result: SuiteResult) -> Picture:
    titles = [_label(task.title) for task in result.tasks] + ["Average"]
    keys = [task.name for task in result.tasks] + ["avg"]
    series: list[tuple[str, str, list[Score]]] = [
        ("model", _BLUE, [task.spearman["all"] for task in result.tasks] + [result.average["spearman_all"]])
    ]
    if result.floor is not None:
        series.append(("floor, raw", _GREY, [result.floor.raw[key] for key in keys]))
        series.append(("floor, whitened", _DARK_GREY, [result.floor.whitened[key] for key in keys]))
    caption = "Model beside the floor. The thin lines are the bootstrap intervals."
    return score_bars(titles, series, 'Spearman × 100 ("all"), with interval', caption)


def score_bars(
    titles: Sequence[str], series: Sequence[tuple[str, str, Sequence[Score]]], label_below: str, caption: str
) -> Picture:
    """Draw a bar with its interval for each title and each of the labeled and colored series."""
    step = 0.8 / len(series)

    def paint(axes: Any) -> None:
        for index, (label, color, scores) in enumerate(series):
            rows = np.arange(len(titles)) - 0.4 + step * (index + 0.5)
            axes.barh(rows, [100 * score.value for score in scores], step * 0.9, color=color, label=label)
            for row, score in zip(rows, scores, strict=True):
                if np.isnan(score.value):
                    axes.text(0, row, " undefined", va="center", fontsize=8)
                else:
                    axes.plot([100 * score.low, 100 * score.high], [row, row], color=_INK, linewidth=1.2)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_yticks(range(len(titles)), [_literal(title) for title in titles])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(titles) - 0.5, -0.5)  # first task on top; undefined rows keep their place
        axes.set_xlabel(label_below)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)

    alt = "Bars of the scores: " + "; ".join(
        f"{label}: "
        + ", ".join(f"{title} {percent(score.value)}" for title, score in zip(titles, scores, strict=True))
        for label, _, scores in series
    )
    uri = _draw(5.0, 1.1 + (0.2 + 0.13 * len(series)) * len(titles), paint)
    return Picture("overview", caption, alt, uri)


def _task_bars(result: TasksResult) -> Picture:
    titles = [f"{_label(task.title)} ({METRICS.get(task.main, task.main)})" for task in result.tasks]
    series = [("model", _BLUE, [task.score for task in result.tasks])]
    caption = "The main metric of each task. The thin lines are the bootstrap intervals."
    return score_bars(titles, series, "score × 100, with interval", caption)


def _histogram(result: SuiteResult) -> Picture | None:
    high, low = [], []
    for task in result.tasks:
        gold, similarities = _points(task)
        if len(gold):
            above = gold > gold.mean()
            high.append(similarities[above])
            low.append(similarities[~above])
    if not high:
        return None
    # Split at each task's own mean, for their scales differ; shared edges let the two be compared.
    upper, lower = np.concatenate(high), np.concatenate(low)
    edges = np.histogram_bin_edges(np.concatenate([upper, lower]), bins=50)

    def paint(axes: Any) -> None:
        for values, color, label in (
            (lower, _ORANGE, "gold ≤ task's mean"),
            (upper, _BLUE, "gold > task's mean"),
        ):
            axes.hist(values, edges, color=color, alpha=0.55, label=label)
        axes.set_xlabel(f"{result.settings.get('similarity', 'cosine')} similarity")
        axes.set_ylabel("pairs")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=9)

    alt = f"Histogram of {len(upper) + len(lower):,} similarities"
    for values, side in ((upper, "above"), (lower, "at or below")):
        if len(values):
            alt += f"; mean {np.mean(values):.3f} where gold is {side} its task's mean"
    caption = "Similarities of all pairs. The less the two hills overlap, the better the model tells them apart."
    return Picture("overview", caption, alt, _draw(5.0, 3.4, paint))


def _spectrum(result: SuiteResult) -> Picture | None:
    values = np.asarray(result.geometry.get("spectrum") or [], dtype=np.float64)
    ranks = np.flatnonzero(np.isfinite(values) & (values > 0))
    if not len(ranks):
        return None

    def paint(axes: Any) -> None:
        axes.plot(ranks + 1, values[ranks], color=_BLUE, marker="o", markersize=3, linewidth=1)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
        if values[ranks].max() < 100 * values[ranks].min():  # hardly a decade: label inside it too
            axes.yaxis.set_minor_formatter(lambda value, position: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        else:
            axes.minorticks_off()
        axes.grid(axis="y", color=_GREY, alpha=0.35, linewidth=0.6)
        axes.set_xlabel("rank")
        axes.set_ylabel("eigenvalue (log scale)")

    first, last = values[ranks[0]], values[ranks[-1]]
    alt = f"Covariance eigenvalues on a log scale, from {first:.3g} at rank {ranks[0] + 1} to {last:.3g} at rank "
    caption = "Leading eigenvalues of the embeddings' covariance. A flat line means that all directions are used."
    return Picture("overview", caption, f"{alt}{ranks[-1] + 1}", _draw(5.0, 3.4, paint))


def _scatter(task: TaskResult) -> Picture | None:
    gold, similarities = _points(task)
    if not len(gold):
        return None
    # A sample that is the same in every run; more points would hide one another.
    rows = np.arange(len(gold))
    if len(rows) > MAX_POINTS:
        rows = np.sort(np.random.default_rng(0).choice(len(rows), MAX_POINTS, replace=False))

    def paint(axes: Any) -> None:
        # Rasterized: 1,500 points as a small image instead of 1,500 SVG elements.
        axes.scatter(gold[rows], similarities[rows], s=8, color=_BLUE, alpha=0.4, linewidths=0, rasterized=True)
        axes.set_title(_literal(_label(task.title)))
        axes.set_xlabel("gold score")
        axes.set_ylabel("similarity")

    score = percent(task.spearman["all"].value)
    caption = f"{task.title}: Spearman {score}, " + (
        f"{len(gold):,} pairs" if len(rows) == len(gold) else f"{len(rows):,} of {len(gold):,} pairs drawn"
    )
    alt = f"Similarity against gold score for {task.title}, Spearman {score}"
    return Picture("scatter", caption, alt, _draw(3.2, 2.8, paint))


def _points(task: TaskResult) -> tuple[np.ndarray, np.ndarray]:
    """Return gold scores and similarities of the pairs where both are known."""
    gold = np.asarray(task.gold or [], dtype=np.float64)
    similarities = np.asarray(task.similarities or [], dtype=np.float64)
    if len(gold) != len(similarities):
        return gold[:0], gold[:0]
    known = np.isfinite(gold) & np.isfinite(similarities)
    return gold[known], similarities[known]


def _literal(text: str) -> str:
    return text.replace("$", r"\$")  # not the beginning of a formula


def _label(text: str) -> str:
    """Return a name as an axis label: printable characters only, not too long."""
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= 22 else text[:21] + "…"
