"""ConSERT with labels: classification of sentence pairs, plus the contrastive loss on both of their sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from st_plugins.core.headed_loss import HeadedLoss, check_targets, count_classes, embedding_dimension, pair_features
from st_plugins.core.loss import Features, Terms
from st_plugins.core.precision import precise
from st_plugins.methods.contrastive.consert import ConSERTLoss
from st_plugins.methods.contrastive.view_loss import adversarial_views
from st_plugins.methods.contrastive.views import NoAugmentation, TokenCutoff


class ConSERTJointLoss(ConSERTLoss, HeadedLoss):
    """Supervised training on labelled pairs (NLI) with ConSERT's contrastive loss beside the classifier's.

    The classifier's cross-entropy on ``[u; v; |u - v|]`` plus ``weight`` times `nt_xent`, added over the two columns:
    a premise has the other premises as negatives, not the hypotheses. The two terms are returned by name,
    ``classification`` and ``contrastive`` (weighted), so that the trainer logs each and trains on their sum.

    The classifier sees the embeddings of the **first** view, which is the clean one by default.

    An `AdversarialPerturbation` follows the gradient of the classification loss, computed on that view's own
    embeddings in a first pass that leaves every parameter's ``.grad`` alone; the second pass draws the same random
    numbers.

    Args:
        model: The model to train. Mean pooling, as published.
        labels: Names of the classes in their order, or just their number; a row has its class as an integer from 0.
        views: Two views, as for `ConSERTLoss`.
        weight: α of the paper, at least 0.
        temperature: τ of the paper, above 0.
        add_max_square: Whether the classifier also sees ``max(u, v)²``, as in the authors' supervised runs.
        gather_across_devices: As for `ConSERTLoss`; the classifier needs no other process.
        mini_batch_size: As for `ConSERTLoss`.
        encoder_dropout: Whether the encoder's own dropout is on.

    Inputs:
        +-----------------------------------+---------------------------+
        | Texts                             | Labels                    |
        +===================================+===========================+
        | (premise, hypothesis) pairs       | class, 0 … labels - 1     |
        +-----------------------------------+---------------------------+

    The paper's three ways to use labels, with two datasets: ``nli`` has columns premise, hypothesis and label, and
    ``unlabeled`` one text column::

        def train(model, dataset, loss, **arguments):
            arguments = SentenceTransformerTrainingArguments(warmup_steps=0.1, **arguments)
            SentenceTransformerTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss).train()

        # joint
        train(model, nli, ConSERTJointLoss(model), learning_rate=2e-5, num_train_epochs=1)
        # sup-unsup
        train(model, nli, SoftmaxLoss(model, model.get_embedding_dimension(), 3), learning_rate=2e-5)
        train(model, unlabeled, ConSERTLoss(model, (NoAugmentation(), FeatureCutoff(0.1))), learning_rate=5e-7)
        # joint-unsup
        train(model, nli, ConSERTJointLoss(model), learning_rate=2e-5)
        train(model, unlabeled, ConSERTLoss(model, (NoAugmentation(), TokenShuffle())), learning_rate=5e-7)

    Example:
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> model = untrained_encoder().train()
        >>> loss = ConSERTJointLoss(model)
        >>> pairs = [model.preprocess(corpus(8)), model.preprocess(corpus(8, seed=1))]
        >>> terms = loss(pairs, labels=torch.arange(8) % 3)
        >>> list(terms), bool(0.8 < terms["classification"] < 1.6)  # untrained: about log 3 = 1.1
        (['classification', 'contrastive'], True)

    Reference:
        Yan et al., arXiv 2105.11741, section 3.3: ``L = L_ce + α L_con``. The authors' `nt_xent` is twice the paper's,
        so their runs with ``cl_rate`` 0.15 correspond to ``weight=0.3`` here. Their classifier also sees the clean
        view where there is one. They perturb the embeddings of the clean pass but draw new dropout masks in the layers
        above, and zero all parameter gradients after the inner backward pass, which breaks gradient accumulation.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        labels: Sequence[str] | int = 3,
        views: Sequence[Any] = (NoAugmentation(), TokenCutoff(0.1)),
        weight: float = 0.15,
        temperature: float = 0.1,
        add_max_square: bool = False,
        gather_across_devices: bool = False,
        mini_batch_size: int | None = None,
        encoder_dropout: bool = True,
    ) -> None:
        super().__init__(model, views, temperature, gather_across_devices, mini_batch_size, encoder_dropout)
        if not weight >= 0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        self.labels, self.num_labels = labels, count_classes(labels)
        self.weight, self.add_max_square = weight, add_max_square
        self._width = embedding_dimension(model)
        self.head = nn.Linear(self._width * (4 if add_max_square else 3), self.num_labels, device=model.device)

    def check_columns(self, columns: list[Features]) -> None:
        """Raise a ValueError if there are not two text columns."""
        if len(columns) != 2:
            raise ValueError(f"ConSERTJointLoss takes two text columns (premise, hypothesis), got {len(columns)}")

    def check_labels(self, labels: Tensor | None) -> None:
        """Raise a ValueError if there is not a class for each row."""
        check_targets(labels, self.num_labels, ", or use ConSERTLoss, which needs no labels")

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Any:
        """Compute both terms.

        Args:
            embeddings: For premises and hypotheses ``(2, N, d)``.
            labels: ``(N,)`` classes.

        Returns:
            The terms by name.
        """
        return Terms(
            classification=self._classify(embeddings, labels, view=0),
            contrastive=self.weight * super().compute_loss_from_embeddings(embeddings),
        )

    def adversarial_objective(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return the classification loss on the embeddings of the adversarial views."""
        return torch.stack([self._classify(embeddings, labels, view) for view in adversarial_views(self.views)]).sum()

    def _classify(self, embeddings: list[Tensor], labels: Any, view: int) -> Tensor:
        u, v = (self.widened(column[view]) for column in embeddings)
        features = pair_features(u, v)
        if self.add_max_square:
            # The authors' flag --concatenation_sent_max_square, on in every one of their supervised scripts.
            features = torch.cat([features, torch.maximum(u, v).square()], dim=-1)
        return cross_entropy(precise(self.apply_head(features)), labels)
