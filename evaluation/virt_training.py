"""The rows of the VIRT study: their losses, and how the trained ones answer."""

from __future__ import annotations

from functools import partial
from typing import Any

from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, CosineSimilarityLoss
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from evaluation.pair_tasks import Examples
from evaluation.pair_training import Answer, compare, predict, softmax_siamese
from evaluation.virt_recipe import Row
from st_plugins.losses import VIRTLoss
from st_plugins.matching import VIRTPairClassifier, VIRTPairLoss

__all__ = ["soft_cross_entropy", "student", "trim", "with_virt"]


def trim(examples: Examples, tokenizer: Any, max_length: int) -> Examples:
    """Cut every text to what the bi-encoder reads of it, so that the cross-encoder reads the same.

    Args:
        examples: The pairs.
        tokenizer: A fast tokenizer.
        max_length: Tokens, special ones included.

    Returns:
        The pairs, each text cut at the end of a token.
    """
    texts = list(dict.fromkeys([*examples.first, *examples.second]))
    found = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True)["offset_mapping"]
    cut = {text: text[: max(end for _, end in offsets)] for text, offsets in zip(texts, found, strict=True)}
    first, second = ([cut[text] for text in side] for side in (examples.first, examples.second))
    return Examples(first, second, examples.gold)


def student(row: Row, model: SentenceTransformer, classes: int) -> tuple[nn.Module, Answer]:
    """Return a row's own loss, and how the trained row answers.

    Args:
        row: The row, not a cross-encoder.
        model: Its encoder.
        classes: Number of classes; 0 for scores.

    Returns:
        The loss and the answer.
    """
    if row.kind == "interaction":
        classifier = VIRTPairClassifier(model, classes or 1, fusion=row.fusion)
        return VIRTPairLoss(classifier), partial(predict, classifier)
    if classes:
        return softmax_siamese(model, classes, soft_cross_entropy if row.distillation else nn.CrossEntropyLoss())
    regression: Any = CoSENTLoss if row.regression == "cosent" else CosineSimilarityLoss
    return regression(model), partial(compare, model, cosine_similarity)


def with_virt(row: Row, model: SentenceTransformer, teacher: CrossEncoder, task_loss: nn.Module) -> nn.Module:
    """Return the loss of a row: its own, with VIRT's where the row has a weight for it.

    Args:
        row: The row.
        model: Its encoder.
        teacher: The cross-encoder.
        task_loss: Its own loss.

    Returns:
        The loss.
    """
    if not row.weight:
        return task_loss
    options: Any = {key: getattr(row, key) for key in ("weight", "heads", "target", "distance")}
    layers: Any = row.layers if isinstance(row.layers, str) else list(row.layers)
    return VIRTLoss(
        model, teacher, task_loss, layers=layers, include_special_tokens=row.special_tokens == "include", **options
    )


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy to class probabilities, which version 6.0 of the host hands over flattened.

    Args:
        logits: ``(N, C)``.
        targets: As many probabilities.

    Returns:
        A number.
    """
    return cross_entropy(logits, targets.view_as(logits).to(logits.dtype))
