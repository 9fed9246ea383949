"""The page of a model's results: who keeps most at which size, and whether the certificate told the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt

from evaluation.engine.study import Page, Record, stamp
from evaluation.engine.tables import head, line, mean, section, svg
from st_plugins.compression.choice.candidates import OTHER_SHAPES
from st_plugins.compression.choice.certificate import Certificate
from st_plugins.compression.choice.fidelity import Measured

Found = dict[str, list[Record]]
_AVERAGE = "average"
_VERDICTS = {"+": "better", "=": "not separable", "-": "worse"}


@dataclass(frozen=True)
class Cell:
    """What one row scored on one task at one size, in one sample."""

    row: str
    task: str
    size: str
    seed: int
    value: float
    ours: str  # against this row: +, = or -


def page(study: Any, results: Found) -> Page:
    """Return the page."""
    own = [row.name for row in study.rows if row.method == "ours" and not row.target]
    peers = [row.name for row in study.rows if row.method not in ("ours", "raw") and row.name in results]
    cells = [cell for name in results for cell in _cells(name, results[name])]
    sizes = [str(size) for size in study.budgets]
    first = next(iter(results.values()))[0]
    titles = {key: title for key, title in first["tasks"].items() if key not in study.dev}
    lines = [f"# {study.title}", "", study.notes, "", "![Quality against bytes](quality.svg)", ""]
    lines += section("Average of the STS tasks", _TABLE, _table(cells, _AVERAGE, list(results), sizes))
    if peers:
        lines += section("Ours against each peer", _VERDICT_TEXT, _verdicts(cells, peers))
        lines += section("Where ours is separably worse than the best peer", _WORSE, _worse(cells, peers, own, titles))
    for name in own:
        which = f": {name}" if len(own) > 1 else ""
        if name in results:
            lines += section(f"What ours chose{which}", _CHOICE, _choices(results[name], sizes))
            lines += section(f"The certificate{which}", _CERTIFICATE, _certified(results[name], study.dev))
    for key, title in titles.items():
        if key != _AVERAGE:
            lines += [f"## {title}", "", *_table(cells, key, list(results), sizes), ""]
    neighbors = [cell for name in results for cell in _cells(name, results[name], titles)]
    lines += section("Neighbors", _NEIGHBORS, _table(neighbors, "", list(results), sizes))
    return [*lines, stamp(first, "Measured"), ""], {"quality.svg": _picture(study, cells, sizes)}


def _cells(row: str, records: list[Record], near_in: Collection[str] = ()) -> Iterator[Cell]:
    """Yield the cells of a row; or of neighbors in these tasks one a size, their mean."""
    for record in records:
        for size, found in record["sizes"].items():
            if near_in:
                shares = dict(zip(record["tasks"], map(float, found["neighbors"].split()), strict=False))
                near = mean(share for task, share in shares.items() if task in near_in)
                yield Cell(row, "", size, record["seed"], near, "")
                continue
            values = [float(value) for value in found["value"].split()]
            signs = found.get("ours", "").split() or [""] * len(values)
            for task, value, sign in zip(record["tasks"], values, signs, strict=True):
                yield Cell(row, task, size, record["seed"], value, sign)


def _table(cells: list[Cell], task: str, rows: list[str], sizes: list[str]) -> list[str]:
    """Return means over the samples, the best of a column in bold (raw and target rows left out)."""
    values: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        if cell.task == task:
            values.setdefault((cell.row, cell.size), []).append(cell.value)
    best = {
        size: max((mean(found) for (row, at), found in values.items() if at == size and _counts(row)), default=0.0)
        for size in sizes
    }
    lines = head("row", *(f">{size} B" for size in sizes))
    for row in rows:
        shown = []
        for size in sizes:
            found = values.get((row, size))
            said = f"{mean(found):.2f}" if found else ""
            shown.append(f"**{said}**" if found and _counts(row) and mean(found) >= best[size] - 0.005 else said)
        lines.append(line([row, *shown]))
    return lines


def _counts(row: str) -> bool:
    return row != "raw" and "target" not in row


def _verdicts(cells: list[Cell], peers: list[str]) -> list[str]:
    lines = head("peer | >better | >not separable | >worse | >better on the average | >not separable | >worse")
    for peer in ["raw", *peers]:
        counts = [
            Counter(cell.ours for cell in cells if cell.row == peer and (cell.task == _AVERAGE) == average)
            for average in (False, True)
        ]
        lines.append(line([peer, *(str(count[sign]) for count in counts for sign in _VERDICTS)]))
    return lines


def _worse(cells: list[Cell], peers: list[str], own: list[str], titles: dict[str, str]) -> list[str]:
    """Return every cell in which ours is separably worse than the peer that scored best there."""
    ours = {(cell.task, cell.size, cell.seed): cell.value for cell in cells if cell.row in own}
    best: dict[tuple[str, str, int], Cell] = {}
    for cell in cells:
        key = cell.task, cell.size, cell.seed
        if cell.task != _AVERAGE and cell.row in peers and (key not in best or cell.value > best[key].value):
            best[key] = cell
    lost: dict[tuple[str, str], list[Cell]] = {}
    for cell in best.values():
        if cell.ours == "-":
            lost.setdefault((cell.task, cell.size), []).append(cell)
    lines = head("task | >bytes | samples | best peer | >its score | >ours")
    for (task, size), found in lost.items():
        samples, names = (dict.fromkeys(values) for values in zip(*((str(c.seed), c.row) for c in found), strict=True))
        own_scores = [ours[task, size, cell.seed] for cell in found]
        shown = f"{mean(cell.value for cell in found):.2f}", f"{mean(own_scores):.2f}"
        lines.append(line([titles[task].split(",")[0], size, ", ".join(samples), "; ".join(names), *shown]))
    counted = Counter(cell.ours for cell in best.values())
    said = ", ".join(f"{counted[sign]} {verdict}" for sign, verdict in _VERDICTS.items())
    return [f"Of {len(best)} cells: {said}.", "", *(lines if lost else [])]


def _choices(records: list[Record], sizes: list[str]) -> list[str]:
    lines = head("bytes | chosen | >estimated loss | >bound | >neighbors kept | >bound")
    for size in sizes:
        kept = Counter(record["sizes"][size]["kept"] for record in records)
        promised = [_promised(record["sizes"][size]) for record in records]
        chosen = "; ".join(
            said if len(kept) == 1 else f"{said} ({count} of {len(records)})" for said, count in kept.items()
        )
        losses = (mean(getattr(one, name) for one in promised) for name in ("loss", "loss_bound"))
        near = (mean(getattr(one, name) for one in promised) for name in ("neighbors", "neighbors_bound"))
        lines.append(
            line([size, chosen, *(f"{loss:.2f}" for loss in losses), *(f"{100 * part:.1f} %" for part in near)])
        )
    return lines


def _promised(found: Record) -> Certificate:
    """Return what today's constants say of what was measured before any task was looked at."""
    changed = found["kept"].split(",")[0] in OTHER_SHAPES
    return Certificate.of(Measured(**found["measured"]), changed=changed)


