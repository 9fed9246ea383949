"""A process for each block of a page, forked from one that has imported the heavy libraries already."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import traceback
from pathlib import Path

import pytest_socket

SECONDS = 300.0  # a hang; on a quiet core no block takes twenty
_HEAVY = ["torch", "sentence_transformers", "transformers", "scipy.stats", "sklearn.covariance", "st_plugins.losses"]


def _run(program: Path, folder: Path, log: Path) -> None:
    """Be the process: its own folder, what it prints in a file, no network."""
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(log.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    pytest_socket.disable_socket(allow_unix_socket=True)
    sys.argv = [str(program)]
    try:
        runpy.run_path(str(program), run_name="__main__")
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def run(code: str, folder: Path, logs: Path) -> tuple[int, str, str]:
    """Run a program in a folder; return its exit code, standard output and standard error."""
    program = logs / "block.py"
    program.write_text(code, encoding="utf-8")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_HEAVY)
    process = context.Process(target=_run, args=(program, folder, logs / "log"))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    out, err = (
        (logs / name).read_text(encoding="utf-8") if (logs / name).exists() else "" for name in ("log.out", "log.err")
    )
    code_of_exit = process.exitcode
    process.close()
    return (-1 if code_of_exit is None else code_of_exit), out, err
