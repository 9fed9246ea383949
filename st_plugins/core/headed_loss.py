"""A trainable head that belongs to the loss and not to the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.functional import pad

from st_plugins.core.files import write_record, write_tensors
from st_plugins.core.labeled import check_classes
from st_plugins.core.loading.files import is_there, read_object, read_tensors
from st_plugins.core.loss import Features, GuardedLoss
from st_plugins.core.wrappers import around
from st_plugins.core.writing.atomic import atomic_file

TENSORS = "loss_head.safetensors"
_RECORD = "loss_head.json"


class HeadedLoss(GuardedLoss):
    """Base of losses with a head: it is trained by the trainer's optimizer, and not saved with the model.

    The host saves the model only. `save_head` and `load_head` keep the head, and `HeadCheckpointCallback` does so with
    every checkpoint, without which a resumed training starts with a new head.

    A trainer wraps the model for several processes, but not the loss. So the head looks after itself: all processes
    start with the head of the first one, and the gradients are averaged over them.

    Example:
        >>> import tempfile
        >>> from st_plugins.losses import SimCSELoss
        >>> from st_plugins.miniature import untrained_encoder
        >>> model = untrained_encoder()
        >>> first, second = SimCSELoss(model), SimCSELoss(model)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first.save_head(folder)
        ...     second.load_head(folder)
        >>> bool((first.head[0].weight == second.head[0].weight).all())
        True
    """

    head: nn.Module
    _width: int  # of the embeddings that the head was made for

    def save_head(self, path: str | Path) -> None:
        """Write the head to a folder: ``loss_head.safetensors``, and ``loss_head.json`` about it.

        Args:
            path: The folder; created if need be, other files in it are left alone.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.head.state_dict()
        with atomic_file(folder / TENSORS) as file:
            write_tensors(file, state)
        with atomic_file(folder / _RECORD) as file:
            shapes = {name: list(tensor.shape) for name, tensor in state.items()}
            write_record(file, loss=type(self).__name__, shapes=shapes)

    def load_head(self, path: str | Path) -> None:
        """Read a head that `save_head` wrote, for example from a checkpoint.

        Args:
            path: The folder.

        Raises:
            FileNotFoundError: There is no head in it.
            ValueError: The head is another loss's, has other shapes, or is damaged; this one is then left as it is.
        """
        folder = Path(path)
        if not is_there(folder / TENSORS) or not is_there(folder / _RECORD):
            raise FileNotFoundError(
                f"{folder} has no {TENSORS} with its {_RECORD}; write them with save_head, or give "
                "HeadCheckpointCallback to the trainer"
            )
        try:
            state = read_tensors(folder / TENSORS)
            loss = read_object(folder / _RECORD)["loss"]
        except (ValueError, KeyError) as error:
            raise ValueError(f"the head in {folder} is damaged ({error}); save it again") from error
        saved = {name: tuple(tensor.shape) for name, tensor in state.items()}
        own = {name: tuple(tensor.shape) for name, tensor in self.head.state_dict().items()}
        if (loss, saved) != (type(self).__name__, own):
            raise ValueError(
                f"the head in {folder} is of a {loss} with shapes {saved}, but this {type(self).__name__} has {own}; "
                "create the loss with the same model and arguments"
            )
        self.head.load_state_dict(state)

    def apply_head(self, features: Tensor) -> Tensor:
        """Apply the head, in its own type."""
        # Not in the constructor: a trainer may start its processes after the loss is made.
        if dist.is_available() and dist.is_initialized() and not self._shared:
            self._share()
        weight = next(self.head.parameters(), features)
        output: Tensor = self.head(features.to(weight.dtype))
        return output

    def widened(self, embeddings: Tensor) -> Tensor:
        """Fill embeddings that ``MatryoshkaLoss`` has cut with zeros, so that the head can take them."""
        # A linear head then uses its first columns only: the one head serves every dimension, as in the "efficient"
        # form of Matryoshka representations (MRL-E; Kusupati et al., arXiv 2205.13147).
        missing = self._width - embeddings.shape[-1]
        return pad(embeddings, (0, missing)) if missing > 0 and around(self.model).truncates else embeddings

    _shared = False

    def _share(self) -> None:
        # Each process may have drawn another head: the wrapper that would make them one is around the model only.
        for parameter in self.head.parameters():
            dist.broadcast(parameter.data, src=0)
            parameter.register_hook(_mean_over_processes)
        self._shared = True


