"""A classifier that says what it looked at: few spans with large weights."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from st_plugins.core.headed_loss import ClassifierLoss, count_classes, embedding_dimension, pair_features
from st_plugins.core.host import default_prompt, evaluating, inner_model
from st_plugins.core.loss import Features, Terms
from st_plugins.core.precision import precise
from st_plugins.methods.self_explaining.span_pooling import SpanPooling

TERM = "span_sharpness"
CITATION = """
@article{sun-etal-2020-self-explaining,
    title = "Self-Explaining Structures Improve {NLP} Models",
    author = "Sun, Zijun and Fan, Chun and Han, Qinghong and Sun, Xiaofei and Meng, Yuxian and Wu, Fei and Li, Jiwei",
    journal = "arXiv preprint arXiv:2012.01786",
    year = "2020",
}
"""


class SelfExplainingLoss(ClassifierLoss):
    """Train a classifier whose decision is a weighted sum over spans, with most of the weight on few of them.

    Cross-entropy of a linear head on the embedding, minus ``weight`` times the sharpness ``Σ α²`` of the span weights,
    averaged over the texts of the batch. The sharpness is 1 when one span has all the weight, and one over the number
    of spans when all have the same, so the loss may be negative. The two terms are returned by name,
    ``classification`` and ``span_sharpness`` (weighted, negative), so that the trainer logs each and trains on their
    sum.

    The published model is a Transformer and a `SpanPooling`; modules after it are part of what the head sees. With
    ``weight=0`` there is no second term, and any pooling will do: the same classifier to compare with.

    Pairs of texts are classified in one of two ways. ``"joint"``, as published: one text column, whose entries are
    pairs; a pair is encoded as one text, ``[CLS] A [SEP] B [SEP]``, and no span crosses the separator. Make that
    column with ``dataset.map(lambda row: {"pair": [row["premise"], row["hypothesis"]]}, remove_columns=["premise",
    "hypothesis"])``. ``"siamese"``: two text columns, encoded by themselves; the head sees ``[u; v; |u - v|]``, and
    the model is useful for similarity as well.

    Unlike the contrastive losses of this package it evaluates as models do: without dropout in evaluation mode.

    Args:
        model: The model to train, with one `SpanPooling` unless ``weight`` is 0.
        labels: Names of the classes in their order, or just their number; a row has its class as an integer from 0.
        weight: λ of the paper, at least 0. A callback may set the attribute anew during the training.
        pairs: ``"joint"`` for one text column, of texts or of pairs; ``"siamese"`` for two.

    Inputs:
        +---------------------------------------+---------------------------+
        | Texts                                 | Labels                    |
        +=======================================+===========================+
        | texts, or pairs in one column         | class, 0 … labels - 1     |
        +---------------------------------------+---------------------------+
        | (text, text) in two columns (siamese) | class, 0 … labels - 1     |
        +---------------------------------------+---------------------------+

    The head is no part of the model: see `HeadedLoss` for keeping it. (``fit`` of sentence-transformers 6.0 does not
    train heads; its trainer does.) `predict` classifies texts, and the host's
    ``LabelAccuracyEvaluator(dataloader, softmax_model=loss)`` measures accuracy.

    Example:
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> model = SentenceTransformer(modules=[untrained_encoder()[0], SpanPooling(64)], device="cpu").train()
        >>> loss = SelfExplainingLoss(model, labels=["neutral", "happy"])
        >>> terms = loss([model.preprocess(corpus(8))], labels=torch.arange(8) % 2)
        >>> list(terms), bool(0.3 < terms["classification"] < 1.2)  # untrained: about log 2 = 0.7
        (['classification', 'span_sharpness'], True)
        >>> bool(-0.1 < terms["span_sharpness"] < 0), tuple(loss.predict(corpus(3)).shape)  # weights nearly equal
        (True, (3, 2))

    Reference:
        Sun et al., "Self-Explaining Structures Improve NLP Models" (2020), arXiv 2012.01786, section 3.3. The paper
        adds λ Σ α² with the sign such that sharp weights lower the loss; λ = 1 in the authors' code. Theirs is the
        joint form, with one separator between the texts.
    """

    _paper = CITATION

    def __init__(
        self,
        model: SentenceTransformer,
        labels: Sequence[str] | int,
        weight: float = 1.0,
        pairs: Literal["joint", "siamese"] = "joint",
    ) -> None:
        super().__init__(model)
        if pairs not in ("joint", "siamese"):
            raise ValueError(f"pairs must be 'joint' or 'siamese', got {pairs!r}")
        self.labels, self.num_labels = labels, count_classes(labels)
        self.weight, self.pairs = check_weight(weight), pairs
        if self.weight:
            SpanPooling.of(model)
        self._width = embedding_dimension(model)
        self.head = nn.Linear(self._width * (1 if pairs == "joint" else 3), self.num_labels, device=model.device)

    def check_columns(self, columns: list[Features]) -> None:
        """Raise a ValueError if the number of text columns is not that of ``pairs``."""
        wanted = 1 if self.pairs == "joint" else 2
        if len(columns) != wanted:
            remedy = (
                "put both texts of a pair into one column, dataset.map(lambda row: {'pair': [row[a], row[b]]}, "
                "remove_columns=[a, b]), or set pairs='siamese'"
                if wanted == 1
                else "give two texts for each row, or set pairs='joint'"
            )
            raise ValueError(
                f"SelfExplainingLoss with pairs={self.pairs!r} takes {wanted} text column(s), got {len(columns)}; "
                f"{remedy}"
            )

    def embed(self, columns: list[Features]) -> tuple[list[Tensor], Tensor | None]:
        """Return the embeddings of the columns, and the sharpness of the spans of all their texts."""
        # In evaluation mode SpanPooling writes no spans unless it is told to.
        with SpanPooling.of(self.model).returning_spans() if self.weight else contextlib.nullcontext():
            outputs = [self.model(features) for features in columns]
        sharpness = torch.cat([output[TERM] for output in outputs]) if self.weight else None
        return [output["sentence_embedding"] for output in outputs], sharpness

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None, sharpness: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute both terms.

        Args:
            embeddings: For each text column ``(N, d)``.
            labels: ``(N,)`` classes.
            sharpness: ``Σ α²`` of every text of the batch, ``(texts,)``; None leaves that term out.

        Returns:
            The terms by name.

        Raises:
            ValueError: There are no labels.
        """
        if labels is None:
            raise ValueError("labels are missing: give a class for each row")
        terms = Terms(classification=cross_entropy(self.logits(embeddings), labels))
        if sharpness is not None:
            terms[TERM] = -self.weight * sharpness.mean()
        return terms

    def predict(self, texts: Sequence[Any], batch_size: int = 32, prompt: str | None = None) -> Tensor:
        """Classify texts with the model and the head, in evaluation mode.

        Args:
            texts: Texts, or pairs of texts.
            batch_size: Texts encoded at a time.
            prompt: What goes before each text, or the first of a joint pair; None is the model's default prompt.

        Returns:
            ``(len(texts), num_labels)`` probabilities in float32 on the CPU; ``.argmax(dim=1)`` are the classes.

        Raises:
            ValueError: A text is no pair where ``pairs="siamese"`` needs one.
        """
        if self.pairs == "siamese" and any(isinstance(text, str) or len(text) != 2 for text in texts):
            raise ValueError("texts must be pairs (text, text) for a loss with pairs='siamese'")
        model = inner_model(self.model)
        prompt = default_prompt(model) if prompt is None else prompt
        found = [torch.zeros(0, self.num_labels)]
        with torch.no_grad(), evaluating(model):
            for begin in range(0, len(texts), batch_size):
                batch = list(texts[begin : begin + batch_size])
                columns = [batch] if self.pairs == "joint" else [list(column) for column in zip(*batch, strict=True)]
                features = [model.preprocess(column, prompt=prompt) for column in columns]
                _, logits = self([batch_to_device(column, model.device) for column in features])
                found.append(logits.softmax(dim=1).cpu())
        return torch.cat(found)

    def logits(self, embeddings: list[Tensor]) -> Tensor:
        """Return the logits of the classes, ``(N, num_labels)``, in float32 at least."""
        columns = [self.widened(embedding) for embedding in embeddings]
        return precise(self.apply_head(columns[0] if self.pairs == "joint" else pair_features(*columns)))


def check_weight(weight: float) -> float:
    """Return a weight of the sharpness."""
    if not weight >= 0:
        raise ValueError(f"weight must be at least 0, got {weight}; sharpness is subtracted from the loss")
    return weight
