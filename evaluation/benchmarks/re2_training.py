"""Training RE2 on labelled pairs: seconds an epoch, pairs a second, and peak memory.

The pairs are the 19,216 of ``matching/qqp_train_subset.tsv.gz``; ``RE2Matcher.fit`` trains on them, on frozen word
vectors and without dev passes. ``quora`` is the configuration that the authors published for these questions, with
its batches of 512, ``small`` that of the RE2 study. Each is measured in a fresh process. An
epoch is timed by the trainer's own callbacks, so reading and tokenizing, which are done once, stand apart. Memory is
the peak over the training less what was there before it, with the texts and the untrained model. Batches are of
similar length, and the longest one makes the peak. A dry run takes a minute::

    python -m evaluation.benchmarks.re2_training --data DATA --vectors MODELS/glove-6B-50d-top10k/vectors.txt.gz
    python -m evaluation.benchmarks.re2_training --data DATA --vectors ... --pairs 640 --threads 1
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import TrainerCallback

from evaluation.benchmarks import harness
from st_plugins.core.reading.tables import read_table
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
    configurations: Annotated[list[str], typer.Option("--config", help="Which networks.")] = list(CONFIGURATIONS),  # noqa: B006 - typer's way
    threads: harness.ThreadCounts = [1, 2],  # noqa: B006
    epochs: Annotated[int, typer.Option(help="Epochs; the median counts.")] = 1,
    pairs: Annotated[int, typer.Option(help="Train on the first so many pairs; 0 for all.")] = 0,
    gpu: harness.Gpu = False,
    output: harness.Output = None,
    measure: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Print seconds an epoch, pairs a second and peak memory for each configuration and number of threads."""
    unknown = [name for name in configurations if name not in CONFIGURATIONS]
    if unknown:
        raise typer.BadParameter(f"{unknown} are none of {', '.join(CONFIGURATIONS)}", param_hint="--config")
    if measure:  # in the fresh process, for the setting given last
        print(json.dumps(train(configurations[-1], data, vectors, threads[-1], epochs, pairs, gpu)))
        return
    rows = []
    for name, count in itertools.product(configurations, threads):
        options = ["--measure", f"--config={name}", f"--threads={count}"]
        # OpenMP reads its variable only when a process begins.
        found = harness.in_fresh_process(*options, OMP_NUM_THREADS=str(count))
        rows.append({"configuration": name, "threads": count} | found)
        # The whole takes many minutes.
        print(rows[-1])
    figures = {
        "file": FILE,
        "vectors": vectors.name,
        "device": harness.device_name("cuda") if gpu else "CPU",
        "rows": rows,
    }
    harness.report("RE2 training", figures, output)


class EpochClock(TrainerCallback):
    """Note when each epoch begins and ends, by the wall clock and by that of the processor."""

    def __init__(self) -> None:
        self.begins: list[tuple[float, float]] = []
        self.ends: list[tuple[float, float]] = []

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the beginning."""
        self.begins.append(self._now())

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the end."""
        self.ends.append(self._now())

    def _now(self) -> tuple[float, float]:
        harness.wait()
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
    clock = EpochClock()
    if gpu:
        # The matcher moves in fit; before, there is no allocator whose peak could be reset.
        torch.cuda.init()
    begin = time.perf_counter()
    options: Any = {"device": "cuda" if gpu else "cpu", "show_progress_bar": False, "callbacks": [clock]}
    peak = harness.extra_bytes(lambda: matcher.fit(rows, epochs=epochs, batch_size=batch_size, **options), gpu)
    wall, processor = (
        statistics.median(end[kind] - start[kind] for start, end in zip(clock.begins, clock.ends, strict=True))
        for kind in (0, 1)
    )
    return {
        "pairs": len(rows),
        "batch_size": batch_size,
        "width": matcher.source.embedding_dimension,
        "parameters": harness.count_parameters(matcher.network.parameters()),
        "preparation_seconds": clock.begins[0][0] - begin,
        "epoch_seconds": wall,
        "epoch_processor_seconds": processor,
        "pairs_a_second": len(rows) / wall,
        "peak_mebibytes": peak / harness.MIB,
    }


if __name__ == "__main__":
    typer.run(main)
