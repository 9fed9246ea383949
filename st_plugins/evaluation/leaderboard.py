"""The public leaderboard's (MTEB) result files: read those of others, and write ours in the same layout.

One JSON file a task. Since release 1.11 it has ``task_name`` and ``scores``, per split a list with one object for each
subset; before, ``mteb_dataset_name`` and the splits beside it. Both are read; the newer one is written.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_plugins.core.writing.atomic import Target, file_target
from st_plugins.data.tasks import TASKS
from st_plugins.evaluation.result import Score, SuiteResult
from st_plugins.evaluation.task_result import TasksResult
from st_plugins.report.table import Table, percent
from st_plugins.report.terminal import shown

logger = logging.getLogger(__name__)

# The leaderboard's names of the tasks whose test pairs are the same; `sickr`, half of its SICK-R, is not among them.
_NAMES = {
    "sts12": "STS12",
    "sts13": "STS13",
    "sts14": "STS14",
    "sts15": "STS15",
    "sts16": "STS16",
    "stsb": "STSBenchmark",
    "sickr_all": "SICK-R",
    "atec": "ATEC",
    "bq": "BQ",
    "lcqmc": "LCQMC",
    "pawsx": "PAWSX",
    "stsb_zh": "STSB",
}
_SICK = "its SICK-R is all pairs, which are the task sickr_all here"
_MARK = b'"dataset_revision": "",'  # of no file that the leaderboard wrote itself
_LANGUAGES = {"en": "eng-Latn", "zh": "cmn-Hans"}
_UNKNOWN_LANGUAGE = "und"  # so ISO 639 calls it; with an empty list the leaderboard's reader finds no score
_SIMILARITIES = {"cos_sim": "cosine", "cosine": "cosine", "dot": "dot", "euclidean": "euclidean",
                 "manhattan": "manhattan", "max": "max", "similarity": "similarity"}  # fmt: skip
_SHORT = {"average_precision": "ap"}
_NO_METRICS = ("evaluation_time", "mteb_version", "hf_subset", "languages")


@dataclass(frozen=True)
class _Entry:
    """One task as the leaderboard has it."""

    name: str
    split: str
    language: str
    main: str
    scores: dict[str, Score]

    def to_json(self, confidence: float) -> str:
        """Return the content of its file."""
        scores: dict[str, Any] = {key: _number(score.value) for key, score in self.scores.items()}
        intervals = {
            key: [score.low, score.high] for key, score in self.scores.items() if math.isfinite(score.high - score.low)
        }
        main = scores.get(self.main)
        if main is None:
            logger.warning("%s: no %s, which the leaderboard ranks by; main_score is null", self.name, self.main)
        scores |= {"main_score": main, "hf_subset": "default", "languages": [self.language]}
        if intervals:
            scores["intervals"] = {"confidence": confidence, **intervals}
        # What is not known is null, or empty where the leaderboard asks for text: never made up.
        content = {
            "dataset_revision": "",
            "task_name": self.name,
            "mteb_version": None,
            "scores": {self.split: [scores]},
            "evaluation_time": None,
            "kg_co2_emissions": None,
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"


def leaderboard_scores(result: SuiteResult | TasksResult) -> dict[str, dict[str, float]]:
    """Return a result under the leaderboard's names of tasks and metrics.

    Args:
        result: What an evaluation found.

    Returns:
        Per task its scores, as :func:`read_leaderboard` returns those of others.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.evaluation import STSSuiteEvaluator
        >>> evaluator = STSSuiteEvaluator.from_pairs(["a dog", "a cat", "a man"], ["dogs", "a boat", "men"], [4, 1, 3])
        >>> scores = leaderboard_scores(evaluator.evaluate(untrained_encoder()))
        >>> list(scores), sorted(scores["pairs"])
        (['pairs'], ['cosine_pearson', 'cosine_spearman'])
    """
    return {entry.name: {key: score.value for key, score in entry.scores.items()} for entry in _entries(result)}


def write_leaderboard(
    result: SuiteResult | TasksResult, folder: str | Path | Sequence[Target], *, overwrite: bool = False
) -> list[Path]:
    """Write a result as the leaderboard does: one JSON file a task.

    A task has the leaderboard's name only if its data are the leaderboard's: ``sickr``, the test pairs of SICK, stays
    ``sickr``, since SICK-R on the leaderboard is all pairs (``sickr_all``). Own tasks have their own names. What is
    not known (revision of the data, time) is left empty. Intervals stand in ``intervals``, which its reader ignores.
    The main score of pair classification is ``cosine_ap``, where the leaderboard takes the best of several
    similarities.

    Args:
        result: What an evaluation found.
        folder: Where to write, created when it is missing; or what `leaderboard_targets` said of it earlier.
        overwrite: Whether files that this wrote earlier may be replaced.

    Returns:
        The paths of the files.

    Raises:
        FileExistsError: There is such a file and ``overwrite`` is false, or one that is none of ours.
        OSError: The folder cannot be written to.
        ValueError: The name of a task cannot be that of a file.

    Example:
        >>> import tempfile
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.evaluation import STSSuiteEvaluator
        >>> evaluator = STSSuiteEvaluator.from_pairs(["a dog", "a cat", "a man"], ["dogs", "a boat", "men"], [4, 1, 3])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = write_leaderboard(evaluator.evaluate(untrained_encoder()), Path(folder, "mine"))
        >>> [file.name for file in files]
        ['pairs.json']
    """
    entries = list(_entries(result))
    if isinstance(folder, str | Path):
        targets = leaderboard_targets([entry.name for entry in entries], folder, overwrite=overwrite)
    else:
        targets = list(folder)
    texts = [entry.to_json(float(result.settings["confidence"])) for entry in entries]
    with contextlib.ExitStack() as stack:
        for target, text in zip(targets, texts, strict=True):
            stack.enter_context(target.write()).write_bytes(text.encode())
    for entry in entries:
        if entry.name in TASKS:
            why = _SICK if entry.name == "sickr" else "it has no task with these pairs"
            logger.warning("%s is written under its own name, not one of the leaderboard: %s", entry.name, why)
    return [target.path for target in targets]


def leaderboard_targets(
    tasks: Iterable[str],
    folder: str | Path,
    *,
    name: str = "folder",
    overwrite: bool = False,
    inputs: Iterable[str | Path | None] = (),
) -> list[Target]:
    """Look whether the files of these tasks can be written, before the evaluation is computed."""
    # Not a folder in one step: the mark of such a folder is JSON too, and the leaderboard reads every JSON in it.
    read, targets = list(inputs), []
    for task in tasks:
        if Path(task).name != task:
            raise ValueError(f"the task {task!r} cannot be the name of a file; give it another name")
        path = Path(folder, f"{task}.json")
        targets.append(file_target(path, name=name, overwrite=overwrite, inputs=read, mark=_MARK))
    return targets


def read_leaderboard(path: str | Path, split: str = "test") -> dict[str, dict[str, float]]:
    r"""Read result files of the public leaderboard, of the newer and of the older layout.

    Args:
        path: A JSON file, or a folder with such files of one model, at any depth; others in it are passed over.
        split: The split to read of each task, where it has several.

    Returns:
        Per task its scores by name, such as ``cosine_spearman`` or ``ndcg_at_10``, as fractions of 1. A subset that is
        not the default, such as a language, is a task of its own: ``"STS22 (de)"``.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: There is no result file, two are of one task, or a task has several splits and not this one.

    Example:
        >>> import tempfile
        >>> scores = {"cosine_spearman": 0.72, "main_score": 0.72, "hf_subset": "default", "languages": ["eng-Latn"]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "STS12.json")
        ...     _ = path.write_text(json.dumps({"task_name": "STS12", "scores": {"test": [scores]}}))
        ...     read_leaderboard(path)
        {'STS12': {'cosine_spearman': 0.72, 'main_score': 0.72}}
    """
    path = Path(path).expanduser()
    found: dict[str, dict[str, float]] = {}
    files: dict[str, Path] = {}
    for file, content in _results(path):
        try:
            task, splits = _splits(content)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{file}: its scores are not laid out as the leaderboard's are ({error})") from None
        if split not in splits and len(splits) != 1:
            raise ValueError(f"{file}: {task} has the splits {', '.join(splits)}; choose one with split=")
        for subset, scores in splits.get(split, next(iter(splits.values()))).items():
            name = task if subset == "default" else f"{task} ({subset})"
            if name in found:
                raise ValueError(f"{file}: {name} is also in {files[name]}; name the folder of one model")
            found[name], files[name] = _flat(scores), file
    if not found:
        raise ValueError(f"{path}: no result file of the leaderboard: JSON with task_name and scores")
    return found


def is_leaderboard(path: str | Path) -> bool:
    """Return whether a path is a result file of the leaderboard, or a folder that holds one, and no model."""
    path = Path(path).expanduser()
    # A folder of a model may hold anything, and large files.
    if not path.exists() or any((path / file).exists() for file in ("result.json", "modules.json", "config.json")):
        return False
    with contextlib.suppress(ValueError):
        return next(_results(path), None) is not None
    return False


def leaderboard_table(
    first: Mapping[str, Mapping[str, float]], second: Mapping[str, Mapping[str, float]], names: tuple[str, str]
) -> Table:
    """Lay two sets of scores side by side: those that both have, and the difference B - A."""
    rows = []
    for task in first:
        both = [metric for metric in first[task] if metric in second.get(task, {})]
        # The main score is one of the others, unless a file has no other.
        for metric in [metric for metric in both if metric != "main_score"] or both:
            a, b = first[task][metric], second[task][metric]
            rows.append([task, metric, percent(a), percent(b), percent(b - a, sign=True)])
    if not rows:
        raise ValueError(
            f"no task and metric is in both: {names[0]} has {_listed(first)}, {names[1]} {_listed(second)}"
        )
    alone = [f"only in {side}: {_listed(extra)}. " for side, one, other in (("A", first, second), ("B", second, first))
             if (extra := [task for task in one if task not in other])]  # fmt: skip
    note = (
        f"{''.join(alone)}The leaderboard has no scores of single pairs, queries or texts, so that whether a "
        "difference is one cannot be tested."
    )
    title = f"A = {shown(names[0])}\nB = {shown(names[1])}\nScores x 100"
    return Table(title, ["task", "metric", "A", "B", "B - A"], rows, note, words=["metric"])


def leaderboard_name(name: str, title: str, pairs: int, split: str) -> tuple[str, str, str]:
    """Return name, split and language of STS pairs on the leaderboard; their own name where they are others."""
    known = TASKS.get(name)
    if known is None or known.title != title:
        return name, "test", _UNKNOWN_LANGUAGE
    same = name in _NAMES and pairs == known.split(split).rows
    return _NAMES[name] if same else name, known.hub.splits.get(split, split), _LANGUAGES[known.language]


def _entries(result: SuiteResult | TasksResult) -> Iterator[_Entry]:
    """Give the tasks of a result under the leaderboard's names."""
    if isinstance(result, TasksResult):
        for task in result.tasks:
            scores, main = task.scores, task.main
            if task.kind == "pair classification":
                by = f"{task.settings['similarity']}_"
                scores = {by + _SHORT.get(name, name): score for name, score in task.scores.items()}
                main = "cosine_ap"
            yield _Entry(task.name, "test", _UNKNOWN_LANGUAGE, main, scores)
        return
    similarity = result.settings["similarity"]
    for pairs in result.tasks:
        scores = {f"{similarity}_{kind}": getattr(pairs, kind)["all"] for kind in ("spearman", "pearson")}
        named = leaderboard_name(pairs.name, pairs.title, pairs.pairs, str(result.settings["split"]))
        yield _Entry(*named, "cosine_spearman", scores)


