"""What every loss has: a guard against values that are no numbers, named terms, and one way to evaluate."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import get_rank, get_world_size
from torch import Tensor, nn
from typing_extensions import Self

from st_plugins.core.host import in_mode, unwrapped
from st_plugins.core.nonfinite import NonFiniteLossError, NonFiniteRowsError
from st_plugins.core.wrappers import refuse_around_layers, wrapped

Features = dict[str, Any]
T = TypeVar("T")  # a tensor, or tensors by name
_ADDED = "added"
_SEEDS = 2**32  # torch's generator on a CPU reads no more bits of a seed
_SPREAD = 0x9E3779B9  # odd, so that no two processes get one seed


def forked_rng(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Put the random state back at the end of the block."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device.index or 0], device_type=device.type)


@contextlib.contextmanager
def own_randomness(model: nn.Module) -> Iterator[None]:
    """Draw other random numbers inside the block than the other processes of a training do."""
    if get_world_size() == 1:
        yield
        return
    # The host's trainer gives all processes one seed, so that they would draw the same masks for different texts. A
    # number of the common stream makes a stream for each: nothing is kept from batch to batch, a checkpoint's random
    # state says all, and the common stream goes on alike everywhere, whoever else draws from it.
    common = int(torch.randint(_SEEDS, ()))
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with forked_rng(device):
        torch.manual_seed((common + get_rank() * _SPREAD) % _SEEDS)
        yield


@contextlib.contextmanager
def as_in_training(model: SentenceTransformer | CrossEncoder) -> Iterator[None]:
    """Let a model in evaluation mode behave as in training inside the block, the same way each time."""
    if model.training:
        yield
        return
    if torch.is_grad_enabled():
        raise ValueError(
            "the model is in evaluation mode while gradients are computed; call model.train() before training, or "
            "compute an evaluation loss inside torch.no_grad()"
        )
    # From a fixed seed, so that values at different checkpoints compare; another one in each process.
    with forked_rng(model.device), in_mode(model, training=True):
        torch.manual_seed(get_rank())
        yield


class GuardedLoss(nn.Module):
    """Base of all losses of this package: each looks at its own value, and raises if that is not finite."""

    # The host's trainer writes 0.0 to its log where a loss is NaN (logging_nan_inf_filter) and goes on, so the loss is
    # the last place where it can be seen. Looking waits for the device once a batch, as that filter does.

    _paper: ClassVar[str] = ""  # BibTeX

    model: Any
    training_step: int | None = None  # counted from 1; NonFiniteLossCallback tells it
    _batches = 0
    _batch: Sequence[Any] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss; what a module of the model finds not to be finite is an error of the training."""
        try:
            with own_randomness(self.model):
                return super().__call__(*args, **kwargs)
        except NonFiniteRowsError as error:
            count = batch_rows(self._batch[0]) if self._batch else 0  # a pass may have each row several times
            raise self.non_finite(str(error), sorted({row % count for row in error.rows} if count else ())) from error

    def get_config_dict(self) -> dict[str, Any]:
        """Return the constructor arguments, ready for JSON: ``type(loss)(model, **config)`` builds the loss again."""
        _, *arguments = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in arguments}

    @property
    def citation(self) -> str:
        """BibTeX entry of the paper, for model cards."""
        return self._paper

    def begin(self, columns: Sequence[Any], labels: Tensor | None = None) -> None:
        """Remember the batch, for errors, and refuse one that no loss could make anything of."""
        if columns and not batch_rows(columns[0]):
            raise ValueError("the batch has no rows; give the loss at least one")
        # MatryoshkaLoss and its like ask several times about one batch; errors count batches.
        batch = [_identity(column) for column in columns]
        again = len(batch) == len(self._batch) and all(map(_same, batch, self._batch))
        self._batch = batch
        self._batches += torch.is_grad_enabled() and not again
        refuse_around_layers(self.model, type(self).__name__)
        if isinstance(labels, Tensor) and labels.is_floating_point():
            bad = labels.isinf() if self._reads_marks() else ~labels.isfinite()
            if bad.any():  # losses that rank or compare would leave such rows out without a word
                raise self.non_finite(f"labels are not finite: {labels[bad][:8].tolist()}")

    def guarded(self, value: T, embeddings: Sequence[Tensor] = ()) -> T:
        """Return a loss, unless it is not finite."""
        terms: Mapping[str, Any] = value if isinstance(value, Mapping) else {"": value}
        if not torch.stack([term.detach().isfinite().all() for term in terms.values()]).all():
            named = {name: term.detach().sum().item() for name, term in terms.items()}
            what = f"the loss is {sum(named.values())}"
            if isinstance(value, Mapping):
                what += f" ({', '.join(f'{name} {number:.4g}' for name, number in named.items())})"
            raise self.non_finite(what, damaged_rows(embeddings))
        return value

    def non_finite(self, what: str, rows: list[int] | None = None) -> NonFiniteLossError:
        """Describe the latest batch in an error."""
        columns = [column for column in map(self._texts, self._batch) if column]
        count = min(map(len, columns), default=0)
        texts = [" | ".join(column[row] for column in columns) for row in rows or range(count)]
        return NonFiniteLossError(what, rows or [], texts, self.training_step, self._batches or None)

    def _reads_marks(self) -> bool:
        """Say whether this loss or one inside knows rows without a label, which have NaN."""
        loss: nn.Module | None = self
        while loss is not None and not getattr(loss, "marks_missing", False):
            loss = wrapped(loss)
        return loss is not None

    def _texts(self, column: Any) -> list[str]:
        """Return the texts of a column, decoded; none if it is not made of tokens."""
        if not isinstance(column, Mapping):
            return [text if isinstance(text, str) else " | ".join(map(str, text)) for text in column]
        ids, offsets = column.get("input_ids"), column.get("offsets")
        *_, inner = unwrapped(self.model)
        tokenizer: Any = getattr(inner, "tokenizer", None)
        if tokenizer is None or not isinstance(ids, Tensor):
            return []
        rows = ids if not isinstance(offsets, Tensor) else ids.tensor_split(offsets[1:].cpu())  # static embeddings
        return [tokenizer.decode(row.tolist(), skip_special_tokens=True) for row in rows]


