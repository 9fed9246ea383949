"""The rows of the VIRT study: their losses, and how the trained ones answer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, CosineSimilarityLoss
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from evaluation.engine.pairs import Answer, Examples
from evaluation.engine.training import compare, predict, softmax_siamese
from st_plugins.losses import VIRTLoss
from st_plugins.matching import VIRTPairClassifier, VIRTPairLoss

if TYPE_CHECKING:
    from evaluation.studies.virt.study import Row

__all__ = ["soft_cross_entropy", "student", "trim", "with_virt"]


def trim(examples: Examples, tokenizer: Any, max_length: int) -> Examples:
    """Cut every text to what the bi-encoder reads of it, so that the cross-encoder reads the same."""
    texts = list(dict.fromkeys(examples.texts))
    found = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True)["offset_mapping"]
    # Special tokens have the offsets (0, 0): the largest end is that of the last token of the text.
    cut = {text: text[: max(end for _, end in offsets)] for text, offsets in zip(texts, found, strict=True)}
    first, second = ([cut[text] for text in side] for side in (examples.first, examples.second))
    return Examples(first, second, examples.gold)


def student(row: Row, model: SentenceTransformer, classes: int) -> tuple[nn.Module, Answer]:
    """Return the own loss of a row that is no cross-encoder, and how the trained row answers; 0 classes for scores."""
    if row.kind == "interaction":
        classifier = VIRTPairClassifier(model, classes or None, fusion=row.fusion)
        return VIRTPairLoss(classifier), partial(predict, classifier)
    if classes:
        return softmax_siamese(model, classes, soft_cross_entropy if row.distillation else nn.CrossEntropyLoss())
    regression: Any = CoSENTLoss if row.regression == "cosent" else CosineSimilarityLoss
    return regression(model), partial(compare, model, cosine_similarity)


def with_virt(row: Row, model: SentenceTransformer, teacher: CrossEncoder, task_loss: nn.Module) -> nn.Module:
    """Return the loss of a row: its own, with VIRT's where the row has a weight for it."""
    if not row.weight:
        return task_loss
    keys = ("weight", "heads", "target", "distance", "include_special_tokens")
    options: Any = {key: getattr(row, key) for key in keys}
    layers: Any = row.layers if isinstance(row.layers, str) else list(row.layers)
    return VIRTLoss(model, teacher, task_loss, layers=layers, **options)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy to class probabilities, which version 6.0 of the host hands over flattened."""
    return cross_entropy(logits, targets.view_as(logits).to(logits.dtype))
