"""The gate held against the truth: fitted on all domains but one, judged on that one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from evaluation.engine.study import Record
from st_plugins.adaptation.race.entries import GIVEN, entries
from st_plugins.adaptation.race.gate import Rule

_WANTED = 0.01
# Translations of one set are one domain: a gate that knew the one would know the other.
_SAME = {"stsb-zh": "stsb"}
# The other numbers are conventions: two standard errors, and no rise of the uniformity.
_NEIGHBORS = (0.0, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_ENTRIES = {entry.name: entry for entry in entries(adapters=True)}


@dataclass(frozen=True)
class Cell:
    """A model in a domain, with one seed: what each entry gained, and what was seen of it."""

    recipe: str
    domain: str
    seed: int
    records: Mapping[str, Record]

    @property
    def kin(self) -> str:
        """The domain, under which translations are one."""
        return _SAME.get(self.domain, self.domain)


@dataclass(frozen=True)
class Choice:
    """What the gate took in a cell, beside what was best."""

    recipe: str
    domain: str
    seed: int
    chosen: str
    record: Record | None
    best: str
    best_record: Record

    @property
    def gain(self) -> float:
        """What is gained by what is returned."""
        return 0.0 if self.record is None else float(self.record["gain"])

    @property
    def wanted(self) -> bool:
        """Whether there was a clear gain to take."""
        return bool(self.best_record["verdict"] == "better" and self.best_record["gain"] >= _WANTED)

    @property
    def right(self) -> bool:
        """Whether nothing separably worse was returned, and a separable gain where a clear one was to be had."""
        verdict = "" if self.record is None else self.record["verdict"]
        return bool(verdict == "better" if self.wanted else verdict != "worse")


def cells_of(everywhere: Mapping[str, Iterable[Record]]) -> list[Cell]:
    """Return the cells of all recipes, of entries that ran."""
    found: dict[tuple[str, str, int], dict[str, Record]] = {}
    for recipe, records in everywhere.items():
        for record in records:
            if "seen" in record:
                found.setdefault((recipe, record["task"], record["seed"]), {})[record["row"]["name"]] = record
    return [Cell(*key, records) for key, records in found.items()]


def choice(cell: Cell, rule: Rule) -> Choice:
    """Return what a rule takes in a cell."""
    scores = {name: rule.score(record["seen"], _ENTRIES[name]) for name, record in cell.records.items()}
    first = max(scores, key=lambda name: scores[name])
    chosen = first if scores[first] > 0 else GIVEN
    best = max(cell.records, key=lambda name: float(cell.records[name]["gain"]))
    return Choice(cell.recipe, cell.domain, cell.seed, chosen, cell.records.get(chosen), best, cell.records[best])


def fitted(cells: Sequence[Cell]) -> Rule:
    """Return the rule of a grid that is most often right, then gains most; of equal ones that in their middle."""

    def worth(rule: Rule) -> tuple[int, float]:
        made = [choice(cell, rule) for cell in cells]
        return sum(one.right for one in made), round(sum(one.gain for one in made), 6)

    rules = [Rule(neighbors=neighbors) for neighbors in _NEIGHBORS]
    worths = [worth(rule) for rule in rules]
    best = [rule for rule, found in zip(rules, worths, strict=True) if found == max(worths)]
    return best[len(best) // 2]


def choices(cells: Sequence[Cell]) -> list[Choice]:
    """Return what the gate takes in each cell, its rule fitted on the other domains."""
    kins = list(dict.fromkeys(cell.kin for cell in cells))
    rules = {kin: fitted([cell for cell in cells if cell.kin != kin]) for kin in kins} if len(kins) > 1 else {}
    return [choice(cell, rules[cell.kin]) for cell in cells if cell.kin in rules]
