"""The command line's manners: versions, exit codes, options without effect, cheap checks first, foreign text."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from sentence_transformers import SentenceTransformer

from st_plugins.cli import app as cli
from st_plugins.matching import RE2Matcher

Run = Callable[..., tuple[int, str, str]]
SOURCES = Path(cli.__file__).parents[1]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run ``st-plugins ARGS`` in an empty folder; return exit code, standard output and standard error."""
    monkeypatch.delenv("ST_PLUGINS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["st-plugins", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def files(sentences: list[str], tmp_path: Path) -> Path:
    """Texts, scored pairs and labelled pairs, as a user has them."""
    rows = [f"{a}\t{b}\t{i % 6}" for i, (a, b) in enumerate(zip(sentences[:30], sentences[30:], strict=True))]
    (tmp_path / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *rows, ""]), "utf-8")
    rows = [f"{row[:-2]}\t{'no' if i % 2 else 'yes'}" for i, row in enumerate(rows)]
    (tmp_path / "labels.tsv").write_text("\n".join(["sentence1\tsentence2\tlabel", *rows, ""]), "utf-8")
    (tmp_path / "texts.txt").write_text("\n".join([*sentences, ""]), "utf-8")
    return tmp_path


def commands(command: Any = None, path: str = "") -> dict[str, Any]:
    """Return every command by its words."""
    command = command or typer.main.get_command(cli.app)
    below = getattr(command, "commands", None)
    if below is None:
        return {path: command}
    return {name: one for word, sub in below.items() for name, one in commands(sub, f"{path} {word}".strip()).items()}


