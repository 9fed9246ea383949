"""Training RE2 on labelled pairs: seconds an epoch, pairs a second, and peak memory.

The pairs are the 19,216 of ``matching/qqp_train_subset.tsv.gz``; ``RE2Matcher.fit`` trains on them, on frozen word
vectors and without dev passes. ``quora`` is the configuration that the authors published for these questions, with
its batches of 512, ``small`` that of the RE2 study. Each is measured in a fresh process. An
epoch is timed by the trainer's own callbacks, so reading and tokenizing, which are done once, stand apart. Memory is
the peak of the resident set over the training less what was resident before it, with the texts and the untrained
model (VmHWM, reset through /proc/self/clear_refs; Linux); on a GPU it is what the allocator held. Batches are of
similar length, and the longest one makes the peak. A dry run takes a minute::

    python evaluation/benchmarks/re2_training.py --data DATA --vectors MODELS/glove-6B-50d-top10k/vectors.txt.gz
    python evaluation/benchmarks/re2_training.py --data DATA --vectors ... --pairs 640 --threads 1
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import TrainerCallback

from st_plugins.core.files import library_versions
from st_plugins.core.reading.tables import read_table
from st_plugins.core.writing.atomic import write_text
from st_plugins.matching import RE2Config, RE2Matcher, WordVectors

# Network and pairs in a batch.
CONFIGURATIONS = {
    "quora": (RE2Config.named("quora"), 512),
    "small": (RE2Config(blocks=2, hidden_dimension=64, prediction="symmetric", max_seq_length=32), 32),
}
FILE = "matching/qqp_train_subset.tsv.gz"


def main(
    data: Annotated[Path, typer.Option(envvar="ST_PLUGINS_DATA", help=f"Folder with {FILE}.")],
    vectors: Annotated[Path, typer.Option(help="Word vectors, in the text format of GloVe or word2vec.")],
    configurations: Annotated[list[str], typer.Option("--config", help="Which networks.")] = list(CONFIGURATIONS),  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="Threads of PyTorch.")] = [1, 2],  # noqa: B006 - typer's way
    epochs: Annotated[int, typer.Option(help="Epochs; the median counts.")] = 1,
    pairs: Annotated[int, typer.Option(help="Train on the first so many pairs; 0 for all.")] = 0,
    gpu: Annotated[bool, typer.Option(help="Measure on the GPU.")] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    measure: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Print seconds an epoch, pairs a second and peak memory for each configuration and number of threads."""
    unknown = [name for name in configurations if name not in CONFIGURATIONS]
    if unknown:
        raise typer.BadParameter(f"{unknown} are none of {', '.join(CONFIGURATIONS)}", param_hint="--config")
    if measure:
        print(json.dumps(train(configurations[0], data, vectors, threads[0], epochs, pairs, gpu)))
        return
    shared = [f"--data={data}", f"--vectors={vectors}", f"--epochs={epochs}", f"--pairs={pairs}", "--measure"]
    shared += ["--gpu"] if gpu else []
    rows = []
    for name in configurations:
        for count in threads:
            command = [sys.executable, __file__, *shared, f"--config={name}", f"--threads={count}"]
            environment = {**os.environ, "OMP_NUM_THREADS": str(count)}
            found = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
            rows.append({"configuration": name, "threads": count} | json.loads(found.stdout.splitlines()[-1]))
            print(json.dumps(rows[-1]))
    result = {
        "benchmark": "RE2 training",
        "file": FILE,
        "vectors": vectors.name,
        "device": torch.cuda.get_device_name() if gpu else "CPU",
        "rows": rows,
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load_1_minute": os.getloadavg()[0]},
        "versions": library_versions(),
    }
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")


class EpochClock(TrainerCallback):
    """Note when each epoch begins and ends, by the wall clock and by that of the processor."""

    def __init__(self, gpu: bool) -> None:
        self.gpu = gpu
        self.begins: list[tuple[float, float]] = []
        self.ends: list[tuple[float, float]] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the beginning."""
        self.begins.append(self._now())

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the end."""
        self.ends.append(self._now())

    def _now(self) -> tuple[float, float]:
        if self.gpu:
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def train(name: str, data: Path, vectors: Path, threads: int, epochs: int, limit: int, gpu: bool) -> dict[str, Any]:
    """Train one matcher, and return what it took."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config, batch_size = CONFIGURATIONS[name]
    table = read_table(data / FILE)
    columns = (table.texts(column) for column in ("sentence1", "sentence2", "label"))
    rows = list(zip(*columns, strict=True))[: limit or None]
    matcher = RE2Matcher(
        WordVectors.from_file(vectors, [text for row in rows for text in row[:2]]), config, ["0", "1"]
    )
    clock = EpochClock(gpu)
    if not gpu:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")
    begin = time.perf_counter()
    matcher.fit(
        rows,
        epochs=epochs,
        batch_size=batch_size,
        device="cuda" if gpu else "cpu",
        show_progress_bar=False,
        callbacks=[clock],
    )
    wall, processor = (
        statistics.median(end[kind] - start[kind] for start, end in zip(clock.begins, clock.ends, strict=True))
        for kind in (0, 1)
    )
    peak = torch.cuda.max_memory_allocated() / 2**20 if gpu else resident("VmHWM") - before
    return {
        "pairs": len(rows),
        "batch_size": batch_size,
        "width": matcher.source.width,
        "parameters": sum(parameter.numel() for parameter in matcher.network.parameters()),
        "preparation_seconds": clock.begins[0][0] - begin,
        "epoch_seconds": wall,
        "epoch_processor_seconds": processor,
        "pairs_a_second": len(rows) / wall,
        "peak_mebibytes": peak,
    }


def resident(key: str) -> float:
    """Return a number of /proc/self/status in MiB."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:
        raise OSError(f"/proc/self/status has no {key}")
    return int(found[1]) / 1024


if __name__ == "__main__":
    typer.run(main)
