"""What `st_plugins.scale` costs beside the host's plain ``encode``, and how much memory the commands take.

Overhead: the same short texts and the same cores. The host has them in a list and returns an array; ours reads a file
twice and writes Parquet with checksums; a third row adds what the host's user does next, ``numpy.save``. Ray's cluster
is up before the clock starts, its workers are not. Memory: the peak of the resident set of each command on more and
more lines, in fresh processes (Linux)::

    python -m evaluation.benchmarks.scale overhead --model MODEL --output scale_overhead.json
    python -m evaluation.benchmarks.scale memory --model MODEL --output scale_memory.json
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from evaluation.benchmarks import harness
from st_plugins.io import load
from st_plugins.miniature import corpus
from st_plugins.scale import Local, Ray, encode

app = typer.Typer(no_args_is_help=True)
Model = Annotated[Path, typer.Option(help="Folder of a Transformer model.")]
_DISTINCT = 20_000  # sentences that the lines repeat, each with a number behind it


@app.command()
def overhead(
    model: Model,
    texts: int = 200_000,
    runs: int = 1,
    static: Annotated[bool, typer.Option("--static", help="The model's word embeddings alone.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="The model's weights in bfloat16.")] = False,
    batch_size: int = 32,
    threads: harness.Threads = 2,
    output: harness.Output = None,
) -> None:
    """Print the seconds of the host's encode, and ours as ratios to them."""
    torch.set_num_threads(threads)
    loaded = load(str(model))
    encoder: Any = static_of(loaded) if static else loaded
    if bf16:
        encoder = encoder.to(torch.bfloat16)
    lines = list(short_texts(texts))
    host = "host, encode"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "texts.txt")
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

        def embed() -> Any:
            found = encoder.encode(lines, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
            return found.float().cpu().numpy()

        def ours(engine: Local | Ray) -> Callable[[], None]:
            def run() -> None:
                encode(encoder, path, Path(folder, "out"), engine=engine, batch_size=batch_size)
                shutil.rmtree(Path(folder, "out"))

            return run

        cluster = Ray(workers=threads)
        import ray

        ray.init(address="local", num_cpus=threads, include_dashboard=False, log_to_driver=False)
        methods: dict[str, Callable[[], Any]] = {
            host: embed,
            "host, encode and numpy.save": lambda: np.save(Path(folder, "out.npy"), embed()),
            "encode, local": ours(Local(1)),
            f"encode, Ray, {threads} workers": ours(cluster),
        }
        turns = harness.take_turns(methods, runs, warm_up=0 if texts > 50_000 and not static else 1)
        ray.shutdown()
    figures = {
        name: {"seconds": turns.medians()[name], "ratio to the host": turns.ratio(name, host)} for name in methods
    }
    kind = "static" if static else "bfloat16" if bf16 else "float32"
    title = f"scale overhead, {texts} short texts, {model.name} {kind}, batches of {batch_size}, {threads} threads"
    harness.report(title, figures, output)


@app.command()
def memory(
    model: Model,
    lines: Annotated[list[int], typer.Option(help="Numbers of lines.")] = [100_000, 500_000, 2_000_000],  # noqa: B006
    only: Annotated[list[str] | None, typer.Option(help="Names of commands (default: all).")] = None,
    output: harness.Output = None,
) -> None:
    """Print the peak of each command's resident set, of the model's word embeddings alone."""
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        static_of(load(str(model))).save(str(Path(folder, "static")))
        for count in lines:
            path = Path(folder, "texts.txt")
            with path.open("w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in short_texts(count))
            commands = {
                "encode": ["--output", "out"],
                "whiten": ["--output", "out"],
                "compress": ["--output", "out", "--bytes", "96"],
                "geometry": [],
                "encode with Ray": ["--output", "out", "--engine", "ray"],
            }
            for name, options in commands.items():
                if only and name not in only:
                    continue
                words = [
                    "st_plugins",
                    name.split()[0],
                    "static",
                    "--texts",
                    "texts.txt",
                    "--batch-size",
                    "1024",
                    *options,
                ]
                peak, workers = _peaks([sys.executable, "-m", *words], Path(folder))
                figures.setdefault(name, {})[f"{count:,} lines, MiB"] = peak / harness.MIB
                if workers:
                    figures.setdefault(f"{name}, a worker", {})[f"{count:,} lines, MiB"] = workers / harness.MIB
                shutil.rmtree(Path(folder, "out"), ignore_errors=True)
    harness.report(f"scale memory, static embeddings of {model.name}, batches of 1024", figures, output)


def static_of(model: SentenceTransformer) -> SentenceTransformer:
    """Return the word embeddings of a model, averaged."""
    tokenizer: Any = model.tokenizer
    words: Any = model[0]
    weight = words.model.get_input_embeddings().weight.detach().clone()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer.backend_tokenizer, weight)]).eval()


def short_texts(count: int) -> Iterator[str]:
    """Yield sentences of about ten words, no two of them equal."""
    distinct = corpus(_DISTINCT)
    for number, text in enumerate(itertools.islice(itertools.cycle(distinct), count)):
        yield f"{text} {number}"


def _peaks(command: list[str], folder: Path) -> tuple[int, int]:
    """Return the peaks of the resident sets of a command and of the largest of Ray's workers, in bytes."""
    process, workers = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL), 0
    while True:
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        workers = max([workers, *map(_peak_of_worker, Path("/proc").glob("[0-9]*"))])
        time.sleep(0.2)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {status}")
    return 1024 * usage.ru_maxrss, workers


def _peak_of_worker(process: Path) -> int:
    """Return the peak of a process if it is a worker of Ray Data, otherwise 0."""
    try:
        if not (process / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
            return 0
        lines = (process / "status").read_text(encoding="ascii").splitlines()
    except OSError:  # it has ended
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    app()
