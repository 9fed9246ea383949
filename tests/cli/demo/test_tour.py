"""The demo as a whole: what it prints, what it leaves, and when it leaves nothing."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from sentence_transformers import SentenceTransformer

from st_plugins.cli import app
from st_plugins.cli.demo import packaged_encoder, tour
from st_plugins.cli.demo.documentation import Documentation
from st_plugins.cli.demo.entailment import Entailment
from st_plugins.cli.demo.found import Found
from st_plugins.cli.demo.matching import Matched
from st_plugins.core.writing.atomic import folder_target
from st_plugins.data.retrieval import RetrievalData

Command = Callable[..., tuple[int, str, str]]

SMALL = tour.Sizes(documents=60, queries=40, sentences=600, adapt_seconds=1.0, pairs=8000, training=0.02)


def _texts(*_: object) -> Documentation:
    search = RetrievalData("python", {"d0": "A dog runs.", "d1": "A cat."}, {"q0": "A dog"}, {"q0": {"d0": 1}})
    return Documentation(search, ["a dog is in the park"])


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Play all the steps, and work in an empty folder."""

    def played(name: str) -> Callable[..., Found]:
        def step(*arguments: object) -> Found:
            folder = next(one for one in arguments if isinstance(one, Path))
            (folder / f"{name}.html").write_text(f"page of {name}", encoding="utf-8")
            return Found(sentence=f"Found by {name}.", short=f"short {name}", pages={name: f"{name}.html"})

        return step

    for name in ("evaluate", "compress", "explain", "adapt", "match"):
        monkeypatch.setattr(tour, name, played(name))
    monkeypatch.setattr(tour, "teach", lambda *_: Found(sentence="Found by teach.", short="short teach"))
    matched = tour.match
    monkeypatch.setattr(tour, "match", lambda *a: Matched(**vars(matched(*a)), matcher=None))  # type: ignore[arg-type]
    monkeypatch.setattr(tour, "shown", lambda *_: ("q0", "d0"))
    monkeypatch.setattr(tour, "read_documentation", _texts)
    monkeypatch.setattr(tour, "entailment", lambda *_, **__: Entailment([], [], [], []))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own_model(model: SentenceTransformer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """A model folder beside the demo."""
    model.save(str(tmp_path / "own"), create_model_card=False)
    capsys.readouterr()  # bars of the making and the saving
    return "own"


def test_every_step_has_a_number_a_sentence_and_its_seconds(command: Command, steps: Path, own_model: str) -> None:
    code, out, err = command("demo", "--model", own_model)
    assert code == 0, err
    for number, name in enumerate(("evaluate", "compress", "explain", "adapt", "match", "teach"), 1):
        said = rf"^{number}/6 [A-Z].*\nFound by {name}\. \(0 s\)$"
        assert re.search(said, out, re.M), out
        assert f"- short {name}\n" in out
    assert "\x1b" not in out + err and "\r" not in out + err


def test_the_folder_has_the_pages_and_the_texts(command: Command, steps: Path, own_model: str) -> None:
    assert command("demo", "--model", own_model, "--output", "shown")[0] == 0
    index = (steps / "shown" / "index.html").read_text(encoding="utf-8")
    for link in re.findall(r'<a href="([^"]*)"', index):
        assert (steps / "shown" / link).is_file(), link
    assert (steps / "shown" / "texts.txt").is_file() and (steps / "shown" / "search" / "qrels" / "test.tsv").is_file()
    assert str(steps) not in index and not (steps / "shown" / "all-MiniLM-L6-v2").exists()


def test_the_commands_that_come_next_exist(
    command: Command, steps: Path, own_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = command("demo", "--model", own_model)[1]
    commands = [line for line in out.splitlines() if line.startswith("st-plugins ")]
    assert len(commands) == 5
    group = typer.main.get_command(app.app)
    for line in commands:
        _, name, *arguments = shlex.split(line)
        with group.commands[name].make_context(name, arguments):  # type: ignore[attr-defined]  # fails on what it does not know
            pass
        for word in arguments:
            assert "/" not in word or Path(word).exists(), word


def test_a_second_demo_replaces_the_first_only_when_asked(command: Command, steps: Path, own_model: str) -> None:
    assert command("demo", "--model", own_model)[0] == 0
    code, _, err = command("demo", "--model", own_model)
    assert code == 1 and "--output 'st-plugins-demo' exists and is not empty" in err and "--overwrite" in err
    assert command("demo", "--model", own_model, "--overwrite")[0] == 0
    (steps / "st-plugins-demo" / "thesis.txt").write_text("precious", encoding="utf-8")
    code, _, err = command("demo", "--model", own_model, "--overwrite")
    assert code == 1 and "'thesis.txt' in it is no file that st-plugins wrote" in err
    assert (steps / "st-plugins-demo" / "thesis.txt").read_text() == "precious"


def test_what_fails_leaves_nothing(
    command: Command, steps: Path, own_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Found:
        raise KeyboardInterrupt

    monkeypatch.setattr(tour, "adapt", interrupted)
    code, _, err = command("demo", "--model", own_model)
    assert code != 0 and "Traceback" not in err
    assert [path.name for path in steps.iterdir()] == ["own"]


def test_a_step_that_a_model_does_not_allow_is_left_out(
    command: Command, steps: Path, own_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> Found:
        raise ValueError("the pooling is no mean")

    monkeypatch.setattr(tour, "explain", refused)
    code, out, _ = command("demo", "--model", own_model)
    assert code == 0 and "Left out with this model: the pooling is no mean. (" in out and "Found by teach" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "./nowhere"), "model folder './nowhere' does not exist"),
        (("--output", "/proc/demo"), "--output '/proc/demo' cannot be written"),
        (("--model", "own", "--output", "own/demo"), "lies in the input model"),
    ],
)
def test_bad_input_is_one_line(
    command: Command, steps: Path, own_model: str, arguments: tuple[str, ...], said: str
) -> None:
    code, out, err = command("demo", *arguments)
    assert code == 1 and not out and said in err and len(err.splitlines()) == 1


