"""The fifth step: pairs judged by the alignment of word vectors, without running any layer of a transformer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from st_plugins import miniature
from st_plugins.cli.demo.entailment import LABELS, Entailment
from st_plugins.cli.demo.found import Found
from st_plugins.cli.demo.resampling import mean_of, percents
from st_plugins.core.host import quiet
from st_plugins.matching import LearnedEmbedding, RE2Config, RE2Matcher, RE2Schedule, WordVectors

PAGE = "alignment.html"
_DIMENSIONS = 64  # of the word embeddings, whitened: what serves best in the study of RE2
_TIMED = 128  # pairs


@dataclass(frozen=True, kw_only=True)
class Matched(Found):
    """The matcher that was trained."""

    matcher: RE2Matcher


def match(model: SentenceTransformer, pairs: Entailment, folder: Path, seed: int, training: float = 1.0) -> Matched:
    """Train RE2 on the model's word embeddings, and judge it; ``folder`` gets the page of a pair."""
    train, dev = (
        [(first, second, LABELS[label]) for first, second, label in some]
        for some in (pairs.train[: max(100, round(training * len(pairs.train)))], pairs.dev)
    )
    torch.manual_seed(seed)
    words, kind = word_vectors(model, [text for first, second, _ in train for text in (first, second)])
    matcher = RE2Matcher(words, RE2Config(blocks=2, encoder_layers=1, hidden_dimension=48, dropout=0.1), LABELS)
    schedule = RE2Schedule(learning_rate=4e-3, batch_size=64, decay_rate=0.9, decay_samples=4000, epochs=2)
    matcher.fit(train, dev, schedule=schedule, seed=seed, device="cpu", show_progress_bar=False)

    test = [pair[:2] for pair in pairs.test]
    found = matcher.predict(test).argmax(axis=1)
    right = (found == np.array([label for _, _, label in pairs.test])).astype(np.float64)
    fast = pairs_per_second(matcher.predict, test)
    sentence = (
        f"Does one sentence follow from another? RE2, on {kind} and {len(train):,} labelled "
        f"pairs, is right in {percents(mean_of(right, 'match', seed))} % of {len(test):,} others, at {fast:,.0f} "
        "pairs a second"
    )
    short = f"RE2 matches {fast:,.0f} pairs a second"
    if (slow := speed_of_cross_encoder(model, test)) is not None:
        sentence += f"; a cross-encoder of the model's size reads {slow:,.0f}"
        short += f", a cross-encoder of the model's size {slow:,.0f}"
    entailed = (pair[:2] for pair, hit in zip(pairs.test, right, strict=True) if hit and pair[2])
    (folder / PAGE).write_text(matcher.explain(next(entailed, test[0])).to_html(), encoding="utf-8")
    pages = {"What two texts found in each other": PAGE}
    return Matched(sentence=sentence + ".", short=short, pages=pages, matcher=matcher)


def word_vectors(model: SentenceTransformer, texts: Sequence[str]) -> tuple[WordVectors | LearnedEmbedding, str]:
    """Return the model's word embeddings, whitened, or learned ones where it has none; and what they are."""
    try:
        return WordVectors.from_encoder(model, texts, _DIMENSIONS), "the model's word embeddings"
    except (TypeError, ValueError):
        tokenizer: Any = miniature.untrained_encoder().tokenizer
        return LearnedEmbedding.from_tokenizer(tokenizer, _DIMENSIONS), "word vectors that it learns itself"


def speed_of_cross_encoder(model: SentenceTransformer, pairs: Sequence[tuple[str, str]]) -> float | None:
    """Return how many pairs a second a cross-encoder with all layers of the model reads; None if it has none."""
    encoder: Any = getattr(model[0], "model", None)
    if encoder is None or not hasattr(encoder, "save_pretrained"):
        return None
    # Its head is untrained, which makes it no slower.
    with quiet(), tempfile.TemporaryDirectory() as folder:
        encoder.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        reader = CrossEncoder(folder, num_labels=1, device="cpu", local_files_only=True)
    return pairs_per_second(lambda some: reader.predict(some, show_progress_bar=False), pairs)


def pairs_per_second(predict: Callable[[Any], Any], pairs: Sequence[tuple[str, str]]) -> float:
    """Return how many pairs are judged in a second, in the best of three rounds after a first one."""
    some = list(pairs[:_TIMED])
    predict(some[:32])
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        predict(some)
        seconds.append(time.perf_counter() - started)
    return len(some) / min(seconds)
