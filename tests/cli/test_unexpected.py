"""An error that nobody foresaw ends with everything that a report of it needs; a foreseen one stays one sentence."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from st_plugins.cli import unexpected
from st_plugins.cli.unexpected import report

Command = Callable[..., tuple[int, str, str]]
ISSUES = "https://github.com/st-plugins/st_plugins/issues"


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Let a command fail with an error."""

    def fail(problem: Exception) -> None:
        def load(*args: Any, **kwargs: Any) -> Any:
            raise problem

        monkeypatch.setattr("st_plugins.cli.export.check_model", load)

    return fail


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata as the built package has it, whenever this environment was installed."""
    monkeypatch.setattr(unexpected, "tracker", lambda: ISSUES)


@pytest.mark.usefixtures("published")
def test_the_block_has_all_that_a_report_needs(
    command: Command, failing: Callable[[Exception], None], tmp_path: Path
) -> None:
    failing(RuntimeError("boom\n  twice"))
    code, out, err = command("export", str(tmp_path / "my model"), f"--onnx={tmp_path / 'out.onnx'}")
    assert code == 1 and out == "" and "Traceback" not in err
    lines = err.splitlines()
    assert lines[0] == "error: RuntimeError: boom twice"
    assert ISSUES in lines[1]
    for name in ("st-plugins", "sentence-transformers", "transformers", "torch"):
        assert f"{name} {importlib.metadata.version(name)}" in err
    assert platform.python_version() in err and platform.platform() in err
    assert "  command:   st-plugins export 'my model' --onnx=out.onnx" in lines
    assert "  traceback: st-plugins --debug export 'my model' --onnx=out.onnx" in lines
    assert str(tmp_path) not in err and len(lines) == 6


def test_debug_gives_the_traceback(command: Command, failing: Callable[[Exception], None]) -> None:
    failing(RuntimeError("boom"))
    with pytest.raises(RuntimeError, match="boom"):
        command("--debug", "export", "m", "--onnx", "o.onnx")


@pytest.mark.parametrize("kind", [ValueError, TypeError, FileNotFoundError, ImportError])
def test_a_foreseen_error_stays_one_sentence(
    kind: type[Exception], command: Command, failing: Callable[[Exception], None]
) -> None:
    failing(kind("the model is too small; give another one"))
    assert command("export", "m", "--onnx", "o.onnx") == (1, "", "error: the model is too small; give another one\n")


def test_texts_stay_and_an_error_may_say_nothing() -> None:
    lines = report(KeyError(), ["explain", "/home/somebody/m", "either / or", "~/private/b.txt"])
    assert lines[0] == "KeyError" and lines[2] == "  command:   st-plugins explain m 'either / or' b.txt"


def test_the_tracker_is_that_of_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    class Metadata:
        def get_all(self, name: str) -> list[str]:
            assert name == "Project-URL"
            return ["Homepage, https://example.org", f"Issues, {ISSUES}"]

    monkeypatch.setattr(unexpected.metadata, "metadata", lambda name: Metadata())
    assert unexpected.tracker() == ISSUES


def test_without_metadata_the_block_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(unexpected.metadata, "metadata", missing)
    monkeypatch.setattr(unexpected.metadata, "version", missing)
    lines = report(RuntimeError("boom"), [])
    assert lines[1].endswith("the lines below") and "st-plugins not installed" in lines[3]
