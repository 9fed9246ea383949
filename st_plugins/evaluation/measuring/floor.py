"""The floor: what a bag of random token vectors scores on the same pairs, with the model's own tokenizer.

Semantic textual similarity benchmarks are built from sentence pairs that share words, so word overlap alone goes a
long way. The floor measures how far: every token gets a fixed Gaussian vector, a text is the mean of its tokens'
vectors, nothing is learned. Whitening the bag down-weights the directions of frequent tokens, much like inverse
document frequency, and lifts it by another ten points: with 768 dimensions and a vocabulary of 8k pieces it reaches
the published scores of whitened BERT-base. A model, or a post-processing, that does not stand clearly above this row
has not shown that it knows anything about meaning. That is why every evaluation prints it.

The vectors depend on the token's id, the dimension and the seed only, never on the texts, so two evaluations with the
same tokenizer and dimension have the same floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sentence_transformers import SentenceTransformer

from st_plugins.evaluation.measuring.scoring import TaskScores, equal_rows
from st_plugins.evaluation.result import Difference, FloorResult, Score
from st_plugins.evaluation.statistics import difference, holm, interval
from st_plugins.methods.whitening.whitening import Whitening

_BLOCK_IDS = 4096  # ids whose vectors are drawn together: a vector depends on its id alone, not on the texts
_TOKENIZE_ROWS = 8192


def token_ids(model: Any, sentences: Sequence[str]) -> list[list[int]]:
    """Tokenize with the model's own tokenizer and length limit, without special tokens."""
    tokenizer: Any = getattr(model, "tokenizer", None)
    length = model.max_seq_length
    limit = int(length) if length and math.isfinite(length) else None  # static embeddings say infinity
    # Three kinds of tokenizer: of the tokenizers library (static embeddings), of transformers, and the host's words.
    rows: list[list[int]] = []
    for start in range(0, len(sentences), _TOKENIZE_ROWS):
        block = list(sentences[start : start + _TOKENIZE_ROWS])
        if hasattr(tokenizer, "encode_batch"):
            rows += [encoding.ids for encoding in tokenizer.encode_batch(block, add_special_tokens=False)]
        elif hasattr(tokenizer, "num_special_tokens_to_add"):
            # The limit below cuts; a longer text is no reason for the tokenizer's own warning.
            rows += tokenizer(block, add_special_tokens=False, verbose=False)["input_ids"]
            if limit and start == 0:
                limit -= tokenizer.num_special_tokens_to_add()
        elif hasattr(tokenizer, "tokenize"):
            rows += [list(tokenizer.tokenize(text)) for text in block]
        else:
            raise TypeError(f"the model's tokenizer ({type(tokenizer).__name__}) cannot tokenize text")
    return [row[:limit] for row in rows] if limit else rows


def random_token_vectors(ids: NDArray[np.int64], dimension: int, seed: int = 0) -> NDArray[np.float32]:
    """Return a standard Gaussian vector for each token id, always the same for the same id."""
    vectors = np.empty((len(ids), dimension), dtype=np.float32)
    blocks = ids // _BLOCK_IDS
    for block in np.unique(blocks):
        rows = np.flatnonzero(blocks == block)
        table = np.random.default_rng([seed, int(block)]).standard_normal((_BLOCK_IDS, dimension), dtype=np.float32)
        vectors[rows] = table[ids[rows] % _BLOCK_IDS]
    return vectors


def bag_of_random_vectors(tokens: Sequence[Sequence[int]], dimension: int, seed: int = 0) -> NDArray[np.float32]:
    """Embed texts as the mean of their tokens' random vectors; only the share of each token counts, bit for bit."""
    lengths = np.array([len(row) for row in tokens], dtype=np.int64)
    flat = np.array([token for row in tokens for token in row], dtype=np.int64)
    ids, columns = np.unique(flat, return_inverse=True)
    # A text without tokens is a row of zeros.
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    bag = csr_matrix((np.ones(len(flat)), columns, offsets), shape=(len(tokens), len(ids)))
    # Each token once and in order: a sum in another order rounds differently, and rounding would be ranked.
    bag.sum_duplicates()
    bag.data /= np.repeat(lengths, np.diff(bag.indptr))
    return np.asarray(bag.astype(np.float32) @ random_token_vectors(ids, dimension, seed), dtype=np.float32)


def whiten_bag(raw: NDArray[np.float32], fit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Whiten bags of random vectors."""
    # Texts that do not vary have no covariance to whiten by.
    if len(fit) < 2 or not np.ptp(fit, axis=0).any():
        return raw
    whitening = Whitening(raw.shape[1]).fit(fit)
    rows, back = np.unique(equal_rows(raw), return_inverse=True)  # equal bags stay equal: a product rounds by place
    return np.asarray(whitening.transform(raw[rows]), dtype=np.float32)[back]


def floor_embeddings(
    model: SentenceTransformer,
    tokens: Sequence[Sequence[int]],
    dimension: int,
    seed: int,
    texts: Sequence[str] | None,
    *,
    each_task: bool,
) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
    """Return the floor's embeddings of the evaluated texts, raw and whitened."""
    raw = bag_of_random_vectors(tokens, dimension, seed)
    if each_task:  # then they are whitened with the model, task by task
        return raw, raw, "each task's own texts"
    if texts is None:
        return raw, whiten_bag(raw, raw), f"the {len(raw):,} evaluated sentences"
    fit = bag_of_random_vectors(token_ids(model, texts), dimension, seed)
    return raw, whiten_bag(raw, fit), f"{len(fit):,} unlabelled texts"


def floor_result(
    names: Sequence[str], scores: Sequence[TaskScores], dimension: int, whitened_on: str, confidence: float
) -> FloorResult:
    """Hold a model (system 0) against the raw (system 1) and the whitened floor (system 2), on the same resamples."""
    values = {name: score.spearman["all"] for name, score in zip(names, scores, strict=True)}
    samples = {name: score.spearman_samples["all"] for name, score in zip(names, scores, strict=True)}
    average = np.mean(list(values.values()), axis=0), np.mean(list(samples.values()), axis=0)

    def row(system: int) -> dict[str, Score]:
        scored = {key: interval(float(values[key][system]), samples[key][system], confidence) for key in values}
        return scored | {"avg": interval(float(average[0][system]), average[1][system], confidence)}

    def above(system: int) -> dict[str, Difference]:
        def against(value: NDArray[np.float64], sample: NDArray[np.float64]) -> Difference:
            return difference(float(value[0] - value[system]), sample[0] - sample[system], confidence)

        return holm({key: against(values[key], samples[key]) for key in values}, confidence) | {
            "avg": against(*average)
        }

    return FloorResult(row(1), row(2), above(1), above(2), dimension, whitened_on)
