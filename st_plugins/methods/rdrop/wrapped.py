"""The losses that R-Drop can stand around, and what it has to know of them."""

from __future__ import annotations

from typing import Literal, cast

from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, CrossEntropyLoss, MSELoss
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    CosineSimilarityLoss,
    MultipleNegativesRankingLoss,
    SoftmaxLoss,
)
from torch import nn

from st_plugins.core.headed_loss import HeadedLoss
from st_plugins.core.host import unwrapped
from st_plugins.core.loss import GuardedLoss
from st_plugins.core.wrappers import gradient_cached, wrapped, written

Consistency = Literal["classes", "scores", "similarities"]

_CROSS_ENCODER_LOSSES: dict[type[nn.Module], Consistency] = {
    CrossEntropyLoss: "classes",
    BinaryCrossEntropyLoss: "classes",
    MSELoss: "scores",
}
# How few and how many text columns losses take that would fail on others without a word about it.
_COLUMNS: dict[type[nn.Module], tuple[int, int | None]] = {
    CoSENTLoss: (2, 2),
    CosineSimilarityLoss: (2, 2),
    SoftmaxLoss: (2, 2),
    MultipleNegativesRankingLoss: (2, None),
}


def check_columns(loss: nn.Module, count: int) -> None:
    """Raise a ValueError if a loss does not take so many text columns."""
    if not count:
        raise ValueError("the dataset has no text column; give it at least one")
    fewest, most = next((n for kind, n in _COLUMNS.items() if isinstance(loss, kind)), (1, None))
    if not fewest <= count <= (most or count):
        raise ValueError(
            f"RDropLoss({type(loss).__name__}) takes {fewest} text columns{'' if most else ' or more'}, got {count}; "
            "change the dataset's columns, or use another loss"
        )


def check_wrapped(loss: nn.Module) -> SentenceTransformer | CrossEncoder:
    """Return the model of a loss that can be wrapped."""
    name, inner = type(loss).__name__, inner_of(cast("nn.Module", loss.model))
    if (cached := gradient_cached(loss)) is not None:
        raise ValueError(
            f"{cached} embeds parts of a batch, and a second time for the gradients, so that RDropLoss cannot follow "
            "it; use the loss without caching, or gradient accumulation"
        )
    parts = [part for part in loss.modules() if part is not loss]
    if any(dict(part.named_children()).get("model") is loss.model for part in parts):
        raise ValueError(f"{name} cannot be inside RDropLoss: {_remedy(loss)}")
    if getattr(loss, "compares_views", False):
        raise ValueError(f"{name} compares several views of its own, dropout among them; train with it as it is")
    if isinstance(inner, CrossEncoder) and not isinstance(loss, tuple(_CROSS_ENCODER_LOSSES)):
        known = ", ".join(kind.__name__ for kind in _CROSS_ENCODER_LOSSES)
        raise ValueError(f"RDropLoss supports these losses of cross-encoders: {known}; got {name}")
    return inner


def _remedy(loss: nn.Module) -> str:
    """Say what to write instead of R-Drop around a loss that stands around another."""
    name, inside = type(loss).__name__, wrapped(loss)
    if getattr(loss, "marks_missing", False):  # R-Drop itself
        return "once is enough; give it the loss without RDropLoss"
    if inside is None:
        return "it needs the model in one pass of its own; leave out the one or the other"
    if isinstance(loss, GuardedLoss):
        first = "model, teacher, " if hasattr(loss, "teacher") else ""
        return f"it looks into the model's pass; write {name}({first}RDropLoss({written(inside)}), …)"
    return f"it calls the loss in it several times; write {name}(model, RDropLoss({written(inside)}), …)"


def consistency_of(loss: nn.Module) -> Consistency:
    """Say what the predictions of a loss are."""
    for kind, consistency in _CROSS_ENCODER_LOSSES.items():
        if isinstance(loss, kind):
            return consistency
    if isinstance(loss, SoftmaxLoss | HeadedLoss):
        return "classes"
    return "scores" if isinstance(loss, CosineSimilarityLoss | CoSENTLoss) else "similarities"


def classifier_of(loss: nn.Module) -> nn.Module | None:
    """Return the classifier that a loss on embeddings has."""
    head = getattr(loss, "classifier", getattr(loss, "head", None))
    return head if isinstance(head, nn.Module) else None


def inner_of(model: nn.Module) -> SentenceTransformer | CrossEncoder:
    """Return the model inside the wrappers of a trainer, DataParallel among them: it keeps the order of the rows."""
    *_, inner = unwrapped(model)
    if not isinstance(inner, SentenceTransformer | CrossEncoder):
        raise TypeError(
            f"loss.model must be a SentenceTransformer, a CrossEncoder or a wrapper of one, got {type(model).__name__}"
        )
    return inner
