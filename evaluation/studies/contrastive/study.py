"""The training study: what a loss, a pooling, or a fit afterwards makes of an encoder's sentence vectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from sentence_transformers import SentenceTransformer

from evaluation.engine import study
from evaluation.engine.corpus import draw_texts
from evaluation.engine.pipelines import NEW_POOLINGS, Pipeline, build_model
from evaluation.engine.spans import heaviest, heaviest_section
from evaluation.engine.study import Page, Record, Results, check_choice
from evaluation.engine.tables import mean, section
from evaluation.studies.contrastive import tables
from evaluation.studies.contrastive.after import AFTER, RANDOM
from evaluation.studies.contrastive.training import PAIR_METHODS, RULES, State, choose, train
from st_plugins.evaluation import STSSuiteEvaluator, SuiteResult
from st_plugins.explain import explain_text
from st_plugins.modules import LayerMix, SpanPooling

METHODS = ("none", "consert", "simcse", *PAIR_METHODS)


@dataclass(frozen=True)
class Row(study.Row):
    """A method with its settings."""

    # "none", "consert", "simcse", or on labelled pairs "supervised" (softmax), "joint" or "cosent" (with scores)
    method: str
    data: str = ""  # key of the recipe's [data] tables: unlabelled texts, or labelled pairs
    start: str = ""  # row whose model (chosen on dev) this one starts from; empty for the recipe's model
    views: tuple[str, str] = ("feature-cutoff:0.2", "token-shuffle")  # in short form, for consert and joint
    temperature: float = 0.1
    weight: float = 0.15  # of the joint objective
    sharpness: float = 0.0  # what sharp span weights are worth
    r_drop: float = 0.0  # weight of R-Drop around the loss
    mix_penalty: float = 0.0  # on the layers' weights
    encoder_dropout: bool = True
    learning_rate: float = 5e-5  # peak; linear warm-up over a tenth of the steps, then linear decay
    # Of the weights after the encoder, which begin random; 0 for the same.
    pooling_learning_rate: float = 0.0
    epochs: float = 1.0
    max_steps: int = 0  # 0 leaves it to ``epochs``
    batch_size: int = 96
    grouped: bool = False  # texts of similar length into a batch, which needs less time
    pooling: str = ""  # as for `Pipeline`, and the next two; empty for the recipe's
    layers: int = -1
    tokens: bool = False
    # Keys of AFTER, fitted to the trained model's embeddings of the corpus.
    after: tuple[str, ...] = ("whitened",)
    dev_only: bool = False  # never scored on the test sets
    paper: dict[str, Any] = field(default_factory=dict)  # {encoder = "...", value = 72.74}


@dataclass(kw_only=True)
class Study(study.Study[Row]):
    """A recipe."""

    row_type: ClassVar[type[Row]] = Row

    model: str  # folder below --models
    tasks: str  # what is evaluated, as for STSSuiteEvaluator
    dev_task: str  # whose dev split watches the training
    corpus: list[str]  # for the whitening, the floor and the geometry, as for draw_texts
    # Named sources. ``texts`` lists files as ``corpus`` does, ``size`` draws that many of them; ``pairs`` lists files
    # with columns label (for cosent: score), sentence1, sentence2.
    data: dict[str, dict[str, Any]]
    pooling: str = "mean"
    max_length: int = 64
    corpus_size: int = 28682
    evaluations: int = 10  # checkpoints looked at in each training
    starts: dict[tuple[str, int], State] = field(default_factory=dict, init=False, repr=False)

    def check(self) -> None:
        """Refuse values that cannot be meant."""
        super().check()
        names: list[str] = []
        for row in self.rows:
            where, pooling = f"row {row.name!r}:", row.pooling or self.pooling
            check_choice(where, "method", row.method, METHODS)
            if row.method != "none":
                check_choice(where, "data", row.data, self.data)
            if row.start and row.start not in names:
                raise ValueError(f"{where} start={row.start!r} must be a row above it")
            if row.sharpness and pooling != "span":
                raise ValueError(f'{where} sharpness={row.sharpness} needs pooling = "span"')
            if row.r_drop and row.method not in ("supervised", "cosent"):
                raise ValueError(f"{where} r_drop={row.r_drop} is for the methods supervised and cosent")
            if row.mix_penalty and pooling != "layer-mix":
                raise ValueError(f'{where} mix_penalty={row.mix_penalty} needs pooling = "layer-mix"')
            if row.pooling_learning_rate and pooling not in ("layer-mix", *NEW_POOLINGS):
                raise ValueError(
                    f"{where} pooling_learning_rate={row.pooling_learning_rate} needs a pooling with weights, one of "
                    f"layer-mix, {', '.join(NEW_POOLINGS)}"
                )
            for form in row.after:
                check_choice(where, "after", form, AFTER)
            if row.method in PAIR_METHODS and "pairs" not in self.data[row.data]:
                raise ValueError(f"{where} data={row.data!r} has no pairs, which method={row.method!r} needs")
            names.append(row.name)

    def chain(self, row: Row) -> list[Row]:
        """Return the rows that lead to a row, the first trained first, itself last."""
        return [*(self.chain(self.find(row.start)) if row.start else []), row]

    def uses_labels(self, row: Row) -> bool:
        """Tell whether a row, or one that leads to it, is trained on labels."""
        return any(step.method in PAIR_METHODS for step in self.chain(row))

    def pipeline_of(self, row: Row) -> Pipeline:
        """Return what a row begins with."""
        pooling = row.pooling or self.pooling
        return Pipeline(
            row.name, self.model, pooling, max_length=self.max_length, layers=row.layers, tokens=row.tokens
        )

    @cached_property
    def corpus_texts(self) -> list[str]:
        """The unlabelled texts."""
        return draw_texts(self.corpus, self.place.data, self.corpus_size)

    @cached_property
    def suites(self) -> dict[str, STSSuiteEvaluator]:
        """What is evaluated, by split."""
        shared: dict[str, Any] = {
            "floor_texts": self.corpus_texts,
            "geometry": False,
            "keep_similarities": False,
            "show_progress_bar": False,
        }
        return {
            "dev": STSSuiteEvaluator(self.dev_task, self.place.data, 128, split="dev", **shared),
            **({} if self.place.dev_only else {"test": STSSuiteEvaluator(self.tasks, self.place.data, 128, **shared)}),
        }

    def measure(self, row: Row, task: str, seed: int) -> Record:
        """Train a row and evaluate the checkpoints that the rules choose."""
        model = build_model(self.pipeline_of(row), self.place.models, seed).to(self.place.on)
        begin = self.place.clock()
        log, states = self._train(row, seed, model)
        found: Record = {
            "log": log,
            "chosen": {rule: choose(log, rule) for rule in RULES} if log else {},
            "steps": {},
            "seconds_training": self.place.clock() - begin if log else 0.0,
            "seconds_after": {},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
        suites = {split: suite for split, suite in self.suites.items() if split == "dev" or not row.dev_only}
        # Rules that need no labels are for rows that use none.
        wanted = [found["chosen"]["dev"]] if self.uses_labels(row) and log else found["chosen"].values()
        for step in sorted(set(wanted)) or [0]:
            if states:
                model.load_state_dict(states[step])
            # What nothing random made is evaluated with the first seed only.
            again = not log and seed != self.seeds_of(row)[0]
            forms = {} if again else {"plain": model}
            for form in row.after if not log or step == found["chosen"]["dev"] else ():
                if not again or form in RANDOM:
                    begin = self.place.clock()
                    forms[form] = AFTER[form](model, self.corpus_texts, seed)
                    found["seconds_after"][form] = self.place.clock() - begin
            found["steps"][str(step)] = {
                split: {form: _scores(suite.evaluate(variant, row.name)) for form, variant in forms.items()}
                for split, suite in suites.items()
            }
        if states:
            model.load_state_dict(states[found["chosen"]["dev"]])
        # What is read off the module is of the model that is reported, the one chosen on dev.
        for module in model:
            if isinstance(module, LayerMix):
                found["layers"] = module.report()
            if isinstance(module, SpanPooling):
                looked_at = draw_texts(self.corpus, self.place.data, tables.SHARPNESS_TEXTS)
                explanations = [explain_text(model, text, 1) for text in looked_at]
                found["sharpness"] = mean(explanation.sharpness for explanation in explanations)
                found["heaviest"] = [heaviest(explanation) for explanation in explanations]
        return found

    def _train(
        self, row: Row, seed: int, model: SentenceTransformer
    ) -> tuple[list[dict[str, float]], dict[int, State]]:
        """Train the rows that lead to a row, which several may share, and then itself."""
        log: list[dict[str, float]] = []
        states: dict[int, State] = {}
        # In memory, not on disk: a row that starts from another is made in the same process or trains it again.
        for step in self.chain(row):
            key = (step.name, seed)
            if step.method == "none":
                continue
            if step is row or key not in self.starts:
                log, states = train(self, step, seed, model)
                if any(other.start == step.name for other in self.rows):
                    self.starts[key] = states[choose(log, "dev")]
            if step is not row:
                model.load_state_dict(self.starts[key])
        return log, states

    def summary(self, record: Record) -> str:
        """Return what the terminal shows of a new record."""
        return f"{super().summary(record)}, dev {[round(entry['dev'], 4) for entry in record['log']]}"

    def page(self, results: Results, folder: Path) -> Page:
        """Return the main table, what choosing a checkpoint costs, and the picture of pairs of views."""
        found = study.by_row(results)
        first = next(iter(found.values()))[0]
        lines = [f"# {self.title}", "", tables.INTRODUCTION.format(dev=self.dev_task), ""]
        lines += [*tables.main_table(self, found), ""]
        lines += section("Choosing a checkpoint", tables.CHOOSING, tables.rules_table(self, found))
        lines += [*tables.sharpness_table(found), *heaviest_section(found)]
        picture = tables.views_picture(self, found)
        if picture:
            lines += ["## Pairs of views", "", "![Spearman of each pair of views](views.svg)", ""]
        lines += [self.notes, "", study.stamp(first), ""]
        return lines, {"views.svg": picture} if picture else {}


def _scores(result: SuiteResult) -> Record:
    """Shorten a result to scores by task, the average with its interval, and its distance to the floor."""
    average = result.average["spearman_all"]
    short: Record = {
        "tasks": {task.name: task.spearman["all"].value for task in result.tasks},
        "average": [average.value, average.low, average.high],
    }
    if result.floor is not None:
        for key, found in (("above_raw", result.floor.above_raw), ("above_whitened", result.floor.above_whitened)):
            above = found["avg"]
            short[key] = {"value": above.value, "low": above.low, "high": above.high, "verdict": above.verdict}
        short["floor"] = [result.floor.raw["avg"].value, result.floor.whitened["avg"].value]
    return short
