"""Every command looks at its output before it works, and writes over nothing that is not its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer

from st_plugins.cli import app as cli

Run = Callable[..., tuple[int, str]]

TEXT = "a dog is in the park"
COMMANDS = {  # with an option that gets the output; {} is the model
    "evaluate": ("evaluate", "{}", "--pairs", "pairs.tsv", "--bootstrap-samples", "0", "--no-floor", "--output"),
    "compare": ("compare", "{}", "{}", "--pairs", "pairs.tsv", "--bootstrap-samples", "9", "--output"),
    "geometry": ("geometry", "{}", "--texts", "texts.txt", "--output"),
    "explain": ("explain", "{}", TEXT, "--html"),
    "explain-json": ("explain", "{}", TEXT, "a cat", "--json"),
    "explain-lines": ("explain", "{}", TEXT, "--texts", "texts.txt", "--json"),
    "whiten": ("whiten", "{}", "--texts", "texts.txt", "--output-dimension", "4", "--output"),
    "consert": ("train", "consert", "{}", "--texts", "texts.txt", "--output"),
    "re2": ("train", "re2", "--train", "pairs.tsv", "--encoder", "{}", "--score", "--label", "score", "--output"),
    "match": ("match", "{}", "pairs.tsv", "--output"),
    "demo": ("demo", "--output"),
}
FOLDERS = ("evaluate", "whiten", "consert", "re2", "demo")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command of the table in an empty folder; return exit code and all it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ST_PLUGINS_DATA", raising=False)

    def call(command: str, output: str | Path, *more: str, model: str = "model") -> tuple[int, str]:
        words = [word.format(model) for word in COMMANDS[command]]
        monkeypatch.setattr(sys, "argv", ["st-plugins", *words, str(output), *more])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out + captured.err

    return call


@pytest.fixture(autouse=True)
def inputs(model: SentenceTransformer, sentences: list[str], tmp_path: Path) -> None:
    model.save(str(tmp_path / "model"), create_model_card=False)
    (tmp_path / "damaged").mkdir()  # an error about it comes after the work has begun
    (tmp_path / "damaged" / "modules.json").write_text("{", encoding="utf-8")
    (tmp_path / "texts.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    rows = [f"{a}\t{b}\t{i % 5 / 4}" for i, (a, b) in enumerate(zip(sentences[:20], sentences[20:], strict=False))]
    (tmp_path / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows, ""]), encoding="utf-8")


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_output_is_refused_before_the_model_is_opened(run: Run, command: str, tmp_path: Path) -> None:
    name = COMMANDS[command][-1]
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "mine").mkdir()
    for taken in ("result.json", "explanation.html"):
        (tmp_path / "mine" / taken).write_text("mine", encoding="utf-8")
    end = {"match": ".tsv"}.get(command, "")
    (tmp_path / "file.tsv").write_text("mine", encoding="utf-8")
    outputs = [
        f"/proc/out{end}",
        f"file/out{end}",
        f"{'x' * 300}{end}",
        "mine" if command in FOLDERS else f"file{end}",
    ]
    if command != "demo":  # it reads nothing
        outputs.append("pairs.tsv" if command == "match" else "damaged" if command in FOLDERS else "damaged/out")
    before = tree(tmp_path)
    for output in outputs:
        for more in ((), ("--overwrite",)):
            code, said = run(command, output, *more, model="damaged")
            assert code == 1 and f"{name} '" in said and Path(output).name[:99] in said, said
            assert "JSON" not in said and tree(tmp_path) == before, said


@pytest.mark.parametrize("command", ["consert", "re2"])
@pytest.mark.parametrize("more", [(), ("--resume",), ("--overwrite",)])
def test_a_foreign_folder_in_the_place_of_the_checkpoints_is_left_alone(
    run: Run, command: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "out.checkpoints").mkdir()
    (tmp_path / "out.checkpoints" / "thesis.txt").write_text("precious", encoding="utf-8")
    before = tree(tmp_path)
    code, said = run(command, "out", *more, model="damaged")
    assert code == 1 and "out.checkpoints' is in the way" in said and "--output" in said
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "command", ["evaluate", "compare", "geometry", "explain", "explain-json", "explain-lines", "whiten"]
)
def test_a_second_result_replaces_the_first_only_when_asked(run: Run, command: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(command, output)[0] == 0
    before = tree(tmp_path)
    code, said = run(command, output, model="damaged")
    assert code == 1 and f"{COMMANDS[command][-1]} '" in said and "--overwrite" in said
    assert tree(tmp_path) == before
    code, said = run(command, output, "--overwrite")
    assert code == 0 and tree(tmp_path).keys() == before.keys(), said


def test_a_foreign_file_among_the_reports_is_not_replaced(run: Run, tmp_path: Path) -> None:
    assert run("evaluate", "out")[0] == 0
    for name in ("result.json", "result.csv", "result.md", "report.html"):
        ours = (tmp_path / "out" / name).read_bytes()
        (tmp_path / "out" / name).write_text("thesis", encoding="utf-8")
        code, said = run("evaluate", "out", "--overwrite", model="damaged")
        assert code == 1 and f"{name}' is a file that st-plugins did not write" in said
        (tmp_path / "out" / name).write_bytes(ours)


def test_numbers_of_a_space_do_not_replace_an_evaluation(run: Run, tmp_path: Path) -> None:
    assert run("evaluate", "out")[0] == 0
    before = tree(tmp_path)
    for command in ("geometry", "compare", "explain-json", "explain-lines"):
        code, said = run(command, "out/result.json", "--overwrite")
        assert code == 1 and "is a file that st-plugins did not write" in said, said
    assert tree(tmp_path) == before


def test_whiten_leaves_the_project_around_its_model_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "model").rename(tmp_path / "project" / "model")
    before = tree(tmp_path)
    for output in ("project", "project/model", "."):
        code, said = run("whiten", output, "--overwrite", model="project/model")
        assert code == 1 and "--output" in said and "input" in said
    assert tree(tmp_path) == before


def test_whiten_fills_the_target_of_a_link(run: Run, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    assert run("whiten", "link")[0] == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target" / "modules.json").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
