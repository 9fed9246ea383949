"""Scoring candidates for queries: cross-encoder, adapted interaction on kept token vectors, student's kept embeddings.

All three have random weights of one shape; random words make texts of about ``--words`` words. The documents are
encoded before, by the host's ``encode`` and by ``encode_tokens``, and that is not timed: it is done once for all
queries. A query is timed from its text to all its scores. The methods take turns, query by query, and the median of
the ratios counts; the cross-encoder, being slow, gets ``--cross-encoder-queries`` of the queries.

``training`` shows that VIRT leaves nothing behind in the student: the same encoder, trained for two steps without and
with it, has the same modules, files and number of parameters, and encodes as fast. A dry run takes seconds::

    python evaluation/benchmarks/virt_serving.py
    python evaluation/benchmarks/virt_serving.py --layers 1 --hidden-size 32 --candidates 20 --queries 2 --runs 2
"""

from __future__ import annotations

import json
import logging
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.util import cos_sim
from transformers import BertConfig, BertModel
from transformers.utils import logging as transformers_logging

from st_plugins.core.files import library_versions
from st_plugins.core.writing.atomic import write_text
from st_plugins.losses import VIRTLoss
from st_plugins.matching import VIRTPairClassifier
from st_plugins.miniature import untrained_encoder
from st_plugins.miniature.english.grammar import vocabulary

CROSS_ENCODER, INTERACTION, HALF = "cross-encoder", "adapted interaction", "adapted interaction, float16 vectors"
STUDENT = "student, kept embeddings"


def main(
    queries: int = 20,
    candidates: int = 1000,
    words: int = 20,
    layers: int = 6,
    hidden_size: int = 384,
    heads: int = 12,
    batch_size: int = 32,
    cross_encoder_queries: Annotated[int, typer.Option(help="Queries the cross-encoder scores, too.")] = 3,
    runs: Annotated[int, typer.Option(help="Repetitions of the comparison of encoding speeds.")] = 5,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print pairs per second of each method, their ratios, and what training with VIRT changes in the student."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        student = encoder(Path(folder, "student"), layers, hidden_size, heads, 2 * words + 8, device)
        teacher: Any = CrossEncoder(str(Path(folder, "student")), num_labels=1, device=device)
        training = compare_training(Path(folder), teacher, words, hidden_size, batch_size, runs, device)
    classifier = VIRTPairClassifier(student)
    texts = random_texts(candidates + queries, words)
    documents, questions = texts[:candidates], texts[candidates:]
    embeddings: Any = student.encode(documents, batch_size=batch_size, convert_to_tensor=True)
    tokens = classifier.encode_tokens(documents, batch_size=batch_size)
    half = [vectors.half() for vectors in tokens]
    methods: dict[str, Callable[[str], object]] = {
        CROSS_ENCODER: lambda query: teacher.predict([(query, text) for text in documents], batch_size=batch_size),
        INTERACTION: lambda query: classifier.rank(query, tokens),
        HALF: lambda query: classifier.rank(query, half),
        STUDENT: lambda query: cos_sim(student.encode(query, convert_to_tensor=True), embeddings).topk(10),
    }
    seconds = take_turns(methods, questions, cross_encoder_queries)
    result = {
        "benchmark": "scoring candidates for queries",
        "queries": queries,
        "candidates": candidates,
        "tokens_a_document": statistics.mean(map(len, tokens)),
        "shape": {"layers": layers, "hidden_size": hidden_size, "heads": heads},
        "batch_size": batch_size,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "seconds_a_query": {name: statistics.median(times) for name, times in seconds.items()},
        "pairs_a_second": {name: candidates / statistics.median(times) for name, times in seconds.items()},
        "times_the_cross_encoder": ratios(seconds, CROSS_ENCODER),
        "times_slower_than_the_student": {
            name: statistics.median(times) / statistics.median(seconds[STUDENT]) for name, times in seconds.items()
        },
        "kept_megabytes": {
            INTERACTION: sum(vectors.nbytes for vectors in tokens) / 1e6,
            HALF: sum(vectors.nbytes for vectors in half) / 1e6,
            STUDENT: embeddings.nbytes / 1e6,
        },
        "training": training,
        "seconds": seconds,
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "load_1_minute": os.getloadavg()[0]},
        "versions": library_versions(),
    }
    print(json.dumps(result, indent=1))
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")


