r"""One page for the whole family: every method of the library, what it scores, and what it costs.

It joins the JSON results of the family's own recipe, of the studies of pairs (VIRT, RE2), of classification and of
anonymised pairs, and of the benchmark ``family_cost.py``; what has not been run is left out::

    python -m evaluation.run evaluation/recipes/family/family.toml --models MODELS --data DATA
    python -m evaluation.benchmarks.family_cost evaluation/recipes/family/family.toml --models MODELS --data DATA \
        --output evaluation/results/benchmarks/family_cost.json
    python -m evaluation.family_table evaluation/recipes/family/family.toml
"""

from __future__ import annotations

import io
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import typer

from evaluation.classification_recipe import read_study as read_classification
from evaluation.classification_table import accuracy_table
from evaluation.classification_table import load_results as load_classification
from evaluation.ledger import chosen, load_results, main_table, row_name, spread
from evaluation.pair_ledger import main_table as pair_table
from evaluation.pair_results import Results, load_seeds
from evaluation.pair_results import load_results as load_pairs
from evaluation.re2_recipe import read_study as read_re2
from evaluation.recipe import Study, read_study
from evaluation.virt_recipe import read_study as read_virt
from st_plugins.core.writing.atomic import write_text

__all__ = ["main"]

PAIR_SETS = [("snli", "snli"), ("qqp", "qqp"), ("mrpc", "mrpc"), ("rte", "rte-dev")]
VIRT, RE2 = "virt/virt-mini-bert-en.toml", "re2/re2.toml"
CLASSIFICATION, ANONYMISED = "self-explaining/sst5-mini-bert-en.toml", "anonymised"
KINDS = {"none": "not trained", "labels": "trained with labels", "texts": "trained without labels"}


@dataclass(frozen=True)
class Line:
    """One method of the embeddings' table.

    Args:
        name: Its name, with what was fitted afterwards.
        kind: Key of ``KINDS``.
        scores: What was measured, a seed each.
        training: Seconds of training, a seed each.
        fitting: Seconds of fitting afterwards, a seed each.
        cost: What the benchmark says of it; empty if it has not been run.
    """

    name: str
    kind: str
    scores: list[dict[str, Any]]
    training: list[float]
    fitting: list[float]
    cost: dict[str, Any]

    @property
    def value(self) -> float:
        """The mean score over the seeds, times 100."""
        return 100 * float(statistics.mean(found["average"][0] for found in self.scores))


def lines_of(study: Study, results: dict[str, list[dict[str, Any]]], costs: dict[str, Any]) -> list[Line]:
    """Collect the methods of the embeddings' table, in the recipe's order.

    Args:
        study: The family's recipe.
        results: Its results by run.
        costs: The benchmark's numbers by row.

    Returns:
        The lines.
    """
    lines = []
    for name, seeds in results.items():
        run = study.find(name)
        kind = "none" if run.method == "none" else "labels" if study.uses_labels(run) else "texts"
        for form in ("plain", *run.after):
            scored = [(result, scores) for result in seeds if (scores := chosen(result, "dev", form, "test"))]
            training = [result["seconds_training"] for result, _ in scored]
            fitting = [result["seconds_after"].get(form, 0.0) for result, _ in scored]
            title = row_name(name, form)
            if scored:
                found = [scores for _, scores in scored]
                lines.append(Line(title, kind, found, training, fitting, costs.get(title, {})))
    return lines