def _identity(column: Any) -> Any:
    """Return what tells batches apart, and no more of them: features may hold the activations of all layers."""
    if not isinstance(column, Mapping):
        return column
    return {name: column[name] for name in ("input_ids", "offsets") if name in column}


def _same(column: Any, other: Any) -> bool:
    if isinstance(column, dict) and isinstance(other, dict):
        return column.get("input_ids") is other.get("input_ids")
    return column is other


def batch_rows(column: Any) -> int:
    """Return the number of texts in a column, or 1 where it cannot be seen."""
    if not isinstance(column, Mapping):
        return len(column)
    for name in ("offsets", "attention_mask", "input_ids"):
        if isinstance(column.get(name), Tensor):
            return len(column[name])
    return 1


def damaged_rows(embeddings: Sequence[Tensor]) -> list[int]:
    """Return the rows of which some embedding is not finite."""
    # (…, N, d) each: a view of a sentence is damaged or another, it is the sentence that is named.
    finite = [e.detach().isfinite().all(dim=-1).view(-1, e.shape[-2]).all(dim=0) for e in embeddings]
    if not finite:
        return []
    found: list[int] = (~torch.stack(finite).all(dim=0)).nonzero().flatten().tolist()
    return found


class Terms(dict[str, Tensor]):
    """The named terms of a loss, which can be weighted and added as if they were their sum.

    A trainer logs each term and trains on their sum. Losses that wrap others (``MatryoshkaLoss``,
    ``AdaptiveLayerLoss``) compute with numbers; with this they weigh and add the terms one by one, and the names stay.
    A plain number that is added becomes a term of its own, ``added``.

    Example:
        >>> terms = Terms(task=torch.tensor(1.0), penalty=torch.tensor(2.0))
        >>> 0.0 + 0.5 * terms + terms / 2
        {'task': tensor(1.), 'penalty': tensor(2.)}
        >>> terms + torch.tensor(3.0)
        {'task': tensor(1.), 'penalty': tensor(2.), 'added': tensor(3.)}
    """

    def __mul__(self, factor: Any) -> Self:
        return type(self)({name: value * factor for name, value in self.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Self:
        return type(self)({name: value / divisor for name, value in self.items()})

    def __add__(self, other: Any) -> Self:
        if not isinstance(other, Mapping):
            if not isinstance(other, Tensor) and other == 0:  # where sums begin
                return self
            other = {_ADDED: other}
        total = type(self)(self)
        for name, value in other.items():
            total[name] = total[name] + value if name in total else value
        return total

    __radd__ = __add__


def with_term(loss: nn.Module, value: Any, name: str, term: Tensor) -> Terms:
    """Add a named term to what a loss returned."""
    kind = type(loss).__name__
    if isinstance(value, Tensor):
        value = {kind: value}
    if not isinstance(value, dict):
        raise TypeError(
            f"loss must return a tensor or a dictionary of terms, but {kind} returned {type(value).__name__}"
        )
    if name in value:
        raise ValueError(f"{kind} has a term {name!r} already; do not add it twice")
    return Terms({**value, name: term})
