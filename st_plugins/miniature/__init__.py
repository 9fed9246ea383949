"""A miniature world: generated sentences whose meaning is known, and small encoders for them, all offline.

It exists to show that the machinery works and to give every claim a ground truth. Nothing measured on it proves
anything about English; every table made from it has to say so.
"""

from __future__ import annotations

from st_plugins.miniature.encoder import untrained_encoder
from st_plugins.miniature.pretraining import pretrained_encoder
from st_plugins.miniature.sentiment import SentimentSentence, sentiment_sentences
from st_plugins.miniature.world import corpus, nli_pairs, sts_pairs, sts_tasks

__all__ = [
    "SentimentSentence",
    "corpus",
    "nli_pairs",
    "pretrained_encoder",
    "sentiment_sentences",
    "sts_pairs",
    "sts_tasks",
    "untrained_encoder",
]
