"""One page for the whole family: every method of the library, what it scores, and what it costs."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from evaluation.engine.pair_tables import main_table as pair_table
from evaluation.engine.runner import load_results, load_seeds
from evaluation.engine.study import Page, Record, Results, by_row, read_study, stamp
from evaluation.engine.tables import bounds, head, line, mean, section, spread, svg
from evaluation.studies.contrastive import study
from evaluation.studies.contrastive.tables import above, chosen, main_table, row_name
from evaluation.studies.self_explaining.tables import accuracy_table

_PAIR_SETS = [("snli", "snli"), ("qqp", "qqp"), ("mrpc", "mrpc"), ("rte", "rte-dev")]
_KINDS = {"none": "not trained", "labels": "trained with labels", "texts": "trained without labels"}
# The other studies' folders, from the one of this study's recipes or results.
_VIRT, _RE2, _CLASSES = "../../virt", "../../re2", "../../self_explaining"
_COSTS = "../../../benchmarks/results/family_cost.json"


@dataclass(frozen=True)
class _Method:
    """One method of the embeddings' table, a seed each."""

    name: str  # with what was fitted afterwards
    kind: str  # key of _KINDS
    scores: list[Record]
    training: list[float]  # seconds
    fitting: list[float]  # seconds
    cost: Record  # what the benchmark says of it; empty if it has not been run

    @property
    def value(self) -> float:
        """The mean score over the seeds, times 100."""
        return 100 * mean(found["average"][0] for found in self.scores)


class Study(study.Study):
    """A recipe of the training study, with a page of its own."""

    def page(self, results: Results, folder: Path) -> Page:
        """Return the page."""
        found = by_row(results)
        first, recipes, root = next(iter(found.values()))[0], self.path.parent, folder.parent
        benchmark = root / _COSTS
        costs: Record = {"encoders": {}, "pairs": {}}
        if benchmark.is_file():
            costs = json.loads(benchmark.read_text(encoding="utf-8"))
        methods = self.methods(found, costs["encoders"])
        page = [f"# {self.title}", "", self.notes, ""]
        page += section("Sentence vectors", _EMBEDDINGS_TEXT, _embeddings_table(methods))
        if methods:
            raw, whitened = methods[0].scores[0]["floor"]
            page += [f"The floor: {100 * raw:.2f} raw, {100 * whitened:.2f} whitened on the same corpus sample.", ""]
        picture = _picture(methods, self.title)
        page += ["![Score against cost](cost.svg)", ""] if picture else []
        page += section("Models of pairs", _PAIRS_TEXT, _pairs_table(recipes, root))
        page += _pair_costs(costs["pairs"])
        name = "sst5-mini-bert-en"
        classification = read_study(recipes / f"{_CLASSES}/recipes/{name}.toml")
        classified = load_results(classification, root / f"{_CLASSES}/results/{name}")
        accuracies = accuracy_table(classification, by_row(classified))
        page += section("Classification", _CLASSES_TEXT, accuracies)
        own = "../../../label_token/results/qqp/table.md"
        page += ["## Without readable text", "", f"In the table of [its own study]({own}).", ""]
        page += ["## The tasks one by one", "", *main_table(self, found), "", stamp(first), ""]
        if "versions" in costs:
            page += [stamp({**costs, "device": first["device"]}, "Costs measured"), ""]
        return page, {"cost.svg": picture} if picture else {}

    def methods(self, results: dict[str, list[Record]], costs: Record) -> list[_Method]:
        """Collect the methods of the embeddings' table, in the recipe's order."""
        methods = []
        for name, seeds in results.items():
            row = self.find(name)
            kind = "none" if row.method == "none" else "labels" if self.uses_labels(row) else "texts"
            for form in ("plain", *row.after):
                scored = [(result, scores) for result in seeds if (scores := chosen(result, "dev", form, "test"))]
                training = [result["seconds_training"] for result, _ in scored]
                fitting = [result["seconds_after"].get(form, 0.0) for result, _ in scored]
                title = row_name(name, form)
                if scored:
                    found = [scores for _, scores in scored]
                    methods.append(_Method(title, kind, found, training, fitting, costs.get(title, {})))
        return methods


def _embeddings_table(methods: list[_Method]) -> list[str]:
    """Return the table of the methods that make sentence vectors."""
    score = ">Avg. | 95 % interval (seed 0) | above the floor | above the whitened floor"
    cost = ">training s | >fitting s | >parameters | >dim | >cost"
    table = head(">no. | method | >seeds", score, cost)
    kind = ""
    for number, method in enumerate(methods, 1):
        if method.kind != kind:
            kind = method.kind
            table.append(f"| | **{_KINDS[kind]}** |" + " |" * 10)
        scores, known = method.scores, method.cost
        cells = [str(number), method.name, str(len(scores))]
        cells.append(f"**{spread([found['average'][0] for found in scores])}**")
        cells += [bounds(*scores[0]["average"][1:]), above(scores, "above_raw"), above(scores, "above_whitened")]
        cells += [
            f"{statistics.median(seconds):.0f}" if any(seconds) else ""
            for seconds in (method.training, method.fitting)
        ]
        if known:
            cells += [f"{known['parameters']:,}", str(known["dimension"]), f"{known['times_the_first']:.2f}"]
        table.append(line([*cells, *([] if known else [""] * 3)]))
    return table


