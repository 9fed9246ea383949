"""What all studies share: command line, folders, what is refused, what is kept; committed tables and records."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from evaluation.__main__ import app, run, table
from evaluation.engine import runner, study
from evaluation.engine.study import STUDIES, Page, Record, Results, read_study

RECIPES = sorted(STUDIES.glob("*/recipes/*.toml"))
MEASURED = [path for path in RECIPES if (path.parents[1] / "results" / path.stem).is_dir()]


def _name(path: Path) -> str:
    return f"{path.parents[1].name}-{path.stem}"


@dataclass(kw_only=True)
class Counting(study.Study[study.Row]):
    """A study that counts how often it has measured."""

    measured: ClassVar[list[tuple[str, int]]] = []

    def measure(self, row: study.Row, task: str, seed: int) -> Record:
        self.measured.append((row.name, seed))
        return {"count": len(self.measured)}

    def page(self, results: Results, folder: Path) -> Page:
        return [f"{row}: {len(records)}" for (_, row), records in results.items()], {"picture.svg": "<svg/>"}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mine" / "recipes" / "tiny.toml"
    path.parent.mkdir(parents=True)
    path.write_text("", encoding="utf-8")
    rows = [study.Row("a"), study.Row("b", seeds=(5,))]
    monkeypatch.setattr(runner, "read_study", lambda _: Counting(title="tiny", rows=rows, seeds=(0, 1)))
    Counting.measured.clear()
    return path


def test_records_are_kept_stamped_and_lie_beside_the_recipes(recipe: Path) -> None:
    where = {"models": recipe.parent, "data": recipe.parent}
    run(recipe, **where, device="cpu")
    folder = recipe.parents[1] / "results" / "tiny"
    assert Counting.measured == [("a", 0), ("a", 1), ("b", 5)]
    record = json.loads((folder / "b-seed5.json").read_text(encoding="utf-8"))
    assert record["row"] == {"name": "b", "seeds": [5]} and record["seed"] == 5 and record["count"] == 3
    assert (
        record["device"] == "CPU" and {"st-plugins", "machine"} <= set(record["versions"]) and record["seconds"] >= 0
    )
    assert (folder / "table.md").read_text(encoding="utf-8") == "a: 2\nb: 1"
    assert (folder / "picture.svg").is_file()
    run(recipe, **where, device="cpu")
    assert len(Counting.measured) == 3
    (folder / "a-seed1.json").unlink()  # as after an interruption
    run(recipe, **where, device="cpu")
    assert Counting.measured[3:] == [("a", 1)]
    run(recipe, **where, device="cpu", again=True, only="b")
    assert Counting.measured[4:] == [("b", 5)]


def test_a_part_that_is_no_part_is_refused(recipe: Path) -> None:
    with pytest.raises(typer.BadParameter, match="no file name has 'seed7' in it, of those that 'tiny' writes"):
        run(recipe, recipe.parent, recipe.parent, device="cpu", only="seed7")
    assert not Counting.measured


def test_a_part_of_the_work_writes_no_table(recipe: Path, tmp_path: Path) -> None:
    for part in ({"only": "seed0"}, {"shard": "0/2"}, {"dev_only": True}, {"dry_run": True}):
        run(recipe, recipe.parent, recipe.parent, results=tmp_path / "out", device="cpu", **part)  # type: ignore[arg-type]
    assert not (tmp_path / "out" / "tiny" / "table.md").exists()
    assert (tmp_path / "out" / "tiny" / "b-seed0.json").is_file()  # a dry run has seed 0 and no other
    table(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "tiny" / "table.md").is_file()


def test_a_recipe_says_which_study_it_is_of(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    for text, message in (
        ('title = "t"', r"r\.toml: there is no 'study'"),
        (
            'study = "magic"',
            r"r\.toml: recipe: study='magic' must be one of adapt, compression, contrastive, ",
        ),
        ('study = "sts"\n[[row]]\nname = "a"', r"r\.toml: .*missing 1 required positional argument: 'model'"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_study(path)


def test_options_without_meaning_are_refused(tmp_path: Path) -> None:
    sts = next(path for path in RECIPES if path.parents[1].name == "sts")
    for options, message in (
        ({"dry_run": True}, "--dry-run has no meaning for"),
        ({"dev_only": True}, "--dev-only has no meaning for"),
        ({"prepare": True}, "there is nothing to prepare"),
    ):
        with pytest.raises(typer.BadParameter, match=message):
            run(sts, tmp_path, tmp_path, **options)  # type: ignore[arg-type]


def test_the_command_line(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["table", str(RECIPES[0]), "--results", str(tmp_path)], env={"COLUMNS": "200"})
    assert shown.exit_code == 2 and "holds no result" in shown.output
    assert CliRunner().invoke(app, ["run", str(RECIPES[0])]).exit_code == 2  # no models


def test_exactness(sts_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder_folder, tmp_path / "models" / "tiny")
    path = tmp_path / "tiny.toml"
    text = 'study = "exactness"\ntitle = "tiny"\npairs = 20\n[[row]]\nname = "tiny"\nmodel = "tiny"\nmax_length = 32\n'
    path.write_text(text, encoding="utf-8")
    run(path, tmp_path / "models", sts_folder, device="cpu")
    folder = tmp_path / "results" / "tiny"
    found = json.loads((folder / "stsb-tiny-seed0.json").read_text(encoding="utf-8"))
    assert set(found["error"]) == {"mean", "mean + whitening", "span", "span + whitening"} and found["pairs"] == 20
    for name, error in found["error"].items():  # a whitening fitted to so few texts magnifies rounding
        most = 1e-2 if "whitening" in name else 1e-6
        assert 0 <= error["mean"] <= error["largest"] < most and 0 < error["views"] < most, name
    assert "| tiny | 20 of stsb | span + whitening |" in (folder / "table.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_committed_records_are_read(path: Path) -> None:
    found: Any = read_study(path)
    folder = path.parents[1] / "results" / path.stem
    files = {file.stem for file in folder.glob("*.json")}
    named = {
        found.file_name(row.name, task, seed)
        for row in found.rows
        for task in found.tasks_of(row)
        for seed in found.seeds_of(row)
    }
    assert files <= named  # nothing that no table shows
    assert sum(map(len, runner.load_results(found, folder).values())) == len(files)


@pytest.mark.parametrize("path", MEASURED, ids=_name)
def test_committed_tables_are_what_the_records_give(path: Path) -> None:
    found = read_study(path)
    folder = path.parents[1] / "results" / path.stem
    lines, _ = found.page(runner.load_results(found, folder), folder)
    assert "\n".join(lines) == (folder / "table.md").read_text(encoding="utf-8")
