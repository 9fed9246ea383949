"""What ``import st_plugins`` adds to ``import sentence_transformers``.

Each time is taken in a fresh process::

python evaluation/benchmarks/import_time.py
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text

_CODE = (
    "import time, sentence_transformers; start = time.perf_counter(); import st_plugins; "
    "print(time.perf_counter() - start)"
)


def main(
    runs: int = 7,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print the milliseconds that the import adds."""
    times = [
        1000 * float(subprocess.run([sys.executable, "-c", _CODE], capture_output=True, check=True, text=True).stdout)
        for _ in range(runs)
    ]
    result = {
        "benchmark": "import st_plugins after import sentence_transformers",
        "milliseconds": times,
        "median_milliseconds": statistics.median(times),
        "versions": library_versions(),
    }
    print(json.dumps(result, indent=1))
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
