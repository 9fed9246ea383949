"""The table and the pictures of a classification study, made from its JSON results.

Run it after ``evaluation/classification.py``, or at any time in between::

    python -m evaluation.classification_table evaluation/recipes/self-explaining/sst5-mini-bert-en.toml
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import bootstrap

from evaluation.classification_recipe import Study, read_study
from evaluation.ledger import spread
from evaluation.run import result_file
from st_plugins.core.writing.atomic import write_text
from st_plugins.explain import Explanation

__all__ = ["main"]

Results = dict[str, list[dict[str, Any]]]
RANKINGS = {"explanation": "span weights", "gradient": "gradient × input", "random": "random"}


def load_results(study: Study, folder: Path) -> Results:
    """Read what has been measured.

    Args:
        study: The study.
        folder: Results of the recipe.

    Returns:
        One list of results (a seed each) for each run that has any.
    """
    found: Results = {}
    for run in study.runs:
        for seed in run.seeds or study.seeds:
            path = result_file(folder, run.name, seed)
            if path.is_file():
                found.setdefault(run.name, []).append(json.loads(path.read_text(encoding="utf-8")))
    return found


def interval(values: NDArray[np.float64], sign: bool = False) -> str:
    """Return the mean of numbers, times 100, with its 95 % percentile bootstrap interval.

    Args:
        values: One number a test text.
        sign: Whether to print plus signs.

    Returns:
        ``"41.2 [39.2, 43.3]"``; an interval without zero is bold.

    Example:
        >>> interval(np.ones(10), sign=True)
        '**+100.0 [+100.0, +100.0]**'
    """
    if values.min() == values.max():
        low = high = values[0]
    else:
        found = bootstrap(
            (values,), np.mean, n_resamples=2000, method="percentile", random_state=np.random.default_rng(0)
        )
        low, high = found.confidence_interval
    plus = "+" if sign else ""
    text = f"{100 * values.mean():{plus}.1f} [{100 * low:{plus}.1f}, {100 * high:{plus}.1f}]"
    return f"**{text}**" if sign and not low <= 0 <= high else text


def accuracy_table(study: Study, results: Results) -> list[str]:
    """Return accuracies beside mean pooling's and the paper's.

    Args:
        study: The study.
        results: Results by run.

    Returns:
        Markdown lines.
    """
    lines = [
        "| pooling | seeds | dev | test accuracy | 95 % interval | minus mean pooling | sharpness Σα² | the paper |",
        "| --- | ---: | ---: | ---: | --- | --- | ---: | --- |",
    ]
    reference = next((run.name for run in study.runs if run.pooling == "mean"), "")
    right = {name: np.mean([_correct(result) for result in seeds], axis=0) for name, seeds in results.items()}
    for name, seeds in results.items():
        run = next(run for run in study.runs if run.name == name)
        cells = [name, str(len(seeds)), spread([max(result["dev"]) for result in seeds])]
        cells += [f"**{spread([result['accuracy'] for result in seeds])}**", interval(right[name])]
        paired = name != reference and reference in results
        cells.append(interval(right[name] - right[reference], sign=True) if paired else "")
        sharp = [result["sharpness"] for result in seeds if "sharpness" in result]
        cells.append(f"{np.mean(sharp):.2f}" if sharp else "")
        cells.append(f"{run.paper['value']} with {run.paper['encoder']}" if run.paper else "")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _correct(result: dict[str, Any]) -> NDArray[np.float64]:
    return np.array(list(result["correct"]), dtype=np.float64)


def faithfulness_table(results: Results) -> list[str]:
    """Return how the predicted class reacts to deletion, by what names the tokens.

    Args:
        results: Results by run.

    Returns:
        Markdown lines.
    """
    lines = [
        "| pooling | tokens named by | comprehensiveness (high is good) | minus random | sufficiency (low is good) "
        "| minus random |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, seeds in results.items():
        for key, title in RANKINGS.items():
            if key not in seeds[0]["faithfulness"]:
                continue
            values, chance = (
                np.mean([result["faithfulness"][ranking] for result in seeds], axis=0) for ranking in (key, "random")
            )
            cells = [name, title]
            for column in (0, 1):
                cells.append(interval(values[:, column]))
                gain = values[:, column] - chance[:, column]
                cells.append("" if key == "random" else interval(gain, sign=True))
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw(study: Study, results: Results, folder: Path) -> list[str]:
    """Write the pictures and return the section that shows them.

    Args:
        study: The study.
        results: Results by run.
        folder: Where to write ``examples/``.

    Returns:
        Markdown lines; none if nothing was explained.
    """
    named = {name: seeds[0]["pictures"] for name, seeds in results.items() if "pictures" in seeds[0]}
    name = study.pictured or next(iter(named), "")
    drawn = named.get(name, [])
    if not drawn:
        return []
    lines = [
        "## Examples",
        "",
        f"Of “{name}”, first seed: the first test texts that are classified rightly, then the first that are "
        "classified wrongly, as they come; none was picked. The darker, the more weight.",
        "",
    ]
    for number, picture in enumerate(drawn, 1):
        right = picture["gold"] == picture["predicted"]
        file = f"examples/{number:02}-{'right' if right else 'wrong'}.svg"
        title = f"{number}. predicted {picture['predicted']}, gold {picture['gold']}"
        explanation = Explanation.from_json(json.dumps(picture["explanation"]))
        console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
        console.print(explanation.to_terminal())
        write_text(folder / file, console.export_svg(title=title, unique_id=f"example{number}"))
        lines += [f"![{title}: {explanation.text}]({file})", ""]
    return lines


def main(
    recipe: Annotated[Path, typer.Argument(help="The recipe that evaluation/classification.py was given.")],
    results: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("evaluation/results"),
) -> None:
    """Write RESULTS/<recipe>/table.md and the pictures beside it."""
    study = read_study(recipe)
    folder = results / recipe.stem
    found = load_results(study, folder)
    if not found:
        raise typer.BadParameter(f"{folder} holds no result of {recipe.name}; run evaluation/classification.py first")
    first = next(iter(found.values()))[0]
    explained = len(first["faithfulness"]["random"])
    lines = [f"# {study.title}", "", _ACCURACY.format(recipe=recipe.name), "", *accuracy_table(study, found), ""]
    lines += ["## Faithfulness", "", _FAITHFULNESS.format(count=explained), "", *faithfulness_table(found), ""]
    lines += draw(study, found, folder)
    versions = ", ".join(f"{key} {value}" for key, value in first["versions"].items())
    lines += [study.notes.strip(), "", f"Trained on: {first['device']}. {versions}.", ""]
    write_text(folder / "table.md", "\n".join(lines))
    typer.echo(f"wrote {folder / 'table.md'}")


_ACCURACY = (
    "Accuracy in percent, mean and standard deviation over seeds; the epoch of each run is chosen on dev. The "
    "interval is a bootstrap over the test texts of the mean over seeds; differences are paired, and bold where their "
    "interval has no zero. The paper's numbers belong to a much larger encoder and, for SNLI, 27 times the training "
    "pairs; they compare with nothing here. Settings: {recipe}."
)
_FAITHFULNESS = (
    "Deletion as in ERASER on {count} test texts (the same for all runs), × 100: how much the probability of the "
    "predicted class falls without the named tokens (comprehensiveness), and with them alone (sufficiency), mean over "
    "1, 5, 10, 20 and 50 % of the tokens. Bootstrap over texts of the mean over seeds; ten random orders a text."
)

if __name__ == "__main__":
    typer.run(main)