def _results(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Give the result files at a path and what they hold."""
    if not path.exists():
        raise FileNotFoundError(
            f"leaderboard results {str(path)!r} do not exist; give a JSON file, or a folder of them"
        )
    for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            if path.is_dir():  # one that is for something else
                continue
            raise ValueError(f"{file}: not a result file of the leaderboard: {error}") from None
        if isinstance(content, dict) and ({"task_name", "scores"} <= content.keys() or "mteb_dataset_name" in content):
            yield file, content


def _splits(content: dict[str, Any]) -> tuple[str, dict[str, dict[str, dict[str, Any]]]]:
    """Return the name of a task, and its scores per split and subset."""
    if "task_name" in content:
        named = {
            split: {str(scores.get("hf_subset", "default")): scores for scores in subsets}
            for split, subsets in content["scores"].items()
        }
        return str(content["task_name"]), named
    splits = {}
    for split, scores in content.items():
        if isinstance(scores, dict):
            inner = {key: value for key, value in scores.items() if isinstance(value, dict)}
            subsets = {key: value for key, value in inner.items() if key not in _SIMILARITIES}
            splits[split] = subsets or {"default": scores}
    return str(content["mteb_dataset_name"]), splits


def _flat(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among scores; those that older files have per similarity under the newer names."""
    found: dict[str, float] = {}
    for key, value in scores.items():
        if isinstance(value, dict) and key in _SIMILARITIES:
            found |= {f"{_SIMILARITIES[key]}_{inner}": one for inner, one in _flat(value).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool) and key not in _NO_METRICS:
            found[key] = float(value)
    return found


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _listed(names: Mapping[str, Any] | list[str]) -> str:
    found = list(names)
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
