"""The tables of the RE2 study, made from its JSON results and those of the studies it names.

Run it after ``evaluation/re2.py``, or at any time in between::

    python -m evaluation.re2_ledger evaluation/recipes/re2/re2.toml
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Any

import typer

from evaluation.ledger import spread
from evaluation.pair_ledger import difference_table, main_table, sets
from evaluation.pair_results import Results, load_results, load_seeds
from evaluation.re2_recipe import Row, Study, read_study
from st_plugins.core.writing.atomic import write_text

__all__ = ["main"]

_MISSING = "-"


def beside(study: Study, folder: Path) -> Results:
    """Read the rows of other studies.

    Args:
        study: The study.
        folder: Folder of the results of all recipes.

    Returns:
        Their results by our task and their name here, as far as there are any.
    """
    found: Results = {}
    for row in study.beside:
        for task in study.tasks:
            seeds = load_seeds(folder / row.results, row.tasks.get(task, task), row.row)
            if seeds:
                found[task, row.name] = seeds
    return found


def paper_lines(study: Study, results: Results) -> list[str]:
    """Return the last lines of the main table: the paper's numbers, and the sizes of both training sets.

    Args:
        study: The study.
        results: The results.

    Returns:
        Markdown lines.
    """
    numbers, ours, theirs = [], [], []
    for task, _ in sets(study.tasks):
        paper = study.tasks[task].paper
        text = f"{100 * paper['value']:.2f} ± {100 * paper['deviation']:.2f}" if paper else _MISSING
        numbers.append(text + (f", MRR {100 * paper['mrr']:.2f}" if "mrr" in paper else ""))
        theirs.append(f"{paper['pairs']:,}" if paper else _MISSING)
        seeds = [found for row in _main(study) for found in results.get((task, row.name), [])]
        ours.append(f"{seeds[0]['pairs']:,}" if seeds else _MISSING)
    return [
        f"| *{name}* | {runs} | " + " | ".join(cells) + " |"
        for name, runs, cells in (
            ("RE2 in the paper", "10", numbers),
            ("training pairs here", "", ours),
            ("training pairs in the paper", "", theirs),
        )
    ]


def cost_table(study: Study, results: Results) -> list[str]:
    """Return the dev scores, and what a training and its model cost.

    Args:
        study: The study.
        results: The results.

    Returns:
        Markdown lines.
    """
    lines = [
        "| task | row | dev | epochs, kept of made | seconds of training | parameters | with embeddings | coverage |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for task in study.tasks:
        for row in _main(study):
            seeds = results.get((task, row.name), [])
            if not seeds:
                continue
            epochs = [_mean([found[key] / _steps_an_epoch(found) for found in seeds]) for key in ("step", "steps")]
            network, embeddings = (seeds[0]["parameters"][key] for key in ("network", "embeddings"))
            coverage = seeds[0].get("coverage")
            cells = [task, row.name, spread([found["dev"]["value"][0] for found in seeds])]
            cells += [f"{epochs[0]:.1f} of {epochs[1]:.1f}"]
            cells += [f"{_mean([found['seconds_training'] for found in seeds]):.0f}", f"{network:,}"]
            cells += [f"{network + embeddings:,}", "" if coverage is None else f"{100 * coverage:.1f} %"]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def ablation_table(study: Study, results: Results) -> list[str]:
    """Return the dev scores of the ablations beside the paper's, each with its distance from the full network.

    Args:
        study: The study.
        results: The results.

    Returns:
        Markdown lines; none if there is no ablation.
    """
    rows = [row for row in study.rows if row.ablation]
    if not rows:
        return []
    full = next(row for row in study.rows if row.name == study.full)
    tasks = [task for task in study.tasks if any(task in (row.tasks or study.tasks) for row in rows)]
    lines = ["| network | seeds | " + " | ".join(f"{task} dev | − full | the paper | − full" for task in tasks) + " |"]
    lines.append("| --- | ---: |" + " ---: | ---: | ---: | ---: |" * len(tasks))
    for row in [full, *rows]:
        cells = []
        seeds_found = set()
        for task in tasks:
            scores = _dev(results, task, row)
            reference = _dev(results, task, full)
            common = sorted(set(scores) & set(reference))
            seeds_found |= set(scores)
            cells.append(spread(list(scores.values())) if scores else _MISSING)
            gaps = [scores[seed] - reference[seed] for seed in common]
            cells.append(spread(gaps, sign=True) if gaps and row is not full else "")
            both = row.paper.get(task), full.paper.get(task)
            cells.append(_MISSING if both[0] is None else f"{100 * both[0]:.1f}")
            known = row is not full and None not in both
            cells.append(f"{100 * (both[0] - both[1]):+.1f}" if known else "")  # type: ignore[operator]
        lines.append(f"| {row.name} | {len(seeds_found) or _MISSING} | " + " | ".join(cells) + " |")
    return lines


def _main(study: Study) -> list[Row]:
    return [row for row in study.rows if not row.ablation]


def _dev(results: Results, task: str, row: Row) -> dict[int, float]:
    return {found["seed"]: found["dev"]["value"][0] for found in results.get((task, row.name), [])}


def _steps_an_epoch(found: dict[str, Any]) -> int:
    pairs, batch = found["pairs"], found["schedule"]["batch_size"]
    # The host's trainer leaves a last, smaller batch out; the matcher's does not.
    return int(pairs // batch if found["row"]["kind"] == "siamese" else -(-pairs // batch))


def _mean(values: list[float]) -> float:
    return float(statistics.mean(values))


def main(
    recipe: Annotated[Path, typer.Argument(help="The recipe that evaluation/re2.py was given.")],
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("evaluation/results"),
) -> None:
    """Write RESULTS/<recipe>/table.md."""
    study = read_study(recipe)
    folder = results / recipe.stem
    found = load_results(study, folder)
    if not found:
        raise typer.BadParameter(f"{folder} holds no result of {recipe.name}; run evaluation/re2.py first")
    own, columns = [row.name for row in _main(study)], sets(study.tasks)
    rows, everything = [*own, *(row.name for row in study.beside)], {**found, **beside(study, results)}
    lines = [f"# {study.title}", "", _INTRODUCTION, "", *main_table(rows, columns, everything, _MISSING)]
    lines += [*paper_lines(study, found), ""]
    for base in [row.name for row in _main(study) if row.kind == "siamese"] + [row.name for row in study.beside]:
        differences = difference_table(own, base, columns, everything)
        lines += [*differences, ""] if len(differences) > 2 else []
    lines += ["## Dev sets and costs", "", _COSTS, "", *cost_table(study, found), ""]
    ablations = ablation_table(study, found)
    if ablations:
        lines += ["## Ablations", "", _ABLATIONS.format(full=study.full), "", *ablations, ""]
    first = next(iter(found.values()))[0]
    versions = ", ".join(f"{key} {value}" for key, value in first["versions"].items())
    lines += [study.notes.strip(), "", f"Trained on: {first['device']}. {versions}.", ""]
    write_text(folder / "table.md", "\n".join(lines))
    typer.echo(f"wrote {folder / 'table.md'}")


_INTRODUCTION = (
    "Accuracy x 100, for wikiqa mean average precision x 100: mean and standard deviation over seeds, in brackets the "
    "95 % bootstrap interval of the mean over the pairs of the set (wikiqa: its questions). The epoch that is best on "
    "dev is scored. The paper's numbers belong to its training sets, which are much larger, and to 300-dimensional "
    "vectors of a large vocabulary; they compare with nothing here. Differences are paired, and corrected for the "
    "number of sets (Holm); they tell what the seeds shown tell, not what other seeds would."
)
_COSTS = (
    "Settings were chosen on these sets, with seed 0, and so were the epochs, so they flatter. Seconds are of one "
    "core of the processor, on a CPU, dev passes among them. Coverage is the share of the training texts' tokens that "
    "have a word vector."
)
_ABLATIONS = (
    "Dev scores x 100, and the distance from “{full}” on the same seeds; beside it the paper's, on its dev sets and "
    "with its data. A dev set of 2,000 pairs moves by about one point either way by chance alone."
)


if __name__ == "__main__":
    typer.run(main)
