from __future__ import annotations

import base64
import csv
import math
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from st_plugins.evaluation import report
from st_plugins.evaluation.pages.figures import MAX_POINTS
from st_plugins.evaluation.report import html, markdown, write_reports
from st_plugins.evaluation.result import Difference, FloorResult, Score, SuiteResult, TaskResult

KINDS = ("all", "mean", "wmean")
FILES = ["report.html", "result.csv", "result.json", "result.md"]


def _task(name: str, generator: np.random.Generator, pairs: int = 30) -> TaskResult:
    def score() -> Score:
        value = float(generator.uniform(-0.2, 0.9))
        return Score(value, value - 0.0213, value + 0.0187)

    gold = generator.uniform(0, 5, pairs)
    return TaskResult(
        name=name,
        title=name.upper(),
        pairs=pairs,
        spearman={kind: score() for kind in KINDS},
        pearson={kind: score() for kind in KINDS},
        subsets={
            part: {"pairs": pairs // 2, "spearman": score().value, "pearson": score().value} for part in ("x", "y")
        },
        checksum=f"checksum-of-{name}",
        source=f"source of {name}",
        gold=gold.tolist(),
        similarities=(gold / 5 + generator.normal(0, 0.3, pairs)).tolist(),
    )


def _result(**changes: Any) -> SuiteResult:
    generator = np.random.default_rng(0)
    tasks = [_task(name, generator) for name in ("sts12", "sickr")]
    average = {
        f"{metric}_{kind}": Score(float(np.mean([getattr(task, metric)[kind].value for task in tasks])), 0.1, 0.9)
        for metric in ("spearman", "pearson")
        for kind in KINDS
    }
    keys = ["sts12", "sickr", "avg"]
    floor = FloorResult(
        raw={key: Score(0.4, 0.38, 0.42) for key in keys},
        whitened={key: Score(0.5, 0.48, 0.52) for key in keys},
        above_raw={key: Difference(0.1, 0.05, 0.15, 0.001, "better") for key in keys},
        above_whitened={key: Difference(-0.0712, -0.0912, -0.0512, 0.002, "worse") for key in keys},
        dimension=16,
        whitened_on="the 60 evaluated sentences",
    )
    result = SuiteResult(
        model={
            "name": "tiny",
            "modules": [{"type": "x.y.Pooling", "config": {"pooling_mode": "mean"}}],
            "dimension": 16,
            "pooling": "mean",
        },
        settings={"similarity": "cosine", "confidence": 0.95, "bootstrap_samples": 1000, "seed": 0},
        tasks=tasks,
        average=average,
        floor=floor,
        geometry={"isoscore": 0.25, "new_measure": 3.5, "spectrum": [4.0, 1.0, 0.25, 0.0]},
        versions={"st-plugins": "0.1.0", "torch": "2.13.0"},
        warnings=["STS12: one sentence is empty"],
    )
    return replace(result, **changes)


def _comparable(value: Any) -> Any:
    """Replace NaN, which differs from itself, by a word."""
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    return [_comparable(item) for item in value] if isinstance(value, list) else value


def _undefined() -> SuiteResult:
    """A result whose second task has constant gold scores."""
    result = _result()
    task = result.tasks[1]
    task.spearman = dict.fromkeys(KINDS, Score(math.nan))
    task.pearson = dict.fromkeys(KINDS, Score(math.nan))
    task.subsets["y"] = {"pairs": 15, "spearman": math.nan, "pearson": math.nan}
    task.gold = [1.0] * task.pairs
    result.average = dict.fromkeys(result.average, Score(math.nan))
    assert result.floor is not None
    for name in ("sickr", "avg"):
        result.floor.raw[name] = result.floor.whitened[name] = Score(math.nan)
        nothing = Difference(math.nan, math.nan, math.nan, math.nan, "undefined")
        result.floor.above_raw[name] = result.floor.above_whitened[name] = nothing
    result.geometry["isoscore"] = math.nan
    return result


def _markdown_rows(text: str, title: str) -> dict[str, list[str]]:
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in cells}


def _printed(score: Score) -> str:
    return f"{100 * score.value:.2f} [{100 * score.low:.1f}, {100 * score.high:.1f}]"


