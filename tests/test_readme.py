"""The README's Python, letter by letter, each block in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
NAMES = [
    "quickstart",
    "compressing",
    "adapting",
    "training",
    "distilling",
    "matching",
    "small",
    "explaining",
    "searching",
]


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
def test_a_block_runs(block: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    if "my-report" in block:
        names = {path.name for path in (tmp_path / "my-report").iterdir()}
        assert names == {"result.json", "result.csv", "result.md", "report.html"}
