"""What the benchmarks here share: taking turns, ratios, memory, the record with machine and versions, and its table.

Seconds mean little on another machine, so what counts is the ratio to a named peer in the same run: the methods take
turns, and the median of the turns' ratios counts. Memory is what a call holds at its peak beyond what was there: the
resident set of the process (VmHWM, reset through /proc/self/clear_refs; Linux), or what the GPU's allocator gave out.
"""

from __future__ import annotations

import json
import operator
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.table import Table

from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text
from st_plugins.report.terminal import terminal

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MIB = 2**20

# Options that several benchmarks have.
Data = Annotated[Path, typer.Option(envvar="ST_PLUGINS_DATA", help="Folder of the data.")]
Gpu = Annotated[bool, typer.Option(help="Measure on the GPU.")]
MemoryOf = Annotated[str, typer.Option(help="Print the extra memory of this method, in the setting given last.")]
Output = Annotated[Path | None, typer.Option(help="JSON file to write.")]
Precision = Annotated[Literal["float32", "bfloat16"], typer.Option(help="bfloat16 is autocast.")]
Threads = Annotated[int, typer.Option(help="Threads of PyTorch.")]
ThreadCounts = Annotated[list[int], typer.Option(help="Threads of PyTorch.")]


@dataclass
class Turns:
    """Seconds of every turn by method, and what each method returned last."""

    seconds: dict[Any, list[float]]
    results: dict[Any, Any]

    def medians(self) -> dict[Any, float]:
        """Return the median seconds of each method."""
        return {name: statistics.median(times) for name, times in self.seconds.items()}

    def ratios(self, one: Any, other: Any) -> list[float]:
        """Return how many times as long as the other a method took, turn by turn."""
        # Turn by turn, for what else the machine does slows neighbors down alike; a slow peer may have fewer turns.
        return list(map(operator.truediv, self.seconds[one], self.seconds[other]))

    def ratio(self, one: Any, other: Any) -> float:
        """Return the median of the ratios."""
        return statistics.median(self.ratios(one, other))


def take_turns(methods: Mapping[Any, Callable[[], object]], runs: int, warm_up: int = 1) -> Turns:
    """Time every method in every turn; the first ones, to warm up, do not count."""
    turns = Turns({name: [] for name in methods}, {})
    for turn in range(-warm_up, runs):
        for name, method in methods.items():
            seconds, turns.results[name] = timed(method)
            if turn >= 0:
                turns.seconds[name].append(seconds)
    return turns


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of one call and what it returned."""
    wait()
    begin = time.perf_counter()
    result = function()
    wait()
    return time.perf_counter() - begin, result


def repeated(function: Callable[[], object], times: int) -> Callable[[], None]:
    """Return a function that makes so many calls, where one is too short for the clock."""

    def calls() -> None:
        for _ in range(times):
            function()

    return calls


def wait() -> None:
    """Wait for the GPU, if it is in use: its kernels run on after a call has returned."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def extra_bytes(function: Callable[[], object], gpu: bool) -> int:
    """Return how much more memory there is at the peak of a call than before: resident, or allocated on the GPU."""
    if gpu:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    # Linux: "5" resets VmHWM, which would else be the peak of whatever the process did before.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _resident("VmRSS")
    function()
    return _resident("VmHWM") - before


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    kibibytes = next((line.split()[1] for line in lines if line.startswith(f"{key}:")), None)
    if kibibytes is None:
        raise OSError(f"/proc/self/status has no {key}")
    return 1024 * int(kibibytes)


def in_fresh_process(*options: str, **environment: str) -> Any:
    """Run this benchmark once more, with options added to those it has, and return the JSON on its last line."""
    # The allocator keeps what was freed, so memory is measured where no other method ran before.
    script = f"evaluation.benchmarks.{Path(sys.argv[0]).stem}"
    command = [sys.executable, "-m", script, *sys.argv[1:], *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | environment)
    return json.loads(done.stdout.splitlines()[-1])


def device_name(device: str) -> str:
    """Return what is measured on."""
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def count_parameters(parameters: Iterable[torch.Tensor]) -> int:
    """Return how many numbers there are in all."""
    return sum(parameter.numel() for parameter in parameters)


def report(benchmark: str, figures: Mapping[str, Any], output: Path | None) -> None:
    """Print the figures as a table, and write them with the machine and the versions."""
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "load_1_minute": os.getloadavg()[0]}
    record = {"benchmark": benchmark, **figures, "machine": machine, "versions": library_versions()}
    table = Table("figure", "value", title=benchmark)
    for name, value in _rows(figures):
        table.add_row(name, value)
    terminal().print(table)
    if output is not None:
        write_text(output, json.dumps(record, indent=1) + "\n")


def _rows(value: Any, *path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        value = dict(enumerate(value, 1))
    if not isinstance(value, Mapping):
        yield " / ".join(path), ", ".join(map(_said, value)) if isinstance(value, list) else _said(value)
        return
    for name, inner in value.items():
        yield from _rows(inner, *path, str(name))


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