def _certified(records: list[Record], dev: list[str]) -> list[str]:
    """Count how often what was said beforehand turned out true."""
    kept: dict[tuple[str, str], list[bool]] = {}
    for record in records:
        reference = record["reference"].split()
        for found in record["sizes"].values():
            promised = _promised(found)
            near = found["neighbors"].split()
            for place, (task, title) in enumerate(record["tasks"].items()):
                of = "dev" if task in dev else "test"
                loss = float(reference[place]) - float(found["value"].split()[place])
                if task != _AVERAGE:
                    what = "Spearman" if title.endswith("Spearman") else "another score"
                    kept.setdefault((f"loss of {what} at most the bound", of), []).append(loss <= promised.loss_bound)
                    true = float(near[place]) / 100 >= promised.neighbors_bound
                    kept.setdefault(("neighbors at least the bound", of), []).append(true)
    lines = head("promise | cells | >held | >of | >share")
    for (promise, of), found in sorted(kept.items()):
        said = "dev (constants chosen on them)" if of == "dev" else "test"
        lines.append(line([promise, said, str(sum(found)), str(len(found)), f"{100 * mean(found):.1f} %"]))
    return lines


def _picture(study: Any, cells: list[Cell], sizes: list[str]) -> str:
    """Draw the average against bytes."""
    figure, axes = plt.subplots(figsize=(7.0, 4.5), layout="constrained")
    for row in study.rows:
        values = {
            size: mean(found)
            for size in sizes
            if (
                found := [
                    cell.value for cell in cells if (cell.row, cell.task, cell.size) == (row.name, _AVERAGE, size)
                ]
            )
        }
        if values and not row.target:
            style: dict[str, Any] = {"linewidth": 1.2, "marker": "o", "markersize": 3}
            style |= {"color": "black", "linewidth": 2.5} if row.method == "ours" else {}
            style |= {"color": "gray", "linestyle": ":", "marker": ""} if row.method == "raw" else {}
            axes.plot([int(size) for size in values], list(values.values()), label=row.name, **style)
    axes.set_xscale("log")
    axes.set_xticks([int(size) for size in sizes], sizes)
    axes.minorticks_off()
    axes.set_xlabel("bytes of a vector")
    axes.set_ylabel("average Spearman x 100")
    axes.set_title(study.title)
    axes.legend(fontsize=7, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return svg(figure, "compression")


_TABLE = (
    "Mean over the samples of fit texts (OPQ and target rows: one); the best of a column in bold. A row has the most "
    "dimensions that fit into the bytes; more bytes than its numbers need change nothing. Raw is larger than most "
    "columns."
)
_VERDICT_TEXT = (
    "Cells are task x size x sample; the verdict is that of the paired bootstrap (300 resamples, 95 %, not corrected "
    "for their number: of equals one in forty is called better, and one worse). On the right the average of the STS "
    "tasks."
)
_WORSE = "The best peer of a cell is known after the fact only: no user has it."
_CHOICE = "Loss in points of Spearman, means over the samples; all of it is said before any task is looked at."
_CERTIFICATE = (
    "Loss and neighbors are counted from the similarities that ours keeps, which are the model's own unless its shape "
    "is whitened. What is promised is Spearman; other scores are shown beside it."
)
_NEIGHBORS = (
    "Percent of the ten nearest neighbors among up to 1,000 texts of a task that are the same, mean over tasks: of "
    "peers those of the raw vectors, of ours those of its own shape in all dimensions (for a trained model, the raw "
    "ones)."
)
