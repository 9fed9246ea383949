"""One ONNX file of a model, in float32 and in int8, against ``SentenceTransformer.encode``: sentences a second.

The sentences are those of the seven English STS tasks, in batches of like length on both sides; where there is no
data, sentences of the miniature world. The runtimes take turns, with as many threads each. With data, the Spearman
correlations of the int8 file are set beside those of the model, by the suite::

    python -m evaluation.benchmarks.onnx_export MODEL --data DATA
    python -m evaluation.benchmarks.onnx_export MODEL --sentences 64 --runs 1 --batch-size 8
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule

from evaluation.benchmarks.harness import Output, Threads, report, take_turns
from st_plugins import load
from st_plugins.data import Pairs, load_tasks
from st_plugins.evaluation import STSSuiteEvaluator
from st_plugins.miniature import corpus
from st_plugins.serving import OnnxEncoder, export_onnx


def main(
    model: Annotated[str, typer.Argument(help="Model folder.")],
    data: Annotated[
        Path | None, typer.Option(envvar="ST_PLUGINS_DATA", help="Folder of the data.", show_default=False)
    ] = None,
    sentences: Annotated[int, typer.Option(help="Sentences in a turn.")] = 2000,
    batch_size: int = 32,
    runs: int = 5,
    threads: Threads = 2,
    split: Annotated[str, typer.Option(help="'test' for the seven tasks, 'dev' for those that have one.")] = "test",
    output: Output = None,
) -> None:
    """Print sentences a second, ratios, distances of the vectors and, with data, what int8 costs in points."""
    torch.set_num_threads(threads)
    encoder = load(model, device="cpu")
    names = "en" if split == "test" else "stsb,sickr"
    tasks = [] if data is None else load_tasks(names, data, split=split)
    texts = sorted({text for task in tasks for text in (*task.first, *task.second)}) or corpus(sentences)
    random.Random(0).shuffle(texts)  # noqa: S311 - which sentences are timed is no secret
    texts = texts[:sentences]
    with tempfile.TemporaryDirectory() as folder:
        files = {"float32": Path(folder, "float32.onnx"), "int8": Path(folder, "int8.onnx")}
        found = {name: export_onnx(encoder, file, int8=name == "int8") for name, file in files.items()}
        loaded = {name: OnnxEncoder(file, threads=threads) for name, file in files.items()}
        megabytes = {name: file.stat().st_size / 1e6 for name, file in files.items()}
        methods: dict[str, Callable[[], Any]] = {
            "torch": lambda: encoder.encode(texts, batch_size=batch_size, show_progress_bar=False),
            "float32": lambda: loaded["float32"].encode(texts, batch_size=batch_size),
            "int8": lambda: loaded["int8"].encode(texts, batch_size=batch_size),
        }
        turns = take_turns(methods, runs)
        torch_vectors = turns.results["torch"]
        figures = {
            "model": Path(model).name,
            "threads": threads,
            "batch_size": batch_size,
            "runs": runs,
            "sentences": len(texts),
            "characters_a_sentence": float(np.mean([len(text) for text in texts])),
            "megabytes": megabytes,
            "sentences_a_second": {name: len(texts) / median for name, median in turns.medians().items()},
            "times_the_sentences_of_torch": {name: turns.ratio("torch", name) for name in files},
            "all_ratios": {name: turns.ratios("torch", name) for name in files},
            "largest_difference": {name: float(np.abs(turns.results[name] - torch_vectors).max()) for name in files},
            "smallest_cosine_on_odd_texts": {name: one.smallest_cosine for name, one in found.items()},
        }
        if tasks:
            figures["points"] = points(tasks, encoder, loaded["int8"], split, batch_size)
    report("one ONNX file", figures, output)


def points(
    tasks: list[Pairs], model: SentenceTransformer, file: OnnxEncoder, split: str, batch_size: int
) -> dict[str, Any]:
    """Score the model and the int8 file on the tasks."""
    suite = STSSuiteEvaluator(
        tasks, split=split, batch_size=batch_size, bootstrap_samples=0, floor=False, geometry=False
    )
    wrapped = SentenceTransformer(modules=[_File(file)], device="cpu", similarity_fn_name=model.similarity_fn_name)
    scores = {name: suite(one) for name, one in (("torch", model), ("int8", wrapped))}
    average = str(suite.primary_metric)
    return {
        "split": split,
        **{name: 100 * values[average] for name, values in scores.items()},
        "lost": 100 * (scores["torch"][average] - scores["int8"][average]),
        "lost_by_task": {
            task.name: 100 * (scores["torch"][key] - scores["int8"][key])
            for task in tasks
            for key in [f"{task.name}_spearman_cosine"]
        },
    }


class _File(InputModule):
    """A file as a module of the host, for its evaluators."""

    def __init__(self, file: OnnxEncoder) -> None:
        super().__init__()
        self.file = file
        self.max_seq_length = file.settings["max_seq_length"]
        self.tokenizer = file.tokenizer

    def preprocess(self, inputs: Any, prompt: str | None = None, **_: Any) -> dict[str, Any]:
        return {"sentence_embedding": torch.from_numpy(self.file.encode(inputs, prompt=prompt))}

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        return features

    def get_embedding_dimension(self) -> int:
        width: int = self.file.settings["embedding_dimension"]
        return width

    def save(self, *_: Any, **__: Any) -> None:
        raise TypeError("a file is measured here, not saved")


if __name__ == "__main__":
    typer.run(main)
