"""What the demo tells people to type."""

from __future__ import annotations

import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from st_plugins.cli.demo.found import Found, Step
from st_plugins.cli.demo.index import index
from st_plugins.cli.demo.next_steps import Command, next_steps

QUERY = "Don't find; the 'dog' $HOME"


def test_a_command_is_typed_as_the_shell_takes_it() -> None:
    commands = next_steps("a model/all-MiniLM-L6-v2", Path("my demo"), QUERY, 192)
    for command in commands:
        assert shlex.split(command.text) == list(command.words)
    assert any(QUERY in command.words for command in commands)


@pytest.mark.parametrize("on_path", [True, False])
def test_the_program_is_called_as_the_shell_finds_it(
    on_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / ".venv" / "bin" / "st-plugins"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(program), "demo"])
    monkeypatch.setenv("PATH", str(program.parent) if on_path else "/nowhere")
    expected = "st-plugins" if on_path else ".venv/bin/st-plugins"
    assert {command.words[0] for command in next_steps("m", Path("d"), "q", 192)} == {expected}


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if tag == "a" and name == "href"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_has_every_link_and_command_and_shows_texts_as_they_are() -> None:
    steps = [
        Step(
            "Search <b>",
            "Texts: some",
            Found(sentence="It finds <i>all</i>.", short="all", pages={"The page": "a/report.html"}),
            3.2,
        ),
        Step(
            "Explain", "Texts: some", Found(sentence="Two words.", pages={"One": "one.html", "Two": "two.html"}), 0.1
        ),
    ]
    html = index("A model & its texts.", steps, [Command("why", ("st-plugins", "explain", "m", "a <b>"))])
    parser = _Links()
    parser.feed(html)
    text = " ".join(parser.texts)
    assert parser.links == ["a/report.html", "one.html", "two.html"]
    assert "It finds <i>all</i>." in text and "A model & its texts." in text and "st-plugins explain m 'a <b>'" in text
    assert html.count("<li>") == 1 + 3  # what a step does not say in short is not in the summary
    assert "http://" not in html and "https://" not in html and "<script" not in html