def encoder(
    folder: Path, layers: int, hidden_size: int, heads: int, positions: int, device: str
) -> SentenceTransformer:
    """Return a random BERT with mean pooling and the tokenizer of the miniature world, and keep it as a checkpoint."""
    tokenizer = untrained_encoder().tokenizer
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=2 * positions,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.model_max_length = 2 * positions
    tokenizer.save_pretrained(folder)
    modules = [Transformer(str(folder)), Pooling(hidden_size, pooling_mode="mean")]
    return SentenceTransformer(modules=modules, device=device).eval()


def random_texts(count: int, words: int) -> list[str]:
    """Return texts of words of the tokenizer's vocabulary, each one token; lengths differ by half at most."""
    generator, pool = random.Random(0), sorted(vocabulary())  # noqa: S311 - no secrets
    shortest = max(1, words // 2)
    return [
        " ".join(generator.choices(pool, k=generator.randint(shortest, 2 * words - shortest))) for _ in range(count)
    ]


def take_turns(
    methods: dict[str, Callable[[str], object]], questions: list[str], limit: int
) -> dict[str, list[float]]:
    """Return the seconds of every query by method."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for name, method in methods.items():
        if name != CROSS_ENCODER:
            method(questions[0])
    for position, question in enumerate(questions):
        for name, method in methods.items():
            if name != CROSS_ENCODER or position < limit:
                seconds[name].append(timed(lambda method=method, question=question: method(question)))  # type: ignore[misc]
    return seconds


def ratios(seconds: dict[str, list[float]], against: str) -> dict[str, float]:
    """Return how many times more pairs a second than ``against``: the median over the queries that both scored."""
    return {
        name: statistics.median(slow / fast for slow, fast in zip(seconds[against], times, strict=False))
        for name, times in seconds.items()
    }


def compare_training(
    folder: Path, teacher: CrossEncoder, words: int, hidden_size: int, batch_size: int, runs: int, device: str
) -> dict[str, Any]:
    """Train the same encoder for two steps without and with VIRT; compare what is saved and how fast it encodes."""
    texts = random_texts(200, words)
    models, found = {}, {}
    for name in ("without", "with"):
        modules = [Transformer(str(folder / "student")), Pooling(hidden_size)]
        model = SentenceTransformer(modules=modules, device=device).train()
        model.max_seq_length = 2 * words + 8  # so that a pair fits into the teacher
        task = CosineSimilarityLoss(model)
        loss: torch.nn.Module = task if name == "without" else VIRTLoss(model, teacher, task)
        optimizer = torch.optim.AdamW([p for p in loss.parameters() if p.requires_grad], lr=1e-4)
        for begin in (0, 8):
            columns = [model.preprocess(texts[begin + side : begin + side + 4]) for side in (0, 4)]
            columns = [{k: v.to(device) for k, v in c.items() if isinstance(v, torch.Tensor)} for c in columns]
            value = loss(columns, torch.rand(4, device=device))
            terms = list(value.values()) if isinstance(value, dict) else [value]
            torch.stack(terms).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save(str(folder / name), create_model_card=False)
        files = [path for path in (folder / name).rglob("*") if path.is_file()]
        found[name] = {
            "modules": [f"{type(module).__module__}.{type(module).__name__}" for module in model],
            "files": {str(path.relative_to(folder / name)): path.stat().st_size for path in sorted(files)},
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
        models[name] = SentenceTransformer(str(folder / name), device=device)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for run in range(runs + 1):
        # Whichever comes second finds a warm cache, so they also change places.
        for name in sorted(models, reverse=run % 2 == 0):
            taken = timed(lambda name=name: models[name].encode(texts, batch_size=batch_size))  # type: ignore[misc]
            if run:
                seconds[name].append(taken)
    return {
        "same_modules_files_and_parameters": found["without"] == found["with"],
        "student": found["with"],
        "texts_a_second": {name: len(texts) / statistics.median(times) for name, times in seconds.items()},
        "encode_seconds": seconds,
        "seconds_with_over_without": statistics.median(
            a / b for a, b in zip(seconds["with"], seconds["without"], strict=True)
        ),
    }


def timed(function: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    typer.run(main)
