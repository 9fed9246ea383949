"""What the card of an RE2 matcher says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from st_plugins.core.model_card import Base, Made, code, plain, texts_in_words
from st_plugins.core.pair_metrics import Accuracy
from st_plugins.methods.re2.matcher_training import MatcherTraining
from st_plugins.methods.re2.token_table import TokenTable

_METHOD = (
    "RE2, Yang et al. (2019), [P19-1465](https://aclanthology.org/P19-1465/): word vectors, convolutions and "
    "alignment between two texts"
)
_CITATION = """@inproceedings{yang-etal-2019-simple,
    title = {Simple and Effective Text Matching with Richer Alignment Features},
    author = {Yang, Runqi and Zhang, Jianhai and Gao, Xing and Ji, Feng and Chen, Haiqing},
    booktitle = {Proceedings of the 57th Annual Meeting of the Association for Computational Linguistics},
    year = {2019}
}"""


def made_of_matcher(matcher: Any) -> tuple[Base | None, Made]:
    """Return the model whose vectors a matcher reads, if there is one, and how it was trained."""
    # Its type is RE2Matcher, whose file imports this one.
    source = matcher.source
    base = source.base if isinstance(source, TokenTable) else Base.of(source.encoder)
    kind = f"{type(source).__name__}, {source.embedding_dimension} wide, " + (
        "trained along" if source.trainable else "frozen"
    )
    texts, measured = "not trained yet", ""
    if matcher.trained is not None:
        found = _training(matcher.trained)
        texts = texts_in_words(found.pairs, found.source, found.checksum, "labelled pairs")
        words = plain(found.summary())
        measured = f"{words[0].upper()}{words[1:]}."
    settings = {**matcher.config.to_dict(), **matcher.schedule.to_dict()}
    return base, Made("RE2", _METHOD, texts, settings, {"Token vectors": code(kind)}, measured, citation=_CITATION)


def _training(record: Mapping[str, Any]) -> MatcherTraining:
    """Return a training from what a saved matcher has of it."""
    known = {field.name: record[field.name] for field in fields(MatcherTraining) if field.name in record}
    if isinstance(known["accuracy"], Mapping):
        known["accuracy"] = Accuracy(**known["accuracy"])
    return MatcherTraining(**{**known, "history": [], "checkpoints": None})
