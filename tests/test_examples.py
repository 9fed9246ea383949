"""The examples run as they stand: on a real encoder, offline, in a folder that holds nothing else."""

from __future__ import annotations

import ast
import base64
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# In the process of an example nothing but files and pipes can be opened.
OFFLINE = "import pytest_socket, runpy, sys; pytest_socket.disable_socket(allow_unix_socket=True); "
NUMBER = r"-?\d+\.\d+"


@pytest.fixture
def place(tmp_path: Path, real_encoder_folder: Path) -> Path:
    """Return a folder that holds the encoder under its name."""
    (tmp_path / real_encoder_folder.name).symlink_to(real_encoder_folder)
    return tmp_path


def run(script: str, place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run an example in a folder."""
    code = OFFLINE + "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(FOLDER / script), *options]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600, check=False)


def printed(script: str, place: Path, *options: str) -> str:
    """Return what an example prints."""
    done = run(script, place, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def numbers(pattern: str, text: str) -> list[float]:
    """Return the numbers that a pattern with groups finds in what was printed."""
    found = re.search(pattern, text)
    assert found is not None, text
    return [float(group) for group in found.groups()]


def test_there_are_six_scripts_and_two_notebooks() -> None:
    assert (len(SCRIPTS), len(NOTEBOOKS)) == (6, 2)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_short(script: Path) -> None:
    assert 40 <= len(script.read_text(encoding="utf-8").splitlines()) <= 80


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_how_long_it_takes_and_imports_what_is_for_sale(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    assert "on one core" in (ast.get_docstring(tree) or "")
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {module for module in modules if module and module.startswith("st_plugins")}
    assert ours
    assert all(module.count(".") <= 1 for module in ours), ours


@pytest.mark.parametrize("example", [*SCRIPTS, *NOTEBOOKS], ids=lambda path: path.stem)
def test_an_example_is_in_the_list(example: Path) -> None:
    assert f"| [{example.name}]({example.name}) |" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_executed_and_names_no_machine(notebook: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    text = notebook.read_text(encoding="utf-8")
    assert len(text) < 100_000
    assert not re.search(r"/(?:home|tmp|root|work|Users)/|widget-view|iopub", text)
    book = nbformat.reads(text, as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output.output_type != "error" and output.get("name") != "stderr" for c in cells for output in c.outputs)
    assert sum(bool(cell.outputs) for cell in cells) >= len(cells) - 1


@pytest.mark.slow
def test_compressed_vectors_lose_no_more_than_was_promised(place: Path) -> None:
    told = printed("01_evaluate_and_compress.py", place, "--output", "small")
    assert "the model is better" in told
    lost, bound = numbers(rf"({NUMBER}) points lost, at most ({NUMBER})", told)
    assert lost <= bound < 2
    assert "96 bytes a text instead of 1,536" in told
    assert (place / "small" / "modules.json").is_file()


@pytest.mark.slow
def test_a_race_ends_in_a_decision(place: Path) -> None:
    told = printed("02_adapt_without_labels.py", place, "--budget", "30", "--batches", "4")
    assert told.startswith(("Adapted by", "The model is returned unchanged."))
    before, after = numbers(rf"({NUMBER}) before, ({NUMBER}) after", told)
    assert after > before - 1  # whatever was decided, it did no harm


@pytest.mark.slow
def test_both_ways_of_training_train(place: Path) -> None:
    told = printed("03_consert_and_simcse.py", place)
    scores = [numbers(rf"{name} +Spearman x 100 ({NUMBER})", told)[0] for name in ("given", "ConSERT", "SimCSE")]
    assert len(set(scores)) == 3
    assert min(scores) > 70
    assert {path.name for path in place.iterdir()} == {"all-MiniLM-L6-v2"}  # nothing is left behind


@pytest.mark.slow
def test_attention_comes_closer_to_the_teacher(place: Path) -> None:
    told = printed("04_virt_from_a_cross_encoder.py", place, "--steps", "12")
    before, after = ([float(one) for one in line.split(", ")] for line in re.findall(r"layer by layer: (.*)", told))
    assert sum(after) > sum(before)


@pytest.mark.slow
def test_re2_learns_and_is_faster_than_a_cross_encoder(place: Path) -> None:
    told = printed("05_re2_on_a_cpu.py", place)
    right, largest = numbers(rf"right in ({NUMBER})% of 240 pairs; the largest class is ({NUMBER})%", told)
    assert right > largest + 10
    fast, slow = (float(value.replace(",", "")) for value in re.findall(r"([\d,]+) pairs a second", told))
    assert fast > slow


@pytest.mark.slow
def test_whitening_costs_a_trained_encoder_what_a_rotation_does_not(place: Path) -> None:
    told = printed("06_whitening_at_scale.py", place, "--output", "white")
    assert "900 texts in 3 files" in told
    names = ("as it is", "whitened", "rotated to 192")
    given, white, rotated = (numbers(rf"\n{name} +Spearman x 100 ({NUMBER})", told)[0] for name in names)
    assert white < given
    assert rotated > white
    assert (place / "white" / "modules.json").is_file()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", ["missing.txt", "empty.txt"])
def test_a_wrong_file_is_told_in_a_sentence(
    script: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    option = "--texts" if "--texts" in script.read_text(encoding="utf-8") else "--pairs"
    monkeypatch.setattr(sys, "argv", [script.name, option, name])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code == 2
    assert name in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In a process of its own, which talks to its kernel over sockets of this machine; the hub is off by variable.
    pytest.importorskip("ipykernel")
    copy = shutil.copy(notebook, place)
    code = (
        "import sys, nbformat, nbclient; book = nbformat.read(sys.argv[1], as_version=4); "
        "nbclient.NotebookClient(book, timeout=600, kernel_name='python3').execute(); "
        "nbformat.write(book, sys.argv[1])"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "JUPYTER_PLATFORM_DIRS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, copy], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if notebook.stem == "first_look":
        nbformat = pytest.importorskip("nbformat")
        outputs = [one for cell in nbformat.read(copy, as_version=4).cells for one in cell.get("outputs", [])]
        (picture,) = [one["data"]["image/png"] for one in outputs if "image/png" in one.get("data", {})]
        assert base64.b64decode(picture).startswith(b"\x89PNG")