@pytest.mark.parametrize("result", [_result(), _undefined()], ids=["defined", "undefined"])
def test_json_round_trip(result: SuiteResult, tmp_path: Path) -> None:
    paths = write_reports(result, tmp_path / "new" / "folder")
    assert sorted(path.name for path in paths) == FILES
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == FILES
    again = SuiteResult.read(paths[0])
    assert _comparable(asdict(again)) == _comparable(asdict(result))
    write_reports(again, tmp_path / "again")
    for path in paths:
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_markdown_numbers() -> None:
    result = _result()
    text = markdown(result)
    main = _markdown_rows(text, "Scores and the floor")
    assert main["System"] == ["STS12", "SICKR", "Avg."]
    scores = [task.spearman["all"] for task in result.tasks] + [result.average["spearman_all"]]
    assert main["tiny"] == [_printed(score) for score in scores]
    assert main["floor, raw"] == ["40.00 [38.0, 42.0]"] * 3
    assert main["floor, whitened"] == ["50.00 [48.0, 52.0]"] * 3
    assert main["above the raw floor"] == ["+10.00 [5.0, 15.0] better"] * 3
    assert main["above the whitened floor"] == ["-7.12 [-9.1, -5.1] worse"] * 3
    assert "7.12 [5.1, 9.1] below the whitened floor: worse" in text
    for metric in ("spearman", "pearson"):
        rows = _markdown_rows(text, f"{metric.capitalize()} under the three conventions")
        for kind in KINDS:
            row = next(cells for name, cells in rows.items() if name.split()[0] == kind)
            scores = [getattr(task, metric)[kind] for task in result.tasks] + [result.average[f"{metric}_{kind}"]]
            assert row == [_printed(score) for score in scores]
    subsets = [line for line in text.splitlines() if re.match(r"\| (STS12|SICKR) \| [xy] \|", line)]
    expected = [
        f"| {task.title} | {name} | 15 | {100 * part['spearman']:.2f} | {100 * part['pearson']:.2f} |"
        for task in result.tasks
        for name, part in task.subsets.items()
    ]
    assert subsets == expected
    geometry = _markdown_rows(text, "Geometry")
    assert geometry["isoscore"][0] == "0.25"
    assert geometry["new measure"] == ["3.5", ""]
    assert geometry["spectrum"][0] == "4, 1, 0.25, 0"
    assert _markdown_rows(text, "Provenance")["STS12"] == ["30", "source of sts12", "checksum-of-sts12"]
    assert "STS12: one sentence is empty" in text
    assert "torch 2.13.0" in text


def test_csv_numbers(tmp_path: Path) -> None:
    result = _result()
    write_reports(result, tmp_path)
    with (tmp_path / "result.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["system"], row["task"], row["subset"]): row for row in csv.DictReader(file)}
    assert len(rows) == 2 * 2 + 2 + 1 + 4 * 3  # sub-datasets, tasks, average, floor
    for task in result.tasks:
        for metric in ("spearman", "pearson"):
            for kind in KINDS:
                score, row = getattr(task, metric)[kind], rows["model", task.name, ""]
                found = tuple(float(row[f"{metric}_{kind}{end}"]) for end in ("", "_low", "_high"))
                assert found == (score.value, score.low, score.high)
                average = result.average[f"{metric}_{kind}"]
                assert float(rows["model", "avg", ""][f"{metric}_{kind}"]) == average.value
            for name, part in task.subsets.items():
                row = rows["model", task.name, name]
                assert float(row[f"{metric}_all"]) == part[metric]
                assert (row[f"{metric}_mean"], row["pairs"]) == ("", "15")
    assert float(rows["floor whitened", "sickr", ""]["spearman_all_low"]) == 0.48
    above = rows["above floor whitened", "avg", ""]
    assert (float(above["spearman_all"]), float(above["p_value"]), above["verdict"]) == (-0.0712, 0.002, "worse")


@pytest.mark.filterwarnings("error")
def test_nan_is_undefined_never_zero(tmp_path: Path) -> None:
    result = _undefined()
    text = markdown(result)
    main = _markdown_rows(text, "Scores and the floor")
    assert main["tiny"][1:] == ["undefined", "undefined"]
    assert main["above the raw floor"][1:] == ["undefined"] * 2
    assert _markdown_rows(text, "Geometry")["isoscore"][0] == "undefined"
    assert not re.search(r"(?<!\d)[+-]?0\.0", text)
    page = html(result)
    assert page.count("undefined") > 20
    assert ">nan" not in page
    write_reports(result, tmp_path)
    with (tmp_path / "result.csv").open(encoding="utf-8", newline="") as file:
        undefined = [row for row in csv.DictReader(file) if row["spearman_all"] == "nan"]
    assert {(row["system"], row["task"]) for row in undefined} >= {("model", "sickr"), ("model", "avg")}


def test_html_stands_alone() -> None:
    page = html(_result())
    assert not re.search(r"https?:", page)
    assert "<script" not in page
    assert not re.search(r"url\(|@import", page)
    images = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]+)"', page)
    assert len(images) == page.count("<img") == 5  # bars, histogram, spectrum, two scatters
    for code, _ in images:
        svg = base64.b64decode(code).decode("utf-8")
        assert svg.startswith("<svg") and "currentColor" in svg
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in re.findall(r'href="([^"]*)"', svg))
    assert f"SICKR {100 * _result().tasks[1].spearman['all'].value:.2f}" in images[0][1]


def test_html_shows_the_same_numbers() -> None:
    result = _result()
    cells = re.sub(r"<[^>]+>", " ", html(result))
    for task in result.tasks:
        for kind in KINDS:
            for score in (task.spearman[kind], task.pearson[kind]):
                interval = rf"\[{100 * score.low:.1f}, {100 * score.high:.1f}\]"
                assert re.search(rf"(?<!\d){100 * score.value:.2f}\s+{interval}", cells)
    assert re.search(r"-7\.12\s+\[-9\.1, -5\.1\]\s+worse", cells)