class ClassifierLoss(HeadedLoss, ABC):
    """Base of losses whose head decides about texts, and which decide without labels what they are trained to."""

    num_labels: int

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model: nn.Module = model

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Any:
        """Embed the batch and compute the loss, or, without labels, what ``LabelAccuracyEvaluator`` asks for."""
        columns = list(sentence_features)
        self.begin(columns)
        predicting = labels is None and not torch.is_grad_enabled()
        self.check_columns(columns)
        if not predicting:
            self.check_labels(labels)
        embeddings, *terms = self.embed(columns)
        if predicting:
            return embeddings, self.logits(embeddings)
        return self.guarded(self.compute_loss_from_embeddings(embeddings, labels, *terms), embeddings)

    @abstractmethod
    def check_columns(self, columns: list[Features]) -> None:
        """Raise a ValueError if the loss does not take such text columns."""

    def check_labels(self, labels: Tensor | None) -> None:
        """Raise a ValueError if there is not a class for each row."""
        check_targets(labels, self.num_labels)

    @abstractmethod
    def embed(self, columns: list[Features]) -> tuple[Any, ...]:
        """Return the embeddings ``(N, d)`` of the columns in a list, and what else the loss is computed from."""

    @abstractmethod
    def logits(self, embeddings: list[Tensor]) -> Tensor:
        """Return what the head says of the embeddings, ``(N, num_labels)``."""

    @abstractmethod
    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None, *terms: Any) -> Any:
        """Compute the loss from plain tensors."""


def count_classes(labels: Sequence[str] | int) -> int:
    """Return how many classes there are, given their names in order, or just their number."""
    if isinstance(labels, bool) or not isinstance(labels, int | Sequence):
        raise TypeError(f"labels must be the names of the classes in their order, or their number, got {labels!r}")
    if not isinstance(labels, int):
        check_classes(labels)
        return len(labels)
    if labels < 2:
        raise ValueError(f"labels must be the names of at least two classes, or their number, got {labels}")
    return labels


def pair_features(first: Tensor, second: Tensor) -> Tensor:
    """Return what classifiers of pairs see of two embeddings: ``[u; v; |u - v|]``."""
    return torch.cat([first, second, (first - second).abs()], dim=-1)


def check_targets(labels: Tensor | None, num_labels: int, remedy: str = "") -> None:
    """Raise a ValueError if there is not one class for each row."""
    if labels is None:
        raise ValueError(f"labels are missing: name the dataset's column of classes 'label'{remedy}")
    whole = not (labels.is_floating_point() or labels.dtype == torch.bool) and labels.ndim == 1
    if not whole or not bool(((labels >= 0) & (labels < num_labels)).all()):
        raise ValueError(
            f"labels must be integers from 0 to {num_labels - 1}, one for each row, got {labels.dtype} "
            f"{labels.flatten()[:8].tolist()}; drop unlabelled rows (-1 in SNLI), or give more labels"
        )


def embedding_dimension(model: SentenceTransformer) -> int:
    """Return the width of the model's embeddings."""
    with model.truncate_embeddings(None):  # which cuts only what `encode` returns
        dimension = model.get_embedding_dimension()
    if dimension is None:
        raise ValueError("the model does not say its embedding dimension; append a Pooling or Dense module to it")
    return int(dimension)


def _mean_over_processes(gradient: Tensor) -> Tensor:
    # Heads get their gradient before any encoder layer does, in the same order everywhere, so this collective cannot
    # cross those of DistributedDataParallel.
    mean = gradient.clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()
