"""What the losses share: sentences go in, one embedding for each view comes out."""

from __future__ import annotations

import contextlib
import logging
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import all_gather, all_gather_with_grad, get_rank, get_world_size
from torch import Tensor, nn

from st_plugins.core.dropout import dropout_probabilities, without_dropout
from st_plugins.core.host import inner_model
from st_plugins.core.loss import Features, GuardedLoss, as_in_training, batch_rows, forked_rng
from st_plugins.core.wrappers import around, keep_layers, refuse_around, repeated
from st_plugins.methods.contrastive.augmented_pass import AugmentedPass, augmented
from st_plugins.methods.contrastive.gradient_cache import embed_in_mini_batches
from st_plugins.methods.contrastive.notation import as_view, view_config
from st_plugins.methods.contrastive.views import AdversarialPerturbation, NoAugmentation, View

logger = logging.getLogger(__name__)

Views = tuple[tuple[View, ...], ...]


class ViewLoss(GuardedLoss, ABC):
    """Base of losses that compare several views of the same sentences."""

    def __init__(
        self,
        model: SentenceTransformer,
        views: Sequence[Any],
        temperature: float,
        *,
        gather_across_devices: bool = False,
        mini_batch_size: int | None = None,
        encoder_dropout: bool = True,
    ) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.views: Views = read_views(views, mini_batch_size)
        self.temperature = check_temperature(temperature)
        self.gather_across_devices = gather_across_devices
        self.mini_batch_size = mini_batch_size
        self.encoder_dropout = encoder_dropout
        clean = all(isinstance(part, NoAugmentation) for view in self.views for part in view)
        self.compares_views = len(self.views) > 1 or not clean  # one clean view is the model as it is
        if self.compares_views:
            AugmentedPass(inner_model(model), self.views)  # impossible views are refused now
        if clean and len(self.views) > 1 and not (encoder_dropout and dropout_probabilities(inner_model(model))):
            logger.warning(
                "The views differ by the encoder's dropout only, and that is 0: they will be identical. Set dropout "
                "in the model's configuration, or choose other views."
            )

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Any:
        """Embed the batch and compute the loss."""
        columns = list(sentence_features)
        self.begin(columns)
        self.check_columns(columns)
        self.check_labels(labels)
        if self._gathers:
            check_processes(inner_model(self.model).device, type(self).__name__, batch_rows(columns[0]), len(columns))
        embeddings = self.embed(columns, labels)
        return self.guarded(self.compute_loss_from_embeddings(embeddings, labels), embeddings)

    def check_columns(self, columns: list[Features]) -> None:
        """Raise a ValueError if the loss does not take such text columns."""
        if not columns:
            raise ValueError("the dataset has no text column; give it at least one")

    def check_labels(self, labels: Tensor | None) -> None:
        """Raise a ValueError if the labels do not suit the loss; by default it needs none."""

    @abstractmethod
    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Any:
        """Compute the loss."""

    def adversarial_objective(self, embeddings: list[Tensor], labels: Tensor | None) -> Tensor:
        """Return what an `AdversarialPerturbation` increases; by default the loss itself."""
        objective: Tensor = self.compute_loss_from_embeddings(embeddings, labels)
        return objective

    def embed(self, columns: list[Features], labels: Tensor | None = None, views: Views | None = None) -> list[Tensor]:
        """Embed every text column under all views."""
        views = self.views if views is None else views
        inner = inner_model(self.model)
        self._check_surroundings(inner, views)
        # Also where a loss is only evaluated: without augmentation and dropout the views would be the same.
        with as_in_training(inner):
            if adversarial_views(views):
                steps = self._adversarial_steps(inner, columns, labels, views)
                return [
                    self._augmented(self.model, features, views, step)[0]
                    for features, step in zip(columns, steps, strict=True)
                ]
            if self.mini_batch_size is None:
                return [self._encode(self.model, features, views) for features in columns]
            return [
                embed_in_mini_batches(
                    lambda part: self._encode(self.model, part, views),
                    lambda part: self._encode(inner, part, views),
                    features,
                    self.mini_batch_size,
                )
                for features in columns
            ]

    def gather(self, embeddings: Tensor) -> tuple[Tensor, int]:
        """Collect the embeddings of all processes, and say where those of this one begin."""
        # In the order of their ranks and with gradients: each process gets the sum of what all losses say of its
        # embeddings, and the mean that DistributedDataParallel takes is that of the whole batch's loss.
        if not self._gathers:
            return embeddings, 0
        return all_gather_with_grad(embeddings.contiguous()), get_rank() * len(embeddings)

    @property
    def _gathers(self) -> bool:
        return self.gather_across_devices and get_world_size() > 1

    def alone(self, candidates: int) -> bool:
        """Say whether a batch has nothing to tell its sentence apart from, and warn of it the first time."""
        if candidates > 1:
            return False
        # A last batch of one sentence is harmless: the formula gives 0 for it, with a gradient of 0. But where the
        # first one is so small, most often all are.
        if torch.is_grad_enabled() and self._batches <= 1 and (self.training_step or 1) <= 1:
            raise ValueError(
                "the first batch has 1 sentence, but the negatives are the others in it; use larger batches, or more "
                "texts (a training that is resumed just there needs NonFiniteLossCallback(loss), which tells the step)"
            )
        if not self._warned:
            self._warned = True
            logger.warning(
                "A batch has 1 sentence, which has no negatives: %s counts it as 0. dataloader_drop_last=True leaves "
                "such batches out.",
                type(self).__name__,
            )
        return True

    _warned = False

    @property
    def adversarial(self) -> bool:
        """Whether a view is an `AdversarialPerturbation`, for which the batch is embedded twice."""
        return bool(adversarial_views(self.views))

    def get_config_dict(self) -> dict[str, Any]:
        """Return the constructor arguments, ready for JSON: ``type(loss)(model, **config)`` builds the loss again."""
        config = super().get_config_dict()
        return config | ({"views": [view_config(view) for view in self.views]} if "views" in config else {})

    def _encode(self, model: nn.Module, features: Features, views: Views) -> Tensor:
        host = around(model)
        if not host.answers and not host.answers_layer:
            return self._augmented(model, features, views)[0]
        # The same views again, as the host kept them: their embeddings, or the layers that make others.
        with self._dropout(inner_model(model)):
            kept: Tensor = model(features if host.answers else repeated(features, len(views)))["sentence_embedding"]
        return _by_view(kept, views)

    def _dropout(self, inner: SentenceTransformer) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.encoder_dropout else without_dropout(inner)

    def _augmented(
        self, model: nn.Module, features: Features, views: Views, step: Tensor | None = None
    ) -> tuple[Tensor, AugmentedPass]:
        inner = inner_model(model)
        # The block is for the model itself, but a DistributedDataParallel around it is what has to be called.
        with self._dropout(inner), augmented(inner, views, None if step is None else [step]) as pass_:
            output = model(features)
        keep_layers(features, output, around(model))
        return _by_view(output["sentence_embedding"], views), pass_

    def _adversarial_steps(
        self, inner: SentenceTransformer, columns: list[Features], labels: Tensor | None, views: Views
    ) -> list[Tensor | None]:
        """Find the perturbations in a first pass, with the random numbers that the second pass will draw again."""
        # Also where the loss is only evaluated, without gradients: the step follows one there too.
        with torch.enable_grad(), forked_rng(inner.device):
            first = [self._augmented(inner, features, views) for features in columns]
            tokens = [pass_.token_embeddings[0] for _, pass_ in first]
            if not all(token.requires_grad for token in tokens):
                raise ValueError(
                    "AdversarialPerturbation needs a gradient at the token embeddings, but the encoder's embedding "
                    "layer is frozen; unfreeze it or choose another view"
                )
            objective = self.adversarial_objective([embeddings for embeddings, _ in first], labels)
            # With respect to the token embeddings only: no parameter's .grad is touched.
            gradients = torch.autograd.grad(objective, tokens)
        return [pass_.perturbations([g])[0] for (_, pass_), g in zip(first, gradients, strict=True)]

    def _check_surroundings(self, inner: SentenceTransformer, views: Views) -> None:
        name = type(self).__name__
        if adversarial_views(views):
            refuse_around(
                self.model,
                name,
                "an AdversarialPerturbation follows the gradient of one loss, and here there is one for each "
                "dimension or layer of the same pass; choose other views",
            )
        if self.mini_batch_size is not None:
            refuse_around(
                self.model,
                name,
                "with mini_batch_size texts are embedded again in the backward pass, when the wrapper has left the "
                "model; set mini_batch_size=None, and use gradient accumulation",
            )
        recomputes = any(getattr(module, "gradient_checkpointing", False) for module in inner.modules())
        if recomputes and not self.encoder_dropout and torch.is_grad_enabled() and dropout_probabilities(inner):
            raise ValueError(
                "encoder_dropout=False ends with the forward pass, but gradient checkpointing runs the layers again "
                "in the backward pass; train inside `with without_dropout(model):` (st_plugins.augment), or "
                "without gradient checkpointing"
            )