def test_names_are_escaped() -> None:
    result = _result()
    result.model["name"] = "<b>x</b> | [a](b) `c`"
    result.tasks[0].title = '<i>"$T$"</i>'
    result.warnings = ["<script>alert(1)</script>"]
    page = html(result)
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert all(tag not in page for tag in ("<b>", "<i>", "<script"))
    text = markdown(result)
    assert r"&lt;b>x&lt;/b> \| [a]\(b) \`c\`" in text
    assert all(tag not in text for tag in ("<b>", "<i>", "<script"))
    assert all(len(row) == 3 for row in _markdown_rows(text, "Scores and the floor").values())


@pytest.mark.parametrize("shown", [True, False])
def test_banner(shown: bool) -> None:
    result = _result()
    banner = "This is a miniature world; it proves nothing about English."
    result.settings |= {"banner": banner} if shown else {}
    assert (banner in html(result), banner in markdown(result)) == (shown, shown)


def test_many_pairs_stay_small() -> None:
    generator = np.random.default_rng(1)
    result = _result(tasks=[_task(name, generator, 20_000) for name in ("sts12", "sickr")])
    page = html(result)
    assert f"{MAX_POINTS:,} of 20,000 pairs drawn" in page
    assert len(page) < 500_000


def test_reruns_are_identical_and_leave_the_users_style_alone() -> None:
    import matplotlib

    first = html(_result())
    with matplotlib.rc_context({"font.size": 31.0, "axes.linewidth": 9.0}):
        assert html(_result()) == first
        assert matplotlib.rcParams["font.size"] == 31.0
    assert markdown(_result()) == markdown(_result())
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_reports(_result(), tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'pip install "st-plugins[report]"' in page
    assert "<img" not in page and "Scores and the floor" in page


def test_without_floor_similarities_and_geometry() -> None:
    result = _result(floor=None, geometry={}, warnings=[])
    for task in result.tasks:
        task.gold = task.similarities = None
    page, text = html(result), markdown(result)
    assert page.count("<img") == 1
    assert "does not hold the similarities" in page
    assert "The floor was not scored" in text
    assert "## Geometry" not in text and "## Warnings" not in text
    assert list(_markdown_rows(text, "Scores and the floor")) == ["System", "---", "tiny"]


def test_what_was_fitted_on_which_texts_is_said() -> None:
    result = _result()
    assert "whitened on the 60 evaluated sentences. Those are the test texts" in markdown(result)
    assert "The model holds no whitening" in markdown(result)
    result.model["modules"].append({"type": "a.Whitening", "config": {}, "sources": {"news": 2000}})
    result.geometry["fit_kl_divergence"] = math.inf
    text = markdown(result)
    assert "a whitening fitted on news (2,000 texts)" in text
    assert 'the published "target" setting' in text
    assert _markdown_rows(text, "Geometry")["fit kl divergence"][0] == "infinite"


@pytest.mark.filterwarnings("error")
def test_the_smallest_and_oddest_result_is_drawn() -> None:
    task = _task("一\x07$x_", np.random.default_rng(0), 1)
    task.similarities = [0.5]
    page = html(_result(tasks=[task], floor=None, geometry={"spectrum": [1.0, 1.0, 0.0]}))
    assert page.count("<img") == 4
    constant = html(_result(tasks=[replace(task, similarities=[math.nan])], floor=None, geometry={"spectrum": [0.0]}))
    assert constant.count("<img") == 1


def test_without_bootstrap_there_are_no_brackets() -> None:
    result = _result(floor=None)
    result.settings["bootstrap_samples"] = 0
    result.tasks[0].spearman["all"] = Score(0.5)
    text = markdown(result)
    assert _markdown_rows(text, "Scores and the floor")["tiny"][0] == "50.00"
    assert "bootstrap intervals" not in text


@pytest.mark.parametrize("below", ["", "sub/folder"])
def test_a_file_in_place_of_the_folder(below: str, tmp_path: Path) -> None:
    file = tmp_path / "taken"
    file.write_text("mine", encoding="utf-8")
    folder = file / below
    with pytest.raises(OSError, match=re.escape(f"folder {str(folder / 'result.json')!r} cannot be written")):
        write_reports(_result(), folder)
    assert file.read_text(encoding="utf-8") == "mine"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failure_leaves_nothing_half_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_reports(_result(), tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}

    def broken(result: SuiteResult) -> str:
        raise RuntimeError("no page today")

    monkeypatch.setattr(report, "html", broken)
    changed = _result(warnings=["changed"])
    for folder in ("old", "new"):
        with pytest.raises(RuntimeError, match="no page today"):
            write_reports(changed, tmp_path / folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before
    assert not (tmp_path / "new").exists()


def test_overwrite(tmp_path: Path) -> None:
    write_reports(_result(), tmp_path)
    with pytest.raises(FileExistsError, match=r"folder '.*result\.json' exists; choose another file or overwrite"):
        write_reports(_result(warnings=["second"]), tmp_path)
    assert SuiteResult.read(tmp_path).warnings == ["STS12: one sentence is empty"]
    write_reports(_result(warnings=["second"]), tmp_path, overwrite=True)
    assert SuiteResult.read(tmp_path).warnings == ["second"]
