"""The tables and the pictures of the classification study."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import bootstrap

from evaluation.engine.study import Page, Record
from evaluation.engine.tables import bounds, head, line, paper, spread
from st_plugins.explain import Explanation

if TYPE_CHECKING:
    from evaluation.studies.self_explaining.study import Study


Found = dict[str, list[Record]]
"""Records by row, a seed each."""

_RANKINGS = {"explanation": "span weights", "gradient": "gradient × input", "random": "random"}
_MEASURES = ("comprehensiveness (high is good)", "sufficiency (low is good)")
ACCURACY = (
    "Accuracy in percent, mean and standard deviation over seeds; the epoch of each run is chosen on dev. The "
    "interval is a bootstrap over the test texts of the mean over seeds; differences are paired, and bold where their "
    "interval has no zero. The paper's numbers belong to a much larger encoder and, for SNLI, 27 times the training "
    "pairs; they compare with nothing here. Settings: {recipe}."
)
FAITHFULNESS = (
    "Deletion as in ERASER on {count} test texts (the same for all runs), × 100: how much the probability of the "
    "predicted class falls without the named tokens (comprehensiveness), and with them alone (sufficiency), mean over "
    "1, 5, 10, 20 and 50 % of the tokens. Bootstrap over texts of the mean over seeds; ten random orders a text."
)


def _interval(values: NDArray[np.float64], sign: str = "") -> str:
    """Return the mean of one number a test text, times 100, with its bootstrap interval.

    Of a difference, which has a sign, an interval without zero is bold.
    """
    # Equal values have no spread that a bootstrap could find.
    low = high = values[0]
    if values.min() != values.max():
        low, high = bootstrap(
            (values,), np.mean, n_resamples=2000, method="percentile", random_state=np.random.default_rng(0)
        ).confidence_interval
    text = f"{100 * values.mean():{sign}.1f} {bounds(low, high, sign)}"
    return f"**{text}**" if sign and not low <= 0 <= high else text


def accuracy_table(study: Study, results: Found) -> list[str]:
    """Return accuracies beside mean pooling's and the paper's."""
    last = "95 % interval | minus mean pooling | >sharpness Σα² | the paper"
    lines = head("pooling | >seeds | >dev | >test accuracy", last)
    reference = next((row.name for row in study.rows if row.pooling == "mean"), "")
    right = {name: np.mean([_correct(found) for found in seeds], axis=0) for name, seeds in results.items()}
    for name, seeds in results.items():
        cells = [name, str(len(seeds)), spread([max(found["dev"]) for found in seeds])]
        cells += [f"**{spread([found['accuracy'] for found in seeds])}**", _interval(right[name])]
        paired = name != reference and reference in results
        cells.append(_interval(right[name] - right[reference], "+") if paired else "")
        sharp = [found["sharpness"] for found in seeds if "sharpness" in found]
        lines.append(line([*cells, f"{np.mean(sharp):.2f}" if sharp else "", paper(study.find(name).paper)]))
    return lines


def _correct(result: Record) -> NDArray[np.float64]:
    return np.array(list(result["correct"]), dtype=np.float64)


def faithfulness_table(results: Found) -> list[str]:
    """Return how the predicted class reacts to deletion, by what names the tokens."""
    measures = (f"{measure} | minus random" for measure in _MEASURES)
    lines = head("pooling | tokens named by", *measures)
    for name, seeds in results.items():
        for key, title in _RANKINGS.items():
            if key not in seeds[0]["faithfulness"]:
                continue
            values, chance = (
                np.mean([found["faithfulness"][ranking] for found in seeds], axis=0) for ranking in (key, "random")
            )
            cells = [name, title]
            for column in range(len(_MEASURES)):
                gain = values[:, column] - chance[:, column]
                cells += [_interval(values[:, column]), "" if key == "random" else _interval(gain, "+")]
            lines.append(line(cells))
    return lines


def examples(study: Study, results: Found) -> Page:
    """Return the section that shows the pictures, and the pictures; nothing if nothing was explained."""
    named = {name: seeds[0]["pictures"] for name, seeds in results.items() if "pictures" in seeds[0]}
    name = study.pictured or next(iter(named), "")
    drawn = named.get(name, [])
    if not drawn:
        return [], {}
    lines = [
        "## Examples",
        "",
        f"Of “{name}”, first seed: the first test texts that are classified rightly, then the first that are "
        "classified wrongly, as they come; none was picked. The darker, the more weight.",
        "",
    ]
    files = {}
    for number, picture in enumerate(drawn, 1):
        right = picture["gold"] == picture["predicted"]
        file = f"examples/{number:02}-{'right' if right else 'wrong'}.svg"
        title = f"{number}. predicted {picture['predicted']}, gold {picture['gold']}"
        # Explanations were stored without the last two before they could list anything but spans.
        stored = {"by": "span", "top_k": 3, **picture["explanation"]}
        explanation = Explanation.from_json(json.dumps(stored))
        console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
        console.print(explanation.to_terminal())
        files[file] = console.export_svg(title=title, unique_id=f"example{number}")
        lines += [f"![{title}: {explanation.text}]({file})", ""]
    return lines, files