def test_a_missing_package_is_named(command: Command, steps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise packaged_encoder.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packaged_encoder.metadata, "distribution", missing)
    code, out, err = command("demo")
    assert code == 1 and 'pip install "st-plugins[demo]"' in err and not out
    assert list(steps.iterdir()) == []


@pytest.mark.slow
def test_a_killed_demo_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "st_plugins", "demo", "--output", "demo"]
    with subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line.startswith("1/6") for line in process.stdout)
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "demo").exists()
    left = list(tmp_path.iterdir())
    with folder_target(tmp_path / "demo", overwrite=True).write() as folder:
        (folder / "index.html").write_text("whole")
    assert left and [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.slow
def test_the_whole_demo_in_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """All of it with the real encoder, and fewer texts and steps; then the quick ones of the commands it names."""
    monkeypatch.chdir(tmp_path)
    output = Path("st-plugins-demo")
    tour.take_tour(folder_target(output), output, None, 0, SMALL)
    said = capfd.readouterr()
    assert "\x1b" not in said.out + said.err and "\r" not in said.out + said.err, said.err
    assert [line[:3] for line in said.out.splitlines() if re.match(r"\d/6 ", line)] == [f"{n}/6" for n in range(1, 7)]
    assert re.search(r"nDCG@10 \d+\.\d \[.*random token vectors, whitened, have \d+\.\d \[", said.out)
    assert "1,536 bytes a vector become 192" in said.out
    page = (output / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'<a href="([^"]*)"', page)
    assert len(links) == 6
    for link in links:
        assert "<html" in (output / link).read_text(encoding="utf-8")
    commands = [shlex.split(line) for line in said.out.splitlines() if line.startswith("st-plugins ")]
    for _, name, *arguments in commands:
        if name in ("evaluate", "explain"):
            program = [sys.executable, "-m", "st_plugins", name, *arguments]
            done = subprocess.run(program, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
