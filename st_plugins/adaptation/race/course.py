"""The course of a race: entry after entry under a budget, each kept as soon as it is done."""

from __future__ import annotations

import functools
import json
import logging
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from st_plugins.adaptation.adapted import Tried
from st_plugins.adaptation.race import gate
from st_plugins.adaptation.race.budget import Budget, cost, plan
from st_plugins.adaptation.race.entries import GIVEN, Entry, entries
from st_plugins.adaptation.race.labeled import LabeledJudge
from st_plugins.adaptation.race.race import Race, timed
from st_plugins.core.loading.files import read_object
from st_plugins.core.nonfinite import NonFiniteLossError
from st_plugins.core.writing.checkpoints import CheckpointFolder
from st_plugins.evaluation.result import Difference
from st_plugins.io import load_sentence_transformer

logger = logging.getLogger(__name__)

_TRIED, _BEST = "tried.json", "best"
_TIMED = 3  # batches by which the time of one is measured


@dataclass
class Course:
    """What has been tried, and the best of it."""

    race: Race
    budget: Budget
    judge: LabeledJudge | None = None
    checkpoints: CheckpointFolder | None = None
    tried: list[Tried] = field(default_factory=list)
    batches: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # what each entry may take
    best: SentenceTransformer | None = None
    chosen: str = GIVEN

    def run(self, show_progress_bar: bool | None, *, resume: bool, overwrite: bool) -> None:
        """Try all entries that there is time for."""
        wanted = entries()
        if self.checkpoints is not None:
            start = self.checkpoints.open(resume=resume, overwrite=overwrite)
            if start is not None:
                self._restore(start)
        try:
            if not self.seconds:
                self._plan(wanted)
            self.race.schedule = replace(self.race.schedule, batches=max(self.batches, 1))
            todo = [entry for entry in wanted if entry.name not in {one.name for one in self.tried}]
            hidden = None if show_progress_bar is None else not show_progress_bar
            steps = {entry: self.batches if cost(entry) and self._eligible(entry) else 1 for entry in wanted}
            total = sum(steps.values())
            done = total - sum(steps[entry] for entry in todo)
            with tqdm(total=total, initial=done, unit="batches", disable=hidden) as bar:
                for entry in todo:
                    bar.set_description(f"{entry.name} ({len(self.tried) + 1} of {len(wanted)})")
                    before = bar.n
                    self._try(entry, len(wanted), bar)
                    bar.update(before + steps[entry] - bar.n)
                    self._keep()
        except BaseException:  # Ctrl-C, too
            if self.checkpoints is not None:
                self.checkpoints.keep_if_useful()
            raise

    @property
    def reason(self) -> str:
        """Why the best was taken, or nothing was."""
        ran = sum(not one.out for one in self.tried)
        late = sum(one.out == _LATE for one in self.tried)
        missing = f" For {late} more there was no time; give a larger budget." if late else ""
        failed = sum(one.out not in ("", _LATE, *gate.REFUSALS) for one in self.tried)
        if not ran and (failed or late):
            why = f" {failed} failed, each for the reason beside it." if failed else ""
            return f"None of the ways could be tried.{why}{missing}"
        if self.chosen == GIVEN:
            if self.judge:
                return f"Of {ran} ways that were tried none is better on the labelled pairs beyond chance.{missing}"
            if not len(self.race.seen.copies):
                return f"The texts are too short to judge {ran} ways by: few or none have four words.{missing}"
            return (
                f"Of {ran} ways that were tried none is better on the texts held out beyond chance, as far as that "
                f"can be told without labels; labelled pairs of your own, if you have some, can tell more.{missing}"
            )
        one = next(one for one in self.tried if one.name == self.chosen)
        if one.labeled is not None:
            gain = one.labeled
            return (
                f"Spearman on the labelled pairs is {100 * gain.value:+.2f} points [{100 * gain.low:+.2f}, "
                f"{100 * gain.high:+.2f}] from the given model's, the best of {ran} ways, all counted.{missing}"
            )
        return f"{gate.reason(one.seen)}{missing}"

    def _plan(self, wanted: list[Entry]) -> None:
        _, per_look = timed(lambda: self.race.look(self.race.given))
        whole = self.race.schedule
        self.race.schedule = replace(whole, batches=_TIMED)
        per_batch = 0.0
        wanted = [entry for entry in wanted if self._eligible(entry)]
        for trial in (entry for entry in wanted if entry.loss):
            try:
                _, seconds = timed(functools.partial(self.race.run, trial))
            except Exception as error:  # it drops out by name when its turn comes
                logger.debug("%s takes no time: %s", trial.name, error)
            else:
                per_batch = seconds / _TIMED / cost(trial)
                break
        self.race.schedule = whole
        self.batches, self.seconds = plan(wanted, whole.batches, self.budget, per_batch, per_look)
        if self.batches < whole.batches:
            logger.info("the budget allows %d batches of each training instead of %d", self.batches, whole.batches)

    def _try(self, entry: Entry, wanted: int, bar: Any) -> None:
        if not self._eligible(entry):
            why = gate.RULE.refusal(entry, self.race.seen.strange)
            self.tried.append(Tried(entry.name, None, {}, None, 0.0, why))
            return
        if entry.name not in self.seconds or self.budget.left < 0.5 * self.seconds[entry.name]:
            self.tried.append(Tried(entry.name, None, {}, None, 0.0, _LATE))
            return
        try:
            model, seconds = timed(lambda: self.race.run(entry, bar.update))
            seen = self.race.look(model)
            labeled = None if self.judge is None else self.judge.gain(model, wanted)
        except Exception as error:  # whatever goes wrong with one entry need not go wrong with others
            logger.warning("%s is out of the race: %s", entry.name, error)
            self.tried.append(Tried(entry.name, None, {}, None, 0.0, _brief(error)))
            return
        if labeled is None:
            score = gate.RULE.score(seen, entry)
        else:
            score = gate.labeled_score(labeled)
        best = max((one.score or 0.0 for one in self.tried), default=0.0)
        self.tried.append(Tried(entry.name, score, seen, labeled, seconds))
        if score > max(best, 0.0):
            self.best, self.chosen = model, entry.name

    def _eligible(self, entry: Entry) -> bool:
        """Return whether it could be taken at all: what could not need not be made."""
        return self.judge is not None or not gate.RULE.refusal(entry, self.race.seen.strange)

    def _keep(self) -> None:
        if self.checkpoints is None:
            return
        state = {
            "tried": [asdict(one) for one in self.tried],
            "batches": self.batches,
            "seconds": self.seconds,
            "spent": self.budget.used,
            "chosen": self.chosen,
        }
        with self.checkpoints.writing(len(self.tried)) as folder:
            Path(folder, _TRIED).write_text(json.dumps(state), encoding="utf-8")
            if self.best is not None:
                self.best.save(str(folder / _BEST), create_model_card=False)

    def _restore(self, start: Path) -> None:
        state = read_object(start / _TRIED)
        for one in state["tried"]:
            labeled = None if one["labeled"] is None else Difference(**one["labeled"])
            self.tried.append(Tried(**{**one, "labeled": labeled}))
        self.batches, self.seconds, self.chosen = state["batches"], state["seconds"], state["chosen"]
        self.budget.spent = state["spent"]
        if self.chosen != GIVEN:
            self.best = load_sentence_transformer(start / _BEST, str(self.race.given.device)).eval()
            self.best.truncate_dim = self.race.given.truncate_dim  # which no folder holds


_LATE = "the budget was spent"
# The folders of an absolute path, but not of an address on the web.
_FOLDERS = re.compile(r"(?<![\w/.:])(?:~|[A-Za-z]:)?[\\/](?:[^\s'\"\\/]+[\\/])+")


def _brief(error: BaseException) -> str:
    """Say in a line what went wrong, for the card too: without texts of the batch, and paths of the machine."""
    said = error.what if isinstance(error, NonFiniteLossError) else str(error)
    return _FOLDERS.sub("", (said.strip() or type(error).__name__).splitlines()[0])
