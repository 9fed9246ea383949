"""What ``import st_plugins`` adds to ``import sentence_transformers``, each time in a fresh process.

Run it with no other work on the machine::

    python -m evaluation.benchmarks.import_time
"""

from __future__ import annotations

import statistics
import subprocess
import sys

import typer

from evaluation.benchmarks.harness import Output, report

# Not the harness's process, which has imported both before it can look at the clock.
CODE = (
    "import time, sentence_transformers; start = time.perf_counter(); import st_plugins; "
    "print(time.perf_counter() - start)"
)


def main(runs: int = 7, output: Output = None) -> None:
    """Print the milliseconds that the import adds."""
    command = [sys.executable, "-c", CODE]
    times = [
        1000 * float(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
        for _ in range(runs)
    ]
    figures = {"milliseconds": times, "median_milliseconds": statistics.median(times)}
    report("import st_plugins after import sentence_transformers", figures, output)


if __name__ == "__main__":
    typer.run(main)
