"""The STS study: what pooling and whitening make of an encoder's sentence vectors, without training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from evaluation.engine import study
from evaluation.engine.corpus import draw_texts
from evaluation.engine.pipelines import Pipeline, build_model
from evaluation.engine.study import Page, Record, Results, check_choice, versions_of
from evaluation.engine.tables import bounds, head, line
from st_plugins import whiten
from st_plugins.data import load_task
from st_plugins.data.tasks import TASKS, resolve_tasks
from st_plugins.evaluation import Difference, FloorResult, Score, STSSuiteEvaluator, SuiteResult


@dataclass(frozen=True)
class Row(Pipeline):
    """A pipeline with a whitening."""

    # "corpus" (on unlabelled texts), "target" (on each task's own texts, transductive) or "pooled" (once, on the
    # distinct test sentences of all tasks; transductive too)
    whitening: str = "none"
    dimension: int = 0  # kept by the whitening; 0 for all


@dataclass(kw_only=True)
class Study(study.Study[Row]):
    """A recipe."""

    row_type: ClassVar[type[Row]] = Row
    options: ClassVar[tuple[str, ...]] = ()

    tasks: str  # as for STSSuiteEvaluator
    corpus: list[str]  # as for draw_texts
    corpus_size: int
    batch_size: int
    seeds: tuple[int, ...] = (0,)  # of the draw, the resamples, the floor and random weights

    def check(self) -> None:
        """Refuse values that cannot be meant."""
        super().check()
        for row in self.rows:
            check_choice(f"row {row.name!r}:", "whitening", row.whitening, ("none", "corpus", "target", "pooled"))

    def corpus_texts(self, seed: int) -> list[str]:
        """Draw the unlabelled texts."""
        return draw_texts(self.corpus, self.place.data, self.corpus_size, seed, distinct=False)

    def measure(self, row: Row, task: str, seed: int) -> Record:
        """Evaluate a pipeline."""
        data, corpus = self.place.data, self.corpus_texts(seed)
        model = build_model(row, self.place.models, seed).to(self.place.on)
        target = row.whitening == "target"
        evaluator = STSSuiteEvaluator(
            self.tasks,
            data,
            self.batch_size,
            seed=seed,
            floor_texts=corpus if corpus and row.whitening != "pooled" else None,
            target_whitening=row.dimension if target else None,
            target_texts=target_texts(self.tasks, data) if target else None,
            keep_similarities=False,
        )
        texts = {"corpus": corpus, "pooled": evaluator.sentences}.get(row.whitening)
        if texts is not None:
            source = ", ".join(self.corpus) if row.whitening == "corpus" else "the evaluated sentences"
            model = whiten(model, texts, row.dimension or None, batch_size=self.batch_size, source=source)
        result = evaluator.evaluate(model, model_name=row.name)
        for found in result.tasks:
            # A result is published; the path of the data on this machine is nobody's business.
            found.source = Path(found.source).name
        record: Record = json.loads(result.to_json())
        return record

    def record(self, row: Row, task: str, seed: int) -> Record:
        """Return the suite's own record, which has machine and versions already."""
        return self.measure(row, task, seed)

    def summary(self, record: Record) -> str:
        """Return what the terminal shows of a new record."""
        tasks = [f"{task['title']} {100 * task['spearman']['all']['value']:.2f}" for task in record["tasks"]]
        return f"{', '.join(tasks)}, average {100 * record['average']['spearman_all']['value']:.2f}"

    def page(self, results: Results, folder: Path) -> Page:
        """Return the table of all pipelines with their distance to the floor."""
        named = {
            name if len(records) == 1 else f"{name}, seed {record['settings']['seed']}": SuiteResult.from_json(
                json.dumps(record)
            )
            for (_, name), records in results.items()
            for record in records
        }
        first = next(iter(named.values()))
        titles = [f">{task.title}" for task in first.tasks]
        lines = [f"# {self.title}", "", _INTRODUCTION, ""]
        lines += head("pipeline | >dim", *titles, ">Avg. | above the floor | above the whitened floor")
        floors: dict[tuple[int, str], FloorResult] = {}
        for name, result in named.items():
            cells = [name, _dimension(result), *(f"{100 * task.spearman['all'].value:.2f}" for task in result.tasks)]
            cells.append(_interval(result.average["spearman_all"]))
            if result.floor is None:
                cells += ["no floor", "no floor"]
            else:
                cells += [_above(result.floor.above_raw["avg"]), _above(result.floor.above_whitened["avg"])]
                vocabulary = result.model["modules"][0]["type"] + str(result.model["parameters"])
                floors.setdefault((result.floor.dimension, result.floor.whitened_on + "@" + vocabulary), result.floor)
            lines.append(line(cells))
        shown = []
        for (dimension, _), floor in floors.items():
            for label, scores in (("raw", floor.raw), (f"whitened on {floor.whitened_on}", floor.whitened)):
                cells = [f"{100 * scores[task.name].value:.2f}" for task in first.tasks] + [_interval(scores["avg"])]
                shown.append(f"| *floor, {label}* | {dimension} | {' | '.join(cells)} | | |")
        lines += dict.fromkeys(shown)  # pipelines that share a floor show it once
        made = f"Made with `python -m evaluation run` and seed {', '.join(map(str, self.seeds))}."
        return [*lines, "", f"{made} {versions_of(vars(first))}", "", self.notes, ""], {}


def target_texts(tasks: str, data: Path) -> dict[str, list[str]]:
    """Return by task the train and dev texts that the published target setting adds for STS-B and SICK-R."""
    more = {}
    for task in resolve_tasks(tasks):
        if task.name in ("stsb", "sickr"):
            splits = [load_task(task, data, split) for split in TASKS[task.name].splits if split != "test"]
            more[task.name] = [text for pairs in splits for text in (*pairs.first, *pairs.second)]
    return more


def _dimension(result: SuiteResult) -> str:
    if result.settings["target_whitening"] == 0:
        return f"≤ {result.model['dimension']}"  # each task keeps as many as its texts have
    return str(result.settings["target_whitening"] or result.model["dimension"])


def _interval(score: Score) -> str:
    return f"**{100 * score.value:.2f}** {bounds(score.low, score.high)}"


def _above(difference: Difference) -> str:
    return f"{100 * difference.value:+.2f} {difference.verdict}"


_INTRODUCTION = (
    "Spearman x 100, convention 'all' (one correlation over each task's concatenated pairs), with 95 % bootstrap "
    "intervals of the average. 'Above the floor' is the paired difference of the averages to a bag of random "
    "token vectors with the same tokenizer and dimension: raw, and whitened on the same texts (on each task's own "
    "texts for the target rows)."
)
