"""The command as a user types it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from st_plugins.cli import app


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run ``st-plugins ARGS``; return exit code, standard output and standard error."""

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["st-plugins", *args])
        with pytest.raises(SystemExit) as stop:
            app.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call