def _by_view(embeddings: Tensor, views: Views) -> Tensor:
    # View-major, as `repeated` lays out the rows: (views · N, d) becomes (views, N, d).
    return embeddings.view(len(views), -1, embeddings.shape[-1])


def read_views(views: Sequence[Any], mini_batch_size: int | None = None) -> Views:
    """Return the augmentations of each view, and refuse what no model could make of them."""
    if isinstance(views, str | View | Mapping):
        raise TypeError(f"views must be a sequence with one entry for each view, got {views!r}")
    if mini_batch_size is not None and mini_batch_size < 1:
        raise ValueError(f"mini_batch_size must be at least 1, or None for the whole batch; got {mini_batch_size}")
    read = tuple(map(as_view, views))
    if adversarial_views(read) and mini_batch_size is not None:
        raise ValueError(
            "AdversarialPerturbation needs the gradient of the whole batch before its second pass, which "
            "mini_batch_size is there to avoid; choose another view, or mini_batch_size=None"
        )
    return read


def check_processes(device: torch.device, name: str, texts: int, columns: int) -> None:
    """Raise a ValueError in all processes if their batches are no parts of one."""
    # Collectives of different shapes wait for each other, or mix up memory; these three numbers always fit.
    own = torch.tensor([[texts, columns, zlib.crc32(name.encode())]], device=device)
    found: list[list[int]] = all_gather(own).tolist()
    sizes, numbers, names = (sorted(set(values)) for values in zip(*found, strict=True))
    if len(names) > 1 or len(numbers) > 1:
        raise ValueError(
            f"gather_across_devices=True, but not all processes have the same loss and text columns (here a {name} "
            f"and {columns} columns): with several datasets a step may be another dataset's in each process; train "
            "them one after the other, or set gather_across_devices=False"
        )
    if len(sizes) > 1:
        raise ValueError(
            f"gather_across_devices=True, but the processes have batches of {', '.join(str(f[0]) for f in found)} "
            "texts; set dataloader_drop_last=True, which leaves out the last batch of an epoch where it is smaller"
        )


def adversarial_views(views: Views) -> list[int]:
    """Return which of the views have an `AdversarialPerturbation`."""
    return [
        position for position, view in enumerate(views) if any(isinstance(p, AdversarialPerturbation) for p in view)
    ]


def check_temperature(temperature: float) -> float:
    """Return the temperature."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    return temperature


def check_negatives(candidates: int) -> None:
    """Raise a ValueError if there is nothing to tell a sentence apart from."""
    # One candidate is right with probability 1 whatever the vectors are: loss and gradient would be 0 without a word.
    if candidates < 2:
        raise ValueError(
            f"the batch has {candidates} sentence, but the negatives are the others in it; use larger batches, and "
            "dataloader_drop_last=True if the last one of an epoch is so small"
        )
