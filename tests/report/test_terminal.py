"""Text from outside, in everything that is printed or written for people."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from st_plugins.cli import app as cli
from st_plugins.core.model_card import code
from st_plugins.evaluation.report import markdown
from st_plugins.evaluation.result import SuiteResult
from st_plugins.explain import explain_pair, explain_text
from st_plugins.report.matrices import STYLE
from st_plugins.report.page import escape
from st_plugins.report.terminal import foreign, say, shown, terminal

Run = Callable[..., tuple[int, str, str]]
HOSTILE = "m[/b]:dog: [red]\x1b[2J\x9b1m\u202eevil\x07"
AS_IT_IS = r"m[/b]:dog: [red]\x1b[2J\x9b1m\u202eevil\x07"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.delenv("ST_PLUGINS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["st-plugins", *args])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HOSTILE, AS_IT_IS),
        ("two\nlines\r\tand \u2028", r"two\nlines\r\tand \u2028"),
        ("half \ud83d, bytes \udcff", r"half \ud83d, bytes \udcff"),
        ("狗 é 👩\u200d👧 می\u200cخواهم شما", "狗 é 👩\u200d👧 می\u200cخواهم شما"),
    ],
)
def test_text_is_shown_as_it_is_without_what_steers(text: str, expected: str) -> None:
    assert shown(text) == expected and shown(expected) == expected and foreign(text).plain == expected


def test_a_forgotten_place_cannot_steer_either(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    terminal().print(table)
    terminal().print(HOSTILE)
    say(HOSTILE)
    printed = capsys.readouterr().out
    assert not set("\x1b\x9b\u202e\x07") & set(printed) and printed.count("m[/b]:dog: [red]") == 5


def test_every_command_shows_names_as_they_are(run: Run, model: SentenceTransformer, sentences: list[str]) -> None:
    name = HOSTILE.replace("/", "")
    expected = AS_IT_IS.replace("/", "")
    model.save(name, create_model_card=False)
    rows = [f"{a}\t{b}\t{i % 6}" for i, (a, b) in enumerate(zip(sentences[:20], sentences[20:40], strict=True))]
    Path(f"{name}.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows, ""]), "utf-8")
    Path(f"{name}.txt").write_text("\n".join(sentences), "utf-8")
    fast = ("--device", "cpu")
    commands = [
        ("evaluate", name, "--pairs", f"{name}.tsv", "--output", f"{name} r", *fast),
        ("compare", f"{name} r", name, "--pairs", f"{name}.tsv", "--output", f"{name}.json", *fast),
        ("whiten", name, "--texts", f"{name}.txt", "--output", f"{name} w", "--pairs", f"{name}.tsv", *fast),
        ("geometry", name, "--texts", f"{name}.txt", "--output", f"{name} g.json", *fast),
        ("explain", name, f"{HOSTILE} dog", f"a cat {HOSTILE}", "--html", f"{name}.html", *fast),
        ("explain", name, f"{HOSTILE} dog", *fast),
        ("evaluate", f"./{name}/none", "--pairs", f"{name}.tsv"),
        ("evaluate", name, "--pairs", f"{name} none.tsv"),
        ("evaluate", name, "--pairs", f"{name}.tsv", "--first", name),
    ]
    for number, args in enumerate(commands):
        code, out, err = run(*args)
        said = out + err.rstrip("\n").split("\n")[-1]  # the host's progress bars may use escape sequences
        assert code == int(number >= 6), err
        assert "m[" in said and r"\x1b[2J" in said and not set("\x1b\x9b\u202e\x07") & set(said), said
    result = Path(f"{name} r")
    assert expected in (result / "report.html").read_text("utf-8")
    assert json.loads((result / "result.json").read_text("utf-8"))["model"]["name"] == name
    for file in (result / "report.html", result / "result.md", Path(f"{name}.html")):
        assert not set("\x1b\x9b\u202e\x07") & set(file.read_text("utf-8"))


def test_explanations_are_safe_for_a_console_with_markup(model: SentenceTransformer) -> None:
    for found in (explain_pair(model, HOSTILE, "a dog"), explain_text(model, HOSTILE)):
        console = Console(file=io.StringIO(), width=200)
        console.print(found.to_terminal())
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        assert not set("\x1b\x9b\u202e\x07") & set(printed) and r"\x1b[2J" in printed and "[/b]" in printed


def test_pages_and_cards() -> None:
    assert escape('<b title="x">\x1b\u202e\n') == "&lt;b title=&quot;x&quot;&gt;\\x1b\\u202e\n"
    assert code("a`b``c") == "``` a`b``c ```" and code("plain\n") == r"`plain\n`"


def test_markdown_rows_are_not_broken(model: SentenceTransformer, run: Run, sentences: list[str]) -> None:
    rows = [f"{a}\t{b}\t{i % 6}" for i, (a, b) in enumerate(zip(sentences[:20], sentences[20:40], strict=True))]
    Path("a|b`$x_{$.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows, ""]), "utf-8")
    model.save("m", create_model_card=False)
    assert run("evaluate", "m", "--pairs", "a|b`$x_{$.tsv", "--output", "r", "--device", "cpu", "--no-floor")[0] == 0
    text = markdown(SuiteResult.read("r"))
    assert r"a\|b\`" in text


def test_no_reader_and_no_utf8(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    """``| head`` ends nothing early, and a terminal without UTF-8 loses nothing."""
    model.save(str(tmp_path / "m"), create_model_card=False)
    (tmp_path / "texts.txt").write_text("\n".join(sentences), "utf-8")
    command = [sys.executable, "-m", "st_plugins", "geometry", "m", "--texts", "texts.txt", "--device", "cpu"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*command, "--output", "1.json"],
        cwd=tmp_path,
        env=environment,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert done.returncode == 0 and "Broken" not in done.stderr and (tmp_path / "1.json").is_file(), done.stderr


def test_column_labels_are_not_turned_around() -> None:
    """Upright signs in a vertical line would stand on their heads."""
    assert "vertical-rl" in STYLE and "rotate" not in STYLE
