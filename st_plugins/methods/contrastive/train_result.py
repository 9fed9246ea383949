"""What a training did, and the part of the model card that says so."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text
from st_plugins.data.pairs import Pairs
from st_plugins.evaluation.comparison import Comparison
from st_plugins.evaluation.pages.tables import interval_text
from st_plugins.evaluation.result import Difference, Score, SuiteResult
from st_plugins.report.table import percent
from st_plugins.report.terminal import shown

_HEADING = "\n## Model Details"  # of the host's card; ours goes before it


@dataclass(frozen=True)
class TrainingResult:
    """What a training did.

    Args:
        model: The model as it was written, loaded again from the folder.
        steps: Optimiser steps of the whole training.
        step: The step whose weights were kept.
        selection: How that step was chosen, in words.
        texts: Distinct texts trained on.
        duplicates: Texts left out because they occurred before.
        empty: Texts left out because they were blank.
        before: Evaluation of the model as it was; None without development pairs.
        after: Evaluation of the model as it was written.
        comparison: ``compare(after, before)``.
        log: The trainer's ``log_history``: losses, geometry, development scores.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> model = untrained_encoder()
        >>> TrainingResult(model, 30, 30, "the last one", 960, 3, 0, None, None, None, []).texts
        960
    """

    model: SentenceTransformer
    steps: int
    step: int
    selection: str
    texts: int
    duplicates: int
    empty: int
    before: SuiteResult | None = None
    after: SuiteResult | None = None
    comparison: Comparison | None = None
    log: list[dict[str, Any]] = field(default_factory=list)


def add_section(readme: Path, section: str) -> None:
    """Put a section into the model card that the host wrote."""
    text = readme.read_text(encoding="utf-8")
    head, found, rest = text.partition(_HEADING)
    write_text(readme, f"{head.rstrip()}\n\n{section.strip()}\n{found}{rest}")


def selection_in_words(select: str, step: int, steps: int, dev: Pairs | None, *, defined: bool = True) -> str:
    """Say how a checkpoint was chosen, and whether labels took part."""
    if not defined:
        what = "Spearman on the development pairs" if select == "dev" else f"{select} of the embeddings"
        return f"Step {step} of {steps}, the last one: {what} was to choose, and was undefined at every step."
    if select == "dev" and dev is not None:
        return (
            f"Step {step} of {steps}, the one with the highest Spearman on the **labelled** development pairs "
            f"{dev.name!r}. Labels took part in this choice, so scores on these pairs flatter the model."
        )
    how = "the last one" if select == "last" else f"the best by {select} of the embeddings of training texts"
    return f"Step {step} of {steps}, {how}; no labels took part in the choice."


def consert_section(
    result: TrainingResult, settings: Mapping[str, Any], source: str, dev: Pairs | None, start: Path | None
) -> str:
    """Return the section of the model card that says how the model was made."""
    # These have lines of their own, with the checksum spelled out.
    hidden = ("model", "texts", "dev")
    parameters = {name.replace("_", " "): _plain(value) for name, value in settings.items() if name not in hidden}
    parameters |= {"optimiser": "AdamW, weight decay 0.01, epsilon 1e-6", "gradient clipping": "norm 1.0"}
    parameters |= {"last incomplete batch": "left out", "schedule": "linear warm-up, linear decay"}
    data = f"{result.texts:,} distinct texts{f' from {code(source)}' if source else ''}, SHA-256 `{settings['texts']}`"
    lines = [
        "## How this model was made",
        f"{code(settings['model'])}, adapted to unlabelled texts with ConSERT by st-plugins. It fits texts like "
        "these; on others it may be worse than the model it was made from.",
        "- **Method**: ConSERT, Yan et al. (2021), [arXiv 2105.11741](https://arxiv.org/abs/2105.11741): two "
        "augmented views of each text attract each other, all other texts in the batch repel.",
        f"- **Texts**: {data}. Left out: {result.duplicates:,} duplicates, {result.empty:,} blank. The training used "
        "no labels. The texts are not part of this model or its card.",
        f"- **Checkpoint**: {result.selection}",
        "- **Evaluation pairs**: "
        + ("none; whether the training helped was not measured" if dev is None else _described(dev)),
        "### Settings",
        _table([["setting", "value"], *parameters.items()]),
    ]
    if result.before is not None and result.after is not None and result.comparison is not None:
        lines += ["### Before and after", _score_lines(result.before, result.after, result.comparison)]
    resumed = f" The training was interrupted and resumed at {start.name}." if start is not None else ""
    lines += [
        "### Course of the training",
        "Training loss; geometry of a fixed sample of the training texts (alignment is of two dropout passes of a "
        f"text); dev is Spearman × 100.{resumed}",
        _log_table(result.log),
        "### Versions",
        ", ".join(f"{name} {version}" for name, version in library_versions().items()),
    ]
    return "\n\n".join(lines)


def code(text: object) -> str:
    """Return text as Markdown code, whatever backticks are in it."""
    plain = shown(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    return f"{fence} {plain} {fence}" if "`" in plain else f"`{plain}`"


def _table(rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; the first row is the heading."""
    lines = ["| " + " | ".join(shown(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("---" for _ in rows[0]) + " |", *lines[1:]])


def _score_lines(before: SuiteResult, after: SuiteResult, comparison: Comparison) -> str:
    """Return what was measured before and after, with intervals and the floor, and the verdict in words."""
    names = [(task.name, task.title) for task in before.tasks] + [("avg", "average")]
    rows: list[list[str]] = [["Spearman × 100", *(title for _, title in names)]]
    for label, result in (("before", before), ("after", after)):
        scores = [*(task.spearman["all"] for task in result.tasks), result.average["spearman_all"]]
        rows.append([label, *map(_score, scores)])
    differences = [*(comparison.tasks[name] for name, _ in names[:-1]), comparison.average]
    rows.append(["after - before", *map(_difference, differences)])
    if after.floor is not None:
        rows.append(["floor: random token vectors", *(_score(after.floor.raw[name]) for name, _ in names)])
        label = f"floor, whitened on {after.floor.whitened_on}"
        rows.append([label, *(_score(after.floor.whitened[name]) for name, _ in names)])
    if len(names) == 2:  # one task: its average says nothing new
        rows = [row[:-1] for row in rows]
    verdict = {
        "better": "The training helped on these pairs.",
        "worse": "**The training hurt on these pairs**: the original model is the better one here.",
        "not separable": "On these pairs the training made no difference that can be told apart.",
        "undefined": "Whether the training helped could not be measured: a correlation on these pairs is undefined.",
    }[comparison.average.verdict]
    confidence = round(100 * before.settings["confidence"])
    return f'{_table(rows)}\n\nConvention "all"; {confidence} % bootstrap intervals over pairs. {verdict}'


def _log_table(history: Sequence[Mapping[str, Any]]) -> str:
    """Return the steps at which something was measured, with the latest training loss logged up to each."""
    columns = {"geometry_alignment": "alignment", "geometry_uniformity": "uniformity"}
    columns |= {"geometry_mean_random_cosine": "mean cosine", "geometry_effective_rank": "effective rank"}
    keys = [key for entry in history for key in entry if re.fullmatch("eval_avg_spearman_[a-z]+", key)]
    dev = keys[0] if keys else ""  # it ends in the model's similarity
    measured: dict[int, dict[str, str]] = {}
    # The loss is logged more often than anything is measured.
    loss = ""
    for entry in history:
        loss = f"{entry['loss']:.4f}" if "loss" in entry else loss
        if "geometry_alignment" in entry or dev in entry:
            row = measured.setdefault(int(entry["step"]), {})
            row["loss"] = loss
            row.update({title: f"{entry[key]:.4g}" for key, title in columns.items() if key in entry})
            if dev in entry:
                row["dev"] = percent(entry[dev])
    heading = ["loss", *columns.values()] + (["dev"] if any("dev" in row for row in measured.values()) else [])
    rows = [[str(step), *(row.get(name, "") for name in heading)] for step, row in measured.items()]
    return _table([["step", *heading], *rows])


def _described(dev: Pairs) -> str:
    return f"{len(dev):,} labelled pairs {dev.name!r}, SHA-256 `{dev.checksum}`; not trained on"


def _plain(value: Any) -> str:
    if isinstance(value, list):  # the views
        return "; ".join(" + ".join(_options(part) for part in view) for view in value)
    return "none" if value is None else str(value)


def _options(part: Mapping[str, Any]) -> str:
    options = ", ".join(f"{name} {value}" for name, value in part.items() if name != "view")
    return f"{part['view']} ({options})" if options else str(part["view"])


def _score(score: Score) -> str:
    return percent(score.value) + _interval(score)


def _difference(difference: Difference) -> str:
    if math.isnan(difference.value):
        return difference.verdict
    return f"{percent(difference.value, sign=True)}{_interval(difference)}, {difference.verdict}"


def _interval(score: Score | Difference) -> str:
    if math.isnan(score.value) or math.isnan(score.low):
        return ""
    return f" {interval_text(score.low, score.high)}"