def test_version_and_module(run: Run) -> None:
    version = importlib.metadata.version("st-plugins")
    assert run("--version") == (0, f"st-plugins {version}\n", "")
    done = subprocess.run(
        [sys.executable, "-m", "st_plugins", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"st-plugins {version}\n", "")


def test_help_has_a_short_name_everywhere(run: Run) -> None:
    for words in ("", *commands()):
        assert run(*words.split(), "-h")[0] == 0


def test_completion_is_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--install-completion" in run("--help")[1]
    monkeypatch.setenv("_ST_PLUGINS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "st-plugins wh")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert "whiten" in run()[1]


def test_wrong_usage_is_one_line_and_exit_code_2(run: Run) -> None:
    cases = [
        (("nonsense",), "nonsense"),
        (("evaluate",), "model"),
        (("evaluate", "m", "--no-such\x1b[2J"), r"--no-such\x1b[2J"),
        (("train", "re2", "--config", "x"), "snli"),
        (("evaluate", "m", "--dtype", "x"), "bfloat16"),
        (("evaluate", "m", "--max-seq-length", "0"), "--max-seq-length"),
        (("plan", "m", "--texts", "0"), "--texts"),
    ]
    for args, words in cases:
        code, out, err = run(*args)
        assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and words in err, err


@pytest.mark.parametrize(
    ("args", "option"),
    [
        ("evaluate m --pairs pairs.tsv --tasks stsb", "--tasks"),
        ("evaluate m --pairs pairs.tsv --split dev", "--split"),
        ("evaluate m --pairs pairs.tsv --data .", "--data"),
        ("evaluate m --first a --score b", "--first, --score"),
        ("evaluate m --pairs pairs.tsv --column a", "--column"),
        ("evaluate m --pairs pairs.tsv --texts texts.txt --column a", "--column"),
        ("evaluate m --pairs pairs.tsv --texts texts.txt --no-floor", "--texts"),
        ("evaluate m --pairs pairs.tsv --bootstrap-samples 0 --confidence 0.9", "--confidence"),
        ("compare m m --pairs pairs.tsv --tasks en", "--tasks"),
        ("compare m m --second a", "--second"),
        ("whiten m --texts texts.txt --output o --tasks stsb", "--tasks"),
        ("whiten m --texts texts.txt --output o --score a", "--score"),
        ("whiten m --texts texts.txt --output o --seed 1", "--seed"),
        ("whiten m --texts texts.txt --output o --pairs pairs.tsv --split dev", "--split"),
        ("whiten m --texts texts.txt --output o --column a", "--column"),
        ("geometry m --texts texts.txt --column a", "--column"),
        ("geometry m --texts texts.txt --overwrite", "--overwrite"),
        ("plan m --texts 9 --column a", "--column"),
        ("plan m --texts 9 --overwrite", "--overwrite"),
        ("evaluate m --pairs pairs.tsv --overwrite", "--overwrite"),
        ("compare m m --pairs pairs.tsv --overwrite", "--overwrite"),
        ("explain m text --overwrite", "--overwrite"),
        ("train consert m --texts texts.txt --output o --first a", "--first"),
        ("train consert m --texts texts.txt --output o --column a", "--column"),
        ("train re2 --train labels.tsv --output o --all-words", "--all-words"),
        ("train re2 --train labels.tsv --output o --train-vectors", "--train-vectors"),
        ("train re2 --train labels.tsv --output o --vectors v --embedding-dimension 8", "--embedding-dimension"),
        ("train re2 --train labels.tsv --output o --metric f1", "--metric"),
        ("train re2 --train labels.tsv --output o --patience 2", "--patience"),
    ],
)
def test_an_option_without_effect_is_refused_by_name(run: Run, files: Path, args: str, option: str) -> None:
    code, _, err = run(*args.split())
    assert code == 1 and err.startswith("error: ") and option in err and err.count("\n") == 1, err


def test_options_of_measuring_are_refused_beside_stored_results(
    run: Run, files: Path, model: SentenceTransformer
) -> None:
    model.save("m", create_model_card=False)
    assert run("evaluate", "m", "--pairs", "pairs.tsv", "--output", "r", "--no-floor", "--device", "cpu")[0] == 0
    for option in (("--pairs", "pairs.tsv"), ("--batch-size", 8), ("--max-seq-length", 8), ("--dtype", "float16")):
        code, _, err = run("compare", "r", "r", *option)
        assert code == 1 and f"{option[0]} has no effect beside two stored results" in err, err
    assert run("compare", "r", "r", "--confidence", 0.9, "--bootstrap-samples", 50)[0] == 0


def test_the_precision_is_the_models_own_unless_an_option_says_otherwise(
    run: Run, files: Path, model: SentenceTransformer
) -> None:
    model.half().save("half", create_model_card=False)
    options = ("--pairs", "pairs.tsv", "--no-floor", "--device", "cpu", "--output")
    assert run("evaluate", "half", *options, "own")[0] == 0
    assert run("evaluate", "half", "--dtype", "float32", *options, "full")[0] == 0
    for folder, used in (("own", "float16"), ("full", "float32")):
        measured = json.loads(Path(folder, "result.json").read_text(encoding="utf-8"))["settings"]["measured"]
        assert measured["dtype"] == {"used": used, "own": "float16"}
    code, _, err = run("compare", "full", "half", "--pairs", "pairs.tsv", "--device", "cpu")
    assert code == 1 and "dtype is float32 for 'half' (the model's own is float16)" in err, err
    _, out, _ = run("compare", "own", "half", "--pairs", "pairs.tsv", "--device", "cpu")
    assert "B - A is +0.00 [+0.0, +0.0]" in out, out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("evaluate m --pairs missing.tsv", "missing.tsv"),
        ("evaluate m --pairs pairs.tsv --texts missing.txt", "missing.txt"),
        ("evaluate m --data missing", "missing"),
        ("evaluate m --pairs pairs.tsv --similarity x", "--similarity='x'"),
        ("evaluate m --pairs pairs.tsv --confidence 2", "--confidence=2.0"),
        ("evaluate m --pairs pairs.tsv --device nowhere", "--device='nowhere'"),
        ("evaluate m --pairs pairs.tsv --prompt a --prompt-name b", "--prompt-name='b' are both given"),
        ("compare m ./missing --pairs pairs.tsv", "missing"),
        ("compare m m --pairs pairs.tsv --confidence 2", "--confidence=2.0"),
        ("compare m m --pairs pairs.tsv --device cuda:99", "--device='cuda:99'"),
        ("compare m m --pairs pairs.tsv --prompt a --prompt-name b", "--prompt-name='b' are both given"),
        ("compare m missing.json --pairs pairs.tsv", "missing.json"),
        ("compare m m --pairs missing.tsv", "missing.tsv"),
        ("whiten m --texts missing.txt --output o", "missing.txt"),
        ("whiten m --texts texts.txt --output o --pairs missing.tsv", "missing.tsv"),
        ("whiten m --texts texts.txt --output o --shrinkage much", "--shrinkage"),
        ("whiten m --texts texts.txt --output o --shrinkage 2", "--shrinkage must be"),
        ("whiten m --texts texts.txt --output o --shrinkage nan", "--shrinkage must be"),
        ("whiten m --texts texts.txt --output o --device nowhere", "--device='nowhere'"),
        ("whiten m --texts texts.txt --output o --prompt a --prompt-name b", "--prompt-name='b' are both given"),
        ("geometry m --texts texts.txt --prompt a --prompt-name b", "--prompt-name='b' are both given"),
        ("geometry m --texts missing.txt", "missing.txt"),
        ("geometry m --texts texts.txt --device nowhere", "--device='nowhere'"),
        ("geometry m --texts texts.txt --prompt \ud83d", "--prompt holds half a character"),
        ("plan m --texts 9 --sample missing.txt", "missing.txt"),
        ("plan m --texts 9 --sample texts.txt --length 4", "--length=4 and a sample"),
        ("plan m --texts 9 --machines 2", "--machines=2 needs Ray"),
        ("plan m --texts 9 --precision int3", "--precision='int3'"),
        ("plan m --texts 9 --seconds 0", "--seconds=0.0"),
        ("explain m a b --device nowhere", "--device='nowhere'"),
        ("explain m a \ud83d", "second holds half a character"),
        ("explain m \ud83d", "first holds half a character"),
        ("explain m a b --prompt \ud83d", "--prompt holds half a character"),
        ("train consert m --texts missing.txt --output o", "missing.txt"),
        ("train consert m --texts texts.txt --output o --dev missing.tsv", "missing.tsv"),
        ("train consert m --texts texts.txt --output o --warmup 2", "--warmup=2.0"),
        ("train consert m --texts texts.txt --output o --batch-size 9 --views none", "--views must be"),
        (
            "train consert m --texts texts.txt --output o --batch-size 9 --views none,token-cutoff:2",
            "--views='token-cuto",
        ),
        ("train consert m --texts texts.txt --output o --batch-size 9 --temperature nan", "--temperature must be"),
        ("train consert m --texts texts.txt --output o --batch-size 9 --device nowhere", "--device='nowhere'"),
        ("train consert m --texts texts.txt --output o --batch-size 9 --prompt \ud83d", "--prompt holds half"),
        ("train re2 --train missing.tsv --encoder m --output o", "missing.tsv"),
        ("train re2 --train labels.tsv --encoder m --output o --device nowhere", "--device='nowhere'"),
        ("train re2 --train labels.tsv --dev missing.tsv --encoder m --output o", "missing.tsv"),
        ("match m missing.tsv --output o.tsv", "missing.tsv"),
        ("match m pairs.tsv --output o.tsv --first a", "--first"),
    ],
)
def test_cheap_checks_come_before_a_model_is_loaded(
    run: Run, files: Path, monkeypatch: pytest.MonkeyPatch, args: str, words: str
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(SentenceTransformer, "__init__", load)
    monkeypatch.setattr(RE2Matcher, "load", load)
    (files / "m").mkdir()
    (files / "m" / "config.json").write_text("{}", "utf-8")
    code, _, err = run(*args.split())
    assert code == 1 and err.startswith("error: ") and words in err and "is loaded" not in err, err


@pytest.mark.parametrize("words", list(commands()))
def test_every_option_is_its_parameter_with_dashes(words: str) -> None:
    for parameter in commands()[words].params:
        for option in parameter.opts:
            if option.startswith("--"):
                assert option == "--" + parameter.name.replace("_", "-")


def test_every_option_that_is_mentioned_exists() -> None:
    """In messages, help and README: no option that no command has."""
    known = {"--help", "--version", "--debug", "--install-completion", "--show-completion"}
    known |= {option for one in commands().values() for p in one.params for option in [*p.opts, *p.secondary_opts]}
    foreign = r"var\(--\w+\)|--\w+: *#\w+|pip install(?: --[\w-]+)+"  # of style sheets and of pip
    texts = [re.sub(foreign, "", file.read_text("utf-8")) for file in SOURCES.rglob("*.py")]
    readme = (SOURCES.parent / "README.md").read_text("utf-8")
    texts += [line for line in readme.splitlines() if "st-plugins" in line]
    mentioned = {
        found for text in texts for found in re.findall(r"(?<![\w-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*(?![\w-])", text)
    }
    assert len(mentioned) > 30 and mentioned <= known, mentioned - known


def test_a_length_that_the_encoder_cannot_read(run: Run, files: Path, model: SentenceTransformer) -> None:
    model.save("m", create_model_card=False)
    for args in (
        ("evaluate", "m", "--pairs", "pairs.tsv"),
        ("compare", "m", "m", "--pairs", "pairs.tsv"),
        ("whiten", "m", "--texts", "texts.txt", "--output", "o"),
        ("geometry", "m", "--texts", "texts.txt"),
        ("explain", "m", "a dog", "a cat"),
    ):
        code, _, err = run(*args, "--max-seq-length", 41, "--device", "cpu")
        assert code == 1 and "--max-seq-length=41 is more than the encoder's 40 positions" in err, err


def test_a_training_says_that_it_cuts_to_the_positions(
    run: Run, files: Path, model: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    model.save("m", create_model_card=False)
    args = ("train", "consert", "m", "--texts", "texts.txt", "--output", "o", "--batch-size", 30, "--epochs", 1)
    assert run(*args, "--max-seq-length", 41, "--device", "cpu")[0] == 0
    assert "max_seq_length=41 is more than the encoder's 40 positions" in caplog.text
    assert SentenceTransformer("o", device="cpu").max_seq_length == 32  # its own


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "texts.txt"),
        ("compare", "texts.txt", "texts.txt"),
        ("geometry", "texts.txt", "--texts", "texts.txt"),
        ("whiten", "texts.txt", "--texts", "texts.txt", "--output", "out"),
        ("plan", "texts.txt", "--texts", "9"),
        ("explain", "texts.txt", "a dog"),
        ("train", "consert", "texts.txt", "--texts", "texts.txt", "--output", "out"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_file_is_no_model(run: Run, files: Path, words: tuple[str, ...]) -> None:
    code, _, err = run(*words)
    assert code == 1 and "model 'texts.txt' is a file; give the folder of a model" in err