def _pairs_table(recipes: Path, root: Path) -> list[str]:
    """Return the scores of the rows of the studies of pairs."""
    virt = read_study(recipes / f"{_VIRT}/recipes/virt-mini-bert-en.toml")
    re2 = read_study(recipes / f"{_RE2}/recipes/re2.toml")
    found = load_results(re2, root / f"{_RE2}/results/re2")
    names = [row.name for row in virt.rows if not row.grid]
    for name in names:
        for task, _ in _PAIR_SETS:
            # VIRT trains on SNLI and MultiNLI together.
            theirs = "nli" if task == "snli" else task
            found[task, name] = load_seeds(root / f"{_VIRT}/results/virt-mini-bert-en", theirs, name)
    return pair_table([*names, *(row.name for row in re2.main)], _PAIR_SETS, found)


def _pair_costs(costs: Record) -> list[str]:
    """Return what scoring a pair costs; nothing if it has not been measured."""
    if not costs:
        return []
    table = head("row | >pairs a second | >times the cross-encoder | >parameters")
    for name, cost in costs.items():
        numbers = (f"{cost['pairs_a_second']:.0f}", f"{cost['times_the_first']:.1f}", f"{cost['parameters']:,}")
        table.append(line([name, *numbers]))
    return [*table, ""]


def _picture(methods: list[_Method], title: str) -> str:
    """Draw score against cost, with the numbers of the table; nothing if no cost is known."""
    shown = [(number, method) for number, method in enumerate(methods, 1) if method.cost]
    if not shown:
        return ""
    figure, axes = plt.subplots(figsize=(9.0, 7.0), layout="constrained")
    # Most methods cost as much as the encoder alone: the kinds' numbers stand on different sides of their points.
    styles = (("o", "C0", 5, "left"), ("s", "C3", -5, "right"), ("^", "C2", 20, "left"))
    for kind, (marker, color, right, side) in zip(_KINDS, styles, strict=True):
        points = [(number, method) for number, method in shown if method.kind == kind]
        places = [method.cost["times_the_first"] for _, method in points], [method.value for _, method in points]
        axes.scatter(*places, marker=marker, color=color, label=_KINDS[kind], zorder=2)
        for (number, _), x, y in zip(points, *places, strict=True):
            text: Any = {"xytext": (right, 0), "textcoords": "offset points", "ha": side, "va": "center"}
            axes.annotate(str(number), (x, y), fontsize=7, color=color, **text)
    for floor, name in zip(shown[0][1].scores[0]["floor"], ("floor", "floor, whitened"), strict=True):
        axes.axhline(100 * floor, color="grey", linestyle=":", zorder=1)
        axes.annotate(name, (0.6, 100 * floor), xycoords=("axes fraction", "data"), color="grey", va="bottom")
    axes.set_xscale("log")
    axes.set_xlabel(f"seconds a text, as a multiple of “{methods[0].name}”")
    axes.set_ylabel("Spearman x 100, average of the STS tasks")
    axes.legend(loc="lower center")
    return svg(figure, title)


_EMBEDDINGS_TEXT = (
    "Spearman x 100, convention 'all', average of the seven English STS tasks: mean and standard deviation over "
    "seeds, and the 95 % bootstrap interval over the pairs. Every row has the same encoder and, within its part, the "
    "same number of batches to learn from; its last checkpoint is scored. The floor is a bag of random token vectors "
    "with the row's tokenizer and dimension, raw, and whitened on the same corpus sample; differences are paired. "
    "Seconds are of one core of the processor, evaluation on dev among the training's. Parameters count what a module "
    "keeps in buffers, too. Cost is the time to encode a text, as a multiple of the first row's."
)
_PAIRS_TEXT = (
    "From the studies of [VIRT](../../../virt/results/virt-mini-bert-en/table.md) and "
    "[RE2](../../../re2/results/re2/table.md), where differences, dev "
    "sets and budgets are: accuracy x 100, mean and standard deviation over seeds, 95 % interval over the pairs. The "
    "speed is that of pairs whose texts have all to be read; where one side is kept, as in search, Siamese rows (VIRT "
    "is one when it serves) and the adapted interaction need to read the query alone."
)
_CLASSES_TEXT = (
    "From the study of [Self-Explaining pooling](../../../self_explaining/results/sst5-mini-bert-en/table.md): SST-5, "
    "accuracy in percent, the same encoder and budget for all rows."
)
