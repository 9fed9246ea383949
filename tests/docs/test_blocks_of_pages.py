"""The Python of README and docs, letter by letter: every block is a program of its own, in an empty folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from block_runner import run
from markdown_pages import CLUSTER, ELSEWHERE, PAGES, ROOT, Block, blocks
from printed_lines import difference

PYTHON = {page: blocks(page, text, "python") for page, text in PAGES.items()}
RUN = [block for page, found in PYTHON.items() if page not in ELSEWHERE and page not in CLUSTER for block in found]
PARTS = [block for page in sorted(CLUSTER) for block in PYTHON[page]]


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_block_runs_and_prints_what_its_page_shows(block: Block, tmp_path: Path, real_encoder_folder: Path) -> None:
    folder, logs = tmp_path / "empty", tmp_path / "logs"
    folder.mkdir()
    logs.mkdir()
    (folder / "all-MiniLM-L6-v2").symlink_to(real_encoder_folder, target_is_directory=True)
    status, out, err = run(block.body, folder, logs)
    assert status == 0, err[-2000:]
    if block.printed is not None:
        missing = difference(block.printed, out)
        assert missing is None, f"the page shows: {missing}\nprinted was:\n{out}"
    # What blocks leave behind may be linked to, but the encoder is shared.
    assert (folder / "all-MiniLM-L6-v2").is_symlink()


@pytest.mark.parametrize("block", PARTS, ids=str)
def test_a_part_of_a_program_compiles_and_its_imports_exist(block: Block) -> None:
    tree = ast.parse(block.body)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    pytest.importorskip("ray.data")
    exec(compile(ast.Module(imports, []), str(block), "exec"), {})  # noqa: S102 # our own page


def test_pages_that_run_elsewhere_are_named_there() -> None:
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")


def test_a_block_that_fails_or_prints_something_else_is_seen(tmp_path: Path) -> None:
    text = "```python\nprint(1.23)\n```\n\n```text\n1.24\n```\n\n```python\nprint(7)\n```\nprose\n```text\n8\n```"
    first, second = blocks("docs/made-up.md", text, "python")
    assert (str(first), first.printed, str(second), second.printed) == ("made-up-1", "1.24\n", "made-up-2", None)
    assert difference("a 1.00\n...\nb  2,000", "a 1.02\nx\ny\nb 2010\n") is None
    assert difference("a 1.00\n", "a 1.03\n") == "a 1.00"
    assert difference("a\nb\n", "a\n") == "b"
    assert difference("a\n", "a\nb\n") is not None
    assert difference("a\n...\n", "a\nb\nc\n") is None
    assert difference("...\nc\n", "a\nb\n") == "c"


@pytest.mark.slow
def test_the_runner_sees_errors_output_and_the_network(tmp_path: Path) -> None:
    assert run("print('yes')", tmp_path, tmp_path)[:2] == (0, "yes\n")
    status, _, err = run("import socket\nsocket.create_connection(('127.0.0.1', 9))", tmp_path, tmp_path)
    assert status == 1 and "SocketBlockedError" in err
    assert run("import sys\nsys.exit(3)", tmp_path, tmp_path)[0] == 3
