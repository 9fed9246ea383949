"""Scoring candidates for queries: cross-encoder, adapted interaction on kept token vectors, student's kept embeddings.

All three have random weights of one shape; random words make texts of about ``--words`` words. The documents are
encoded before, by the host's ``encode`` and by ``encode_tokens``, and that is not timed: it is done once for all
queries. A query is timed from its text to all its scores. The methods take turns, query by query; the cross-encoder,
being slow, gets ``--cross-encoder-queries`` of the queries.

``training`` shows that VIRT leaves nothing behind in the student: the same encoder, trained for two steps without and
with it, has the same modules, files and number of parameters, and encodes as fast. A dry run takes seconds::

    python -m evaluation.benchmarks.virt_serving
    python -m evaluation.benchmarks.virt_serving --layers 1 --hidden-size 32 --candidates 20 --queries 2 --runs 2
"""

from __future__ import annotations

import logging
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sentence_transformers.util import cos_sim
from torch import Tensor
from transformers import BertModel
from transformers.utils import logging as transformers_logging

from evaluation.benchmarks.harness import Output, Turns, count_parameters, device_name, report, timed
from evaluation.benchmarks.random_models import bert_config, mean_pooled, random_texts, save_random, vocabulary_size
from st_plugins.losses import VIRTLoss
from st_plugins.matching import VIRTPairClassifier

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
    output: Output = None,
) -> None:
    """Print pairs per second of each method, their ratios, and what training with VIRT changes in the student."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    shortest = max(1, words // 2)
    texts = random_texts(max(200, candidates + queries), shortest, 2 * words - shortest)
    positions = 2 * (2 * words + 8)  # of a pair
    config = bert_config(hidden_size, layers, heads, vocab_size=vocabulary_size(), max_position_embeddings=positions)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_random(BertModel, config, Path(folder, "student"))
        student = mean_pooled(checkpoint, device).eval()
        teacher: Any = CrossEncoder(checkpoint, num_labels=1, device=device)
        training = compare_training(Path(folder), teacher, texts[:200], positions // 2, batch_size, runs, device)
    classifier = VIRTPairClassifier(student)
    # Documents are encoded once for all queries to come, so that is not timed.
    documents, questions = texts[:candidates], texts[candidates : candidates + queries]
    embeddings: Any = student.encode(documents, batch_size=batch_size, convert_to_tensor=True)
    tokens = classifier.encode_tokens(documents, batch_size=batch_size)
    half = [vectors.half() for vectors in tokens]
    methods: dict[str, Callable[[str], object]] = {
        CROSS_ENCODER: lambda query: teacher.predict([(query, text) for text in documents], batch_size=batch_size),
        INTERACTION: lambda query: classifier.rank(query, tokens),
        HALF: lambda query: classifier.rank(query, half),
        STUDENT: lambda query: cos_sim(student.encode(query, convert_to_tensor=True), embeddings).topk(10),
    }
    turns = answer(methods, questions, cross_encoder_queries)
    medians = turns.medians()
    figures = {
        "queries": queries,
        "candidates": candidates,
        "tokens_a_document": statistics.mean(map(len, tokens)),
        "shape": {"layers": layers, "hidden_size": hidden_size, "heads": heads},
        "batch_size": batch_size,
        "device": device_name(device),
        "seconds_a_query": medians,
        "pairs_a_second": {name: candidates / seconds for name, seconds in medians.items()},
        "times_the_cross_encoder": {name: turns.ratio(CROSS_ENCODER, name) for name in methods},
        "times_slower_than_the_student": {name: seconds / medians[STUDENT] for name, seconds in medians.items()},
        "kept_megabytes": {
            INTERACTION: sum(vectors.nbytes for vectors in tokens) / 1e6,
            HALF: sum(vectors.nbytes for vectors in half) / 1e6,
            STUDENT: embeddings.nbytes / 1e6,
        },
        "training": training,
        "seconds": turns.seconds,
    }
    report("scoring candidates for queries", figures, output)


def answer(methods: dict[str, Callable[[str], object]], questions: list[str], limit: int) -> Turns:
    """Time every query with every method, the cross-encoder with as many as it gets."""
    turns = Turns({name: [] for name in methods}, {})
    for name, method in methods.items():
        if name != CROSS_ENCODER:  # too slow to warm up
            method(questions[0])
    for position, question in enumerate(questions):
        for name, method in methods.items():
            if name != CROSS_ENCODER or position < limit:
                turns.seconds[name].append(timed(partial(method, question))[0])
    return turns


def compare_training(
    folder: Path, teacher: CrossEncoder, texts: list[str], length: int, batch_size: int, runs: int, device: str
) -> dict[str, Any]:
    """Train the same encoder for two steps without and with VIRT; compare what is saved and how fast it encodes."""
    models, found = {}, {}
    for name in ("without", "with"):
        model = mean_pooled(str(folder / "student"), device).train()
        # So that a pair fits into the teacher.
        model.max_seq_length = length
        task = CosineSimilarityLoss(model)
        loss: torch.nn.Module = task if name == "without" else VIRTLoss(model, teacher, task)
        optimizer = torch.optim.AdamW([p for p in loss.parameters() if p.requires_grad], lr=1e-4)
        for begin in (0, 8):
            columns = [model.preprocess(texts[begin + side : begin + side + 4]) for side in (0, 4)]
            columns = [{k: v.to(device) for k, v in c.items() if isinstance(v, Tensor)} for c in columns]
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
            "parameters": count_parameters(model.parameters()),
        }
        models[name] = SentenceTransformer(str(folder / name), device=device)
    turns = Turns({name: [] for name in models}, {})
    for run in range(runs + 1):
        # Whichever comes second finds a warm cache, so they also change places.
        for name in sorted(models, reverse=run % 2 == 0):
            seconds, _ = timed(partial(models[name].encode, texts, batch_size=batch_size))
            if run:
                turns.seconds[name].append(seconds)
    return {
        "same_modules_files_and_parameters": found["without"] == found["with"],
        "student": found["with"],
        "texts_a_second": {name: len(texts) / seconds for name, seconds in turns.medians().items()},
        "encode_seconds": turns.seconds,
        "seconds_with_over_without": turns.ratio("with", "without"),
    }


if __name__ == "__main__":
    typer.run(main)
