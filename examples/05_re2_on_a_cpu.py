"""How well, and how fast, are pairs of texts judged on a CPU without a transformer?

`RE2Matcher` has word vectors, convolutions and an alignment of the two texts, and no sentence vector. Here the word
vectors are an encoder's own, whitened; the network is trained on labeled pairs and tested on others.

Look at: the accuracy beside the share of the largest class, and the pairs a second beside a cross-encoder of the
encoder's size on the same machine (whose accuracy is not asked here).

    python examples/05_re2_on_a_cpu.py
    python examples/05_re2_on_a_cpu.py --pairs pairs.tsv --epochs 10 --output ./matcher

Half a minute on one core. The default pairs are those of the built-in miniature world, which show that it runs and
prove nothing about English. With a few thousand pairs the mean of the same word vectors may be as good a judge.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from st_plugins import miniature
from st_plugins.matching import RE2Matcher, WordVectors


def read_rows(path: Path) -> list[tuple[str, str, str]]:
    """Return the texts and labels of a file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    if not rows or any(len(row) != 3 for row in rows):
        raise ValueError(f"{path} must have lines of a text, a text and a label between tabs, and nothing else")
    return [(first, second, label) for first, second, label in rows]


def main() -> None:
    """Train on nine tenths of the pairs, judge the rest, and measure the time of both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", default="all-MiniLM-L6-v2", help="whose word embeddings to take: folder or hub name"
    )
    parser.add_argument("--pairs", type=Path, help="lines of a text, a text and a label between tabs")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--output", type=Path, help="where to save the matcher")
    options = parser.parse_args()
    try:
        pairs = read_rows(options.pairs) if options.pairs else miniature.nli_pairs(2400)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    pairs = [pairs[row] for row in np.random.default_rng(0).permutation(len(pairs))]
    test, train = pairs[: len(pairs) // 10], pairs[len(pairs) // 10 :]
    texts, gold = [row[:2] for row in test], np.array([row[2] for row in test])
    torch.manual_seed(0)  # of the weights; `fit` has a seed of its own
    words = [text for row in train for text in row[:2]]
    source = WordVectors.from_encoder(SentenceTransformer(options.model), words, dimensions=64)
    labels = sorted({row[2] for row in train})
    matcher = RE2Matcher(source, "small", labels)
    print(matcher.fit(train, dev=0.1, epochs=options.epochs, show_progress_bar=False).summary())

    found = np.array(labels)[matcher.predict(texts).argmax(axis=1)]
    largest = max(np.mean(gold == label) for label in labels)
    print(f"test: right in {np.mean(found == gold):.1%} of {len(test)} pairs; the largest class is {largest:.1%}")

    speed = {}
    for name, judge in (("RE2", matcher), ("cross-encoder", CrossEncoder(options.model, num_labels=1))):
        started = time.perf_counter()
        judge.predict(texts)
        speed[name] = len(texts) / (time.perf_counter() - started)
    print(", ".join(f"{name}: {pairs:,.0f} pairs a second" for name, pairs in speed.items()))
    if options.output:
        matcher.save(options.output)
        print(f"saved: RE2Matcher.load({str(options.output)!r}) loads it")


if __name__ == "__main__":
    main()
