"""The page: what each entry gains in each domain, what was seen without labels, and the gate against the truth."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from evaluation.engine.study import Page, Record, Results, stamp
from evaluation.engine.tables import bounds, head, line, mean, section
from evaluation.studies.adapt.gate import Choice, cells_of, choices, fitted
from st_plugins.adaptation.race.entries import GIVEN

_MARKS = {"better": "**", "worse": "_"}


def page(study: Any, results: Results, folder: Path) -> Page:
    """Return the page."""
    records = {key: found[0] for key, found in results.items()}
    domains = [domain for domain in study.domains if any(task == domain for task, _ in records)]
    names = [row.name for row in study.rows if any(row.name == name for _, name in records)]
    everywhere = _everywhere(folder)
    cells = cells_of(everywhere)
    made = choices(cells)
    own = [one for one in made if one.recipe == folder.name]
    first_seed = study.seeds[0]
    lines = [f"# {study.title}", "", study.notes, ""]
    lines += section("Gains", _GAINS, _gains(records, domains, names))
    lines += section("Each way over the domains", _WAYS, _ways(records, domains, names))
    if own:
        lines += section("The gate", _GATE, _gate([one for one in own if one.seed == first_seed], records))
        if more := {one.seed for one in own} - {first_seed}:
            lines += section("More seeds", _SEEDS, _seeds(own, results, [first_seed, *sorted(more)]))
        rule = fitted(cells)
        shipped = f"Fitted on all cells: {100 * rule.neighbors:g} % of the neighbors have to stay."
        lines += section("The gate over all recipes", f"{_OVER} {shipped}", _over(made))
    lines += section("What is seen without labels", _SEEN, _seen(records, domains, names))
    first = next(iter(records.values()))
    return [*lines, stamp(first, "Measured"), ""], {}


def _everywhere(folder: Path) -> dict[str, list[Record]]:
    """Return the records of all recipes, whose domains the gate is fitted on."""
    found = {}
    for one in sorted(path for path in folder.parent.iterdir() if path.is_dir()):
        records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(one.glob("*.json"))]
        if records:
            found[one.name] = records
    return found


def _gains(records: dict[tuple[str, str], Record], domains: Sequence[str], names: Sequence[str]) -> Iterable[str]:
    titles = []
    for domain in domains:
        record = next(record for (task, _), record in records.items() if task == domain)
        titles.append(f">{record['title']}, {record['metric']}")
    yield from head("way", *titles)
    given = {task: record["given"] for (task, _), record in records.items()}
    yield line(["_as it is_", *(f"{100 * given[domain]:.2f}" for domain in domains)])
    for name in names:
        if name != GIVEN:
            yield line([name, *(_gain(records.get((domain, name))) for domain in domains)])


def _gain(record: Record | None) -> str:
    if record is None:
        return ""
    if "out" in record:
        return "out"
    mark = _MARKS.get(record["verdict"], "")
    return f"{mark}{100 * record['gain']:+.2f}{mark} {bounds(record['low'], record['high'], '+')}"


def _ways(records: dict[tuple[str, str], Record], domains: Sequence[str], names: Sequence[str]) -> Iterable[str]:
    yield from head("way | >domains | >mean gain | >better | >worse | >worst | >seconds of training")
    for name in names:
        found = [records[domain, name] for domain in domains if (domain, name) in records]
        found = [record for record in found if "gain" in record]
        if found:
            verdicts = [record["verdict"] for record in found]
            yield line(
                [
                    name,
                    str(len(found)),
                    f"{100 * mean(record['gain'] for record in found):+.2f}",
                    str(verdicts.count("better")),
                    str(verdicts.count("worse")),
                    f"{100 * min(record['gain'] for record in found):+.2f}",
                    f"{mean(record['training_seconds'] for record in found):.0f}",
                ]
            )


def _gate(made: list[Choice], records: dict[tuple[str, str], Record]) -> Iterable[str]:
    yield from head("domain | best in the race | >its gain | the gate took | >gain | right")
    for one in made:
        title = next(record["title"] for (task, _), record in records.items() if task == one.domain)
        taken = "0" if one.record is None else _gain(one.record)
        yield line([title, one.best, _gain(one.best_record), one.chosen, taken, "yes" if one.right else "**no**"])


def _seeds(own: list[Choice], results: Results, seeds: Sequence[int]) -> Iterable[str]:
    yield from head("domain | way | " + " | ".join(f">seed {seed}" for seed in seeds) + " | mean")
    taken = {(one.domain, one.seed): one.chosen for one in own}
    for (domain, name), found in results.items():
        of_seed = {record["seed"]: record for record in found if "gain" in record}
        if len(of_seed) > 1 and name != GIVEN:
            cells = []
            for seed in seeds:
                mark = " (taken)" if taken.get((domain, seed)) == name else ""
                cells.append(f"{100 * of_seed[seed]['gain']:+.2f}{mark}" if seed in of_seed else "")
            average = f"{100 * mean(record['gain'] for record in of_seed.values()):+.2f}"
            yield line([found[0]["title"], name, *cells, average])


def _over(made: list[Choice]) -> Iterable[str]:
    yield from head("recipe | >cells | >right | >took | >mean gain | >worst | >best possible")
    recipes = dict.fromkeys(one.recipe for one in made)
    groups = {recipe: [one for one in made if one.recipe == recipe] for recipe in recipes}
    for name, group in [*groups.items(), ("**all**", made)]:
        possible = [max(float(one.best_record["gain"]), 0.0) for one in group]
        yield line(
            [
                name,
                str(len(group)),
                f"{100 * mean(one.right for one in group):.0f} %",
                str(sum(one.record is not None for one in group)),
                f"{100 * mean(one.gain for one in group):+.2f}",
                f"{100 * min(one.gain for one in group):+.2f}",
                f"{100 * mean(possible):+.2f}",
            ]
        )


def _seen(records: dict[tuple[str, str], Record], domains: Sequence[str], names: Sequence[str]) -> Iterable[str]:
    yield from head("domain | way | >gain | >copies | >parts | >correlation | >neighbors | >uniformity | >alike")
    for domain in domains:
        for name in names:
            record = records.get((domain, name))
            if record is not None and "seen" in record:
                seen = record["seen"]
                parts = f"{100 * seen['parts']:+.1f} ± {200 * seen['parts_error']:.1f}" if "parts" in seen else ""
                yield line(
                    [
                        record["title"],
                        name,
                        f"{100 * record['gain']:+.2f}",
                        f"{100 * seen['copies']:+.1f} ± {200 * seen['copies_error']:.1f}",
                        parts,
                        f"{seen['correlation']:.3f}",
                        f"{seen['neighbors']:.2f}",
                        f"{seen['uniformity']:+.2f}",
                        f"{seen['alike']:+.3f}",
                    ]
                )


_GAINS = (
    "Differences to the model as it is on the labelled test, which no training saw, times 100, with 95 % bootstrap "
    "intervals; bold: separably better, italics: separably worse (not corrected for their number)."
)
_WAYS = "Over the domains in which a way was tried. Seconds are of training, with other work on the machine."
_GATE = (
    "What the gate of `adapt` decides in each domain, its constants fitted on the other domains of all recipes. "
    "Right: what it returns is not separably worse than the given model, and separably better where a way in the race "
    "gains 1 point or more, separably."
)
_SEEDS = (
    "The ways that the gate may take, trained with other seeds on other texts held out; only these were tried again. "
    "Of one seed the intervals above tell how far other test data would differ, not other trainings."
)
_OVER = (
    "All seeds. Gains of what is returned, 0 for the unchanged model. The last column is what a gate that knew the "
    "test would gain."
)
_SEEN = (
    "On 500 texts of the domain that no training saw: how much more surely copies of a text with half of its words, "
    "and its parts, find each other (± two standard errors); how much of the similarities and neighbors stays; "
    "changes of uniformity and of the mean cosine."
)
