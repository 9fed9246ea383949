"""The loss that trains a pair head together with its encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from st_plugins.core.headed_loss import ClassifierLoss
from st_plugins.core.loss import Features
from st_plugins.core.wrappers import refuse_around
from st_plugins.methods.virt.interaction import pair_means
from st_plugins.methods.virt.pair_classifier import VIRTPairClassifier

_CITATION = """
@inproceedings{li-etal-2022-virt,
    title = "{VIRT}: Improving Representation-based Text Matching via Virtual Interaction",
    author = "Li, Dan and Yang, Yang and Tang, Hongyin and Liu, Jiahao and Wang, Qifan and Wang, Jingang and Xu, Tong
        and Wu, Wei and Chen, Enhong",
    booktitle = "Proceedings of the 2022 Conference on Empirical Methods in Natural Language Processing",
    year = "2022",
    pages = "914--925",
}
"""


class VIRTPairLoss(ClassifierLoss):
    """Train a `VIRTPairClassifier`: cross-entropy of its classes, or binary cross-entropy of its score.

    Give the trainer (or ``SentenceTransformer.fit``) the classifier's encoder as its model, and this as its loss.
    Encoder and head are trained in place, so that the classifier is ready when the training is. As ``loss`` of
    `VIRTLoss` the encoder learns from a cross-encoder's attention at the same time; each column goes through the
    encoder once.

    The head is no part of the encoder: see `HeadedLoss`. Checkpoints need `HeadCheckpointCallback`; with
    ``load_best_model_at_end`` call ``loss.load_head(trainer.state.best_model_checkpoint)`` after the training.

    Args:
        classifier: What to train; encoder and head are shared, not copied.

    Inputs:
        +--------------------------------+----------------------------------------------------------+
        | Texts                          | Labels                                                   |
        +================================+==========================================================+
        | (text, text) in two columns    | class, 0 … num_labels - 1; from 0 to 1 for one label     |
        +--------------------------------+----------------------------------------------------------+

    The host's ``LabelAccuracyEvaluator(dataloader, softmax_model=loss)`` measures accuracy during the training; its
    evaluators of cross-encoders take the classifier.

    Example:
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> loss = VIRTPairLoss(VIRTPairClassifier(untrained_encoder().train(), labels=2))
        >>> columns = [loss.model.preprocess(corpus(8)), loss.model.preprocess(corpus(8, seed=1))]
        >>> bool(0.3 < loss(columns, labels=torch.arange(8) % 2) < 1.2)  # untrained: about log 2 = 0.7
        True

    Reference:
        Li et al., "VIRT: Improving Representation-based Text Matching via Virtual Interaction" (EMNLP 2022), arXiv
        2112.04195: the cross-entropy of the adapted interaction. The score for graded labels is ours, trained as the
        host trains its cross-encoders.
    """

    _paper = _CITATION

    def __init__(self, classifier: VIRTPairClassifier) -> None:
        if not isinstance(classifier, VIRTPairClassifier):
            raise TypeError(f"classifier must be a VIRTPairClassifier, got {type(classifier).__name__}")
        super().__init__(classifier.model)
        self.head = classifier.head
        self.num_labels, self.special_ids = classifier.num_labels, classifier.special_ids
        self._config = classifier.get_config_dict()

    def check_columns(self, columns: list[Features]) -> None:
        """Raise a ValueError if there are not two text columns."""
        if len(columns) != 2:
            raise ValueError(f"VIRTPairLoss takes 2 text columns, got {len(columns)}; give both texts of each pair")

    def check_labels(self, labels: Tensor | None) -> None:
        """Raise a ValueError if a row has no label of the right kind."""
        if self.num_labels > 1:
            super().check_labels(labels)
            return
        if labels is None:
            raise ValueError("labels are missing: name the dataset's column of scores 'label'")
        if labels.ndim != 1 or not bool(((labels >= 0) & (labels <= 1)).all()):
            raise ValueError(
                f"labels must be scores from 0 to 1, one for each row, got {labels.flatten()[:8].tolist()}; divide "
                "them by the highest, or give the classifier labels"
            )

    def embed(self, columns: list[Features]) -> tuple[list[Tensor]]:
        """Return ``u`` and ``v``, what each text is for the other, ``(N, d)`` each."""
        refuse_around(
            self.model,
            "VIRTPairLoss",
            "it compares the tokens of two texts, and has no embedding of a text to cut; train without the wrapper",
            layers=False,
        )
        self.head.train(self.model.training)  # a trainer sets the mode of its model only
        return (list(pair_means([self.model(features) for features in columns], self.special_ids).unbind(dim=1)),)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """Compute the loss from what the interaction gave.

        Args:
            embeddings: ``u`` and ``v``, ``(N, d)`` each.
            labels: ``(N,)``.

        Returns:
            A number.

        Raises:
            ValueError: There are no labels.
        """
        if labels is None:
            raise ValueError("labels are missing: give one for each row")
        logits = self.logits(embeddings)
        if self.num_labels > 1:
            return cross_entropy(logits, labels)
        return binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype))

    def logits(self, embeddings: list[Tensor]) -> Tensor:
        """Return the logits, ``(N, num_labels)``."""
        return self.apply_head(torch.stack(embeddings, dim=1))

    def get_config_dict(self) -> dict[str, Any]:
        """Return the classifier's options: ``VIRTPairLoss(VIRTPairClassifier(model, **config))`` builds the same."""
        return dict(self._config)