def embeddings_table(lines: list[Line]) -> list[str]:
    """Return the table of the methods that make sentence vectors.

    Args:
        lines: The methods.

    Returns:
        Markdown lines.
    """
    table = [
        "| no. | method | seeds | Avg. | 95 % interval (seed 0) | above the floor | above the whitened floor "
        "| training s | fitting s | parameters | dim | cost |",
        "| ---: | --- | ---: | ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    kind = ""
    for number, line in enumerate(lines, 1):
        if line.kind != kind:
            kind = line.kind
            table.append(f"| | **{KINDS[kind]}** |" + " |" * 10)
        first = line.scores[0]
        cells = [str(number), line.name, str(len(line.scores))]
        cells.append(f"**{spread([found['average'][0] for found in line.scores])}**")
        cells.append("[{:.1f}, {:.1f}]".format(*(100 * bound for bound in first["average"][1:])))
        for floor in ("above_raw", "above_whitened"):
            verdicts = " / ".join(sorted({found[floor]["verdict"] for found in line.scores}))
            cells.append(f"{spread([found[floor]['value'] for found in line.scores], sign=True)} {verdicts}")
        cells += [
            f"{statistics.median(seconds):.0f}" if any(seconds) else "" for seconds in (line.training, line.fitting)
        ]
        cost = line.cost
        cells += [f"{cost['parameters']:,}", str(cost["dimension"])] if cost else ["", ""]
        cells.append(f"{cost['times_the_first']:.2f}" if cost else "")
        table.append("| " + " | ".join(cells) + " |")
    return table


def pair_results(recipes: Path, folder: Path) -> tuple[list[str], Results]:
    """Read the rows of the studies of pairs.

    Args:
        recipes: Folder of the recipes.
        folder: Folder of the results.

    Returns:
        Names of the rows, and the results by task (as in ``PAIR_SETS``) and row.
    """
    virt, re2 = read_virt(recipes / VIRT), read_re2(recipes / RE2)
    found: Results = load_pairs(re2, folder / Path(RE2).stem)
    names = [row.name for row in virt.rows if not row.grid]
    for name in names:
        for task, _ in PAIR_SETS:
            seeds = load_seeds(folder / Path(VIRT).stem, "nli" if task == "snli" else task, name)
            if seeds:
                found[task, name] = seeds
    return names + [row.name for row in re2.rows if not row.ablation], found


def pair_costs(costs: dict[str, Any]) -> list[str]:
    """Return what scoring a pair costs.

    Args:
        costs: The benchmark's numbers by row.

    Returns:
        Markdown lines; none if it has not been run.
    """
    if not costs:
        return []
    table = ["| row | pairs a second | times the cross-encoder | parameters |", "| --- | ---: | ---: | ---: |"]
    for name, cost in costs.items():
        ratio = f"{cost['times_the_first']:.1f}"
        table.append(f"| {name} | {cost['pairs_a_second']:.0f} | {ratio} | {cost['parameters']:,} |")
    return [*table, ""]


def picture(lines: list[Line], title: str) -> str | None:
    """Draw score against cost; the numbers are those of the table.

    Args:
        lines: The methods.
        title: What makes the file's ids.

    Returns:
        SVG, or None if the cost of nothing is known.
    """
    shown = [(number, line) for number, line in enumerate(lines, 1) if line.cost]
    if not shown:
        return None
    figure, axes = plt.subplots(figsize=(9.0, 7.0), layout="constrained")
    # Most methods cost as much as the encoder alone: the kinds' numbers stand on different sides of their points.
    styles = (("o", "C0", 5, "left"), ("s", "C3", -5, "right"), ("^", "C2", 20, "left"))
    for kind, (marker, colour, right, side) in zip(KINDS, styles, strict=True):
        points = [(number, line) for number, line in shown if line.kind == kind]
        places = [line.cost["times_the_first"] for _, line in points], [line.value for _, line in points]
        axes.scatter(*places, marker=marker, color=colour, label=KINDS[kind], zorder=2)
        for (number, _), x, y in zip(points, *places, strict=True):
            axes.annotate(
                str(number),
                (x, y),
                xytext=(right, 0),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=7,
                color=colour,
            )
    for floor, name in zip(shown[0][1].scores[0]["floor"], ("floor", "floor, whitened"), strict=True):
        axes.axhline(100 * floor, color="grey", linestyle=":", zorder=1)
        axes.annotate(name, (0.6, 100 * floor), xycoords=("axes fraction", "data"), color="grey", va="bottom")
    axes.set_xscale("log")
    axes.set_xlabel(f"seconds a text, as a multiple of “{lines[0].name}”")
    axes.set_ylabel("Spearman x 100, average of the STS tasks")
    axes.legend(loc="lower center")
    text = io.StringIO()
    # No date and fixed ids: the same results give the same file.
    with plt.rc_context({"svg.hashsalt": title}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()


def main(
    recipe: Annotated[Path, typer.Argument(help="The family's recipe, beside those of the other studies.")],
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("evaluation/results"),
) -> None:
    """Write RESULTS/<recipe>/table.md and, where costs have been measured, cost.svg."""
    study = read_study(recipe)
    folder, recipes = results / recipe.stem, recipe.parent.parent
    found = load_results(study, folder)
    if not found:
        raise typer.BadParameter(f"{folder} holds no result of {recipe.name}; run evaluation/run.py first")
    benchmark = results / "benchmarks" / "family_cost.json"
    costs = json.loads(benchmark.read_text(encoding="utf-8")) if benchmark.is_file() else {"encoders": {}, "pairs": {}}
    lines = lines_of(study, found, costs["encoders"])
    page = [f"# {study.title}", "", study.notes.strip(), "", "## Sentence vectors", "", _EMBEDDINGS, ""]
    page += [*embeddings_table(lines), ""]
    if lines:
        raw, whitened = lines[0].scores[0]["floor"]
        page += [f"The floor: {100 * raw:.2f} raw, {100 * whitened:.2f} whitened on the same corpus sample.", ""]
    drawn = picture(lines, study.title)
    if drawn is not None:
        write_text(folder / "cost.svg", drawn)
        page += ["![Score against cost](cost.svg)", ""]
    rows, pairs = pair_results(recipes, results)
    page += [
        "## Models of pairs",
        "",
        _PAIRS,
        "",
        *pair_table(rows, PAIR_SETS, pairs),
        "",
        *pair_costs(costs["pairs"]),
    ]
    classification = read_classification(recipes / CLASSIFICATION)
    classified = load_classification(classification, results / Path(CLASSIFICATION).stem)
    page += ["## Classification", "", _CLASSES, "", *accuracy_table(classification, classified), ""]
    page += ["## Without readable text", "", f"In the table of [its own study](../{ANONYMISED}/table.md).", ""]
    page += ["## The tasks one by one", "", *main_table(study, found), ""]
    first = next(iter(found.values()))[0]
    for what, versions in (("Trained", first["versions"]), ("Costs measured", costs.get("versions"))):
        if versions:
            page += [
                f"{what} on: {first['device']}. " + ", ".join(f"{key} {v}" for key, v in versions.items()) + ".",
                "",
            ]
    write_text(folder / "table.md", "\n".join(page))
    typer.echo(f"wrote {folder / 'table.md'}")


_EMBEDDINGS = (
    "Spearman x 100, convention 'all', average of the seven English STS tasks: mean and standard deviation over "
    "seeds, and the 95 % bootstrap interval over the pairs. Every row has the same encoder and, within its part, the "
    "same number of batches to learn from; its last checkpoint is scored. The floor is a bag of random token vectors "
    "with the row's tokenizer and dimension, raw, and whitened on the same corpus sample; differences are paired. "
    "Seconds are of one core of the processor, evaluation on dev among the training's. Parameters count what a module "
    "keeps in buffers, too. Cost is the time to encode a text, as a multiple of the first row's."
)
_PAIRS = (
    "From the studies of [VIRT](../virt-mini-bert-en/table.md) and [RE2](../re2/table.md), where differences, dev "
    "sets and budgets are: accuracy x 100, mean and standard deviation over seeds, 95 % interval over the pairs. The "
    "speed is that of pairs whose texts have all to be read; where one side is kept, as in search, Siamese rows (VIRT "
    "is one when it serves) and the adapted interaction need to read the query alone."
)
_CLASSES = (
    "From the study of [Self-Explaining pooling](../sst5-mini-bert-en/table.md): SST-5, accuracy in percent, the same "
    "encoder and budget for all rows."
)


if __name__ == "__main__":
    typer.run(main)
