"""How exactly pair explanations add up: contributions against the model's own similarity, on real pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm.auto import tqdm

from evaluation.engine import study
from evaluation.engine.pipelines import Pipeline, build_model
from evaluation.engine.study import Page, Record, Results, versions_of
from evaluation.engine.tables import head, line
from st_plugins import whiten
from st_plugins.data import load_task
from st_plugins.explain import explain_pair


@dataclass(frozen=True)
class Row(study.Row):
    """An encoder."""

    model: str  # folder below --models
    max_length: int = 64  # texts are cut to so many tokens


@dataclass(kw_only=True)
class Study(study.Study[Row]):
    """A recipe."""

    row_type: ClassVar[type[Row]] = Row
    options: ClassVar[tuple[str, ...]] = ()

    tasks: tuple[str, ...] = ("stsb",)  # whose test pairs are explained
    pairs: int = 1000
    seeds: tuple[int, ...] = (0,)  # of the new pooling

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks."""
        return self.tasks

    def measure(self, row: Row, task: str, seed: int) -> Record:
        """Return the largest and the mean error of each pipeline."""
        loaded = load_task(task, self.place.data)
        chosen = list(zip(loaded.first, loaded.second, strict=True))[: self.pairs]
        texts = sorted({text for pair in chosen for text in pair})
        order = {text: number for number, text in enumerate(texts)}
        found: dict[str, Any] = {}
        for pooling in ("mean", "span"):
            pipeline = Pipeline(pooling, row.model, pooling, max_length=row.max_length)
            plain = build_model(pipeline, self.place.models, seed).to(self.place.on)
            whitened = whiten(plain, texts, None, batch_size=128, show_progress_bar=False)
            for name, model in ((pooling, plain), (f"{pooling} + whitening", whitened)):
                vectors = model.encode(texts, batch_size=128, show_progress_bar=False).astype(np.float64)
                vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
                errors, views = [], []
                for a, b in tqdm(chosen, desc=name, leave=False):
                    explanation = explain_pair(model, a, b)
                    cosine = vectors[order[a]] @ vectors[order[b]]
                    errors.append(abs(float(explanation.contributions.sum()) - cosine))
                    # What spans add by themselves is all of it, and an interaction adds to no row and no column.
                    sums = np.concatenate([explanation.interaction.sum(axis) for axis in (0, 1)])
                    views.append(max(abs(float(explanation.main_effects.sum()) - cosine), float(np.abs(sums).max())))
                largest = {"largest": max(errors), "views": max(views)}
                found[name] = {**largest, "mean": float(np.mean(errors)), "exact": explanation.exact}
        return {"pairs": len(chosen), "error": found}

    def page(self, results: Results, folder: Path) -> Page:
        """Return the errors of all pipelines."""
        lines = [
            f"# {self.title}",
            "",
            *head("encoder | pairs | pipeline | >largest error | >mean error | >of main effects and interaction"),
        ]
        for (task, name), (found, *_) in results.items():
            for pipeline, error in found["error"].items():
                cells = [name, f"{found['pairs']} of {task}", pipeline]
                lines.append(line([*cells, *(f"{error[key]:.1e}" for key in ("largest", "mean", "views"))]))
        return [*lines, "", self.notes, "", versions_of(found), ""], {}
