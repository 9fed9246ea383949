"""What a training did, and the part of the model card that says so."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from st_plugins.core.model_card import Made, table, texts_in_words
from st_plugins.data.pairs import Pairs
from st_plugins.evaluation.comparison import Comparison
from st_plugins.evaluation.pages.before_after import before_after
from st_plugins.evaluation.result import SuiteResult
from st_plugins.report.table import percent


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


def consert_made(
    result: TrainingResult,
    settings: Mapping[str, Any],
    source: str,
    dev: Pairs | None,
    start: Path | None,
    citation: str,
) -> Made:
    """Return what the model card says of how the model was made."""
    # These have lines of their own, with the checksum spelled out.
    hidden = ("model", "texts", "dev")
    parameters = {name: _plain(value) for name, value in settings.items() if name not in hidden}
    parameters |= {"optimiser": "AdamW, weight decay 0.01, epsilon 1e-6", "gradient clipping": "norm 1.0"}
    parameters |= {"last incomplete batch": "left out", "schedule": "linear warm-up, linear decay"}
    measured = ""
    if result.before is not None and result.after is not None and result.comparison is not None:
        measured = before_after(result.before, result.after, result.comparison, "The training")
    resumed = f" The training was interrupted and resumed at {start.name}." if start is not None else ""
    return Made(
        tag="ConSERT",
        method="ConSERT, Yan et al. (2021), [arXiv 2105.11741](https://arxiv.org/abs/2105.11741): two augmented views "
        "of each text attract each other, all other texts in the batch repel. The model fits texts like those it was "
        "trained on; on others it may be worse than the model it was made from.",
        texts=f"{texts_in_words(result.texts, source, settings['texts'], 'distinct texts')}. Left out: "
        f"{result.duplicates:,} duplicates, {result.empty:,} blank. The training used no labels. The texts are not "
        "part of this model or its card.",
        settings=parameters,
        more={
            "Checkpoint": result.selection,
            "Evaluation pairs": "none; whether the training helped was not measured"
            if dev is None
            else f"{len(dev):,} labelled pairs {dev.name!r}, SHA-256 `{dev.checksum}`; not trained on",
        },
        measured=measured,
        sections="## Course of the training\n\nTraining loss; geometry of a fixed sample of the training texts "
        f"(alignment is of two dropout passes of a text); dev is Spearman × 100.{resumed}\n\n{_log_table(result.log)}",
        citation=citation,
    )


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
    return table([["step", *heading], *rows])


def _plain(value: Any) -> str:
    if isinstance(value, list):  # the views
        return "; ".join(" + ".join(_options(part) for part in view) for view in value)
    return "none" if value is None else str(value)


def _options(part: Mapping[str, Any]) -> str:
    options = ", ".join(f"{name} {value}" for name, value in part.items() if name != "view")
    return f"{part['view']} ({options})" if options else str(part["view"])
