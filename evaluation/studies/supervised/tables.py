"""The tables of the supervised study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evaluation.engine.pair_tables import Scores, cell, verdicts
from evaluation.engine.study import Record, stamp
from evaluation.engine.tables import head, line, mean, section, spread

if TYPE_CHECKING:
    from evaluation.studies.supervised.study import Study

Found = dict[str, list[Record]]
"""Records by row, a seed each."""
_AVERAGE = "average"
INTRODUCTION = (
    "Spearman x 100 of the cosine, convention 'all', on {what}: mean and standard deviation over seeds; of the "
    "average of reported sets also the 95 % bootstrap interval over pairs. Settings were chosen on dev, which has no "
    "pair of a reported set. What each row has read is in the table of the data."
)
DIFFERENCES = (
    "Paired on the same pairs and resamples, means over seeds, corrected for the columns of a line (Holm). The "
    "verdict tells of other pairs, not of other seeds."
)
DATA = (
    "Pairs or texts of each source: how many were taken, of those that no reported set has, of all; of what is "
    "learned by in-batch negatives only the pairs of one meaning count. Seconds are of one core; those of the first "
    "row that reads a source have its way through the frozen layers in them."
)
PAPER = "Other encoders, other data: published averages over the same seven tasks."


def form_name(share: float) -> str:
    """Name what is between the given and the trained weights."""
    return "" if share == 1.0 else f"{share:g} of the way"


def _title(row: str, form: str) -> str:
    return f"{row}, {form}" if form else row


def _lines(results: Found) -> dict[str, Found]:
    """Return the lines of the tables, each with its scores on dev and reported sets, a seed each."""
    found: dict[str, Found] = {}
    for name, records in results.items():
        for form in records[0]["forms"]:
            scored = [record["forms"][form] for record in records if form in record["forms"]]
            found[_title(name, form)] = {
                split: [one[split] for one in scored if split in one] for split in ("dev", "tests")
            }
    return found


def page(study: Study, results: Found) -> list[str]:
    """Return the page."""
    lines = _lines(results)
    shown = "tests" if all(found["tests"] for found in lines.values()) else "dev"
    what = "the reported sets" if shown == "tests" else "dev alone"
    page = [f"# {study.title}", "", INTRODUCTION.format(what=what), "", *_main_table(lines, shown), ""]
    missing = [row.name for row in study.rows if row.name not in results]
    page += [f"Not measured yet, for want of time: {', '.join(missing)}.", ""] if missing else []
    if shown == "tests":
        for base in dict.fromkeys([next(iter(lines)), study.base]):
            if base in lines:
                page += section(f"Above “{base}”", DIFFERENCES, _difference_table(lines, base))
    page += section("Data", DATA, _data_table(study, results))
    if study.paper:
        reported = [line([name, said["encoder"], f"{said['value']:.2f}"]) for name, said in study.paper.items()]
        page += section("Published", PAPER, [*head("what | encoder | >average"), *reported])
    first = next(iter(results.values()))[0]
    return [*page, study.notes, "", stamp(first), ""]


def _scores(found: Found, split: str, name: str) -> Scores:
    return [scored[name] for scored in found[split]]


def _main_table(lines: dict[str, Found], shown: str) -> list[str]:
    names = [name for name in next(iter(lines.values()))[shown][0] if name != _AVERAGE]
    table = head("row | >seeds | >dev", *(f">{name.upper()}" for name in names), ">average")
    for title, found in lines.items():
        cells = [title, str(len(found["dev"])), _spread(_scores(found, "dev", _AVERAGE))]
        cells += [f"{100 * mean(one['value'][0] for one in _scores(found, shown, name)):.2f}" for name in names]
        averages = _scores(found, shown, _AVERAGE)
        table.append(line([*cells, cell(averages) if shown == "tests" else _spread(averages)]))
    return table


def _spread(scores: Scores) -> str:
    return spread([found["value"][0] for found in scores])


def _difference_table(lines: dict[str, Found], base: str) -> list[str]:
    names = list(lines[base]["tests"][0])
    table = head("row", *(name if name == _AVERAGE else name.upper() for name in names))
    for title, found in lines.items():
        if title != base:
            sides = {name: (_scores(found, "tests", name), _scores(lines[base], "tests", name)) for name in names}
            judged = verdicts(sides)
            table.append(line([title, *(judged[name] for name in names)]))
    return table


def _data_table(study: Study, results: Found) -> list[str]:
    table = head("row | learns | >seconds | layers trained | sources: taken, of those without overlap, of all")
    for name, records in results.items():
        row, sources = records[0]["row"], records[0]["data"]
        counts = []
        for key, found in sources.items():
            kept = found["read"] - found["dropped"]
            counts.append(f"{key}: {min(study.data[key].size or kept, kept)} of {kept} of {found['read']}")
        learns = ", ".join(f"{key} by {loss}" for key, loss in row["learns"].items())
        seconds = mean(record["seconds_training"] for record in records)
        layers = "" if not sources else f"all but {row['frozen']}" if row["frozen"] else "all"
        table.append(line([name, learns, f"{seconds:.0f}", layers, "; ".join(counts)]))
    return table
