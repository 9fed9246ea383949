"""Whitening: mean to zero, covariance to the identity, and as few dimensions as wanted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Self

from st_plugins.core.loading.files import Shapes, read_object
from st_plugins.core.loading.sizes import check_whole
from st_plugins.core.module import RECORD, TENSORS, FittedModule
from st_plugins.core.rows import as_rows
from st_plugins.methods.whitening.moments import Moments
from st_plugins.methods.whitening.state import WhiteningState, misfit
from st_plugins.methods.whitening.transform import derive

Array = NDArray[np.floating]


class Whitening(FittedModule):
    """Linear map that gives sentence embeddings zero mean and identity covariance, keeping the first few directions.

    With the mean ``μ`` and covariance ``Σ = U Λ Uᵀ`` of the texts it was fitted on (eigenvalues descending, ``Σ``
    divided by N as in the paper, not N - 1), and ``p = power``::

        x̃ = (x - μ) U[:, :k] Λ[:k]^(-p/2)

    ``power=1`` is the paper's, made for raw encoders; models trained with cosine similarity usually lose by it. For
    smaller vectors of such models ``center=False, power=0`` rotates only: the first k coordinates are those in which
    the embeddings have most of their length, and at k = d every dot product stays what it was.

    The statistics are streamed in float64 and O(d²) memory; blocks and partial fits merge exactly. The transform is
    derived when it is first needed after a change of the statistics (forward, save, dimension), by one
    eigen-decomposition. Directions whose eigenvalue is at most ``rcond`` times the largest are dropped, never
    inverted. Eigenvectors get the sign that makes their largest entry positive. Fewer dimensions are always the first
    of more.

    The module computes in float32, in float64 for float64 input, and returns the type it was given. ``.half()`` and
    ``.to(bfloat16)`` leave its state at float64: in half precision 1 / √λ would overflow. Statistics and transform are
    all there is, and all of it is in ``state_dict``: what was loaded is what encodes, folds, is saved and is fitted
    further. An unfitted module takes the state of a fitted one.

    Args:
        embedding_dimension: Width d of the embeddings it reads.
        output_dimension: Number k of directions kept, those of largest variance first; None keeps as many as the
            statistics have (the rank). More than the rank are refused, but not with ``power=0``, which inverts
            nothing: the directions that no text fitted on has complete the others to an orthonormal basis.
        center: Whether to subtract the mean. False: nothing is subtracted, and ``Σ`` is the second moment ``E[xxᵀ]``.
        power: How much of the whitening is done, in [0, 1]: 1 gives every direction variance 1, 0 leaves them as they
            are (a rotation, as in principal component analysis), what lies between is soft whitening.
        shrinkage: Replaces ``Σ`` by ``(1 - a) Σ + a (trace Σ / d) I``: a number a in [0, 1], or ``"ledoit-wolf"`` to
            estimate it. Makes few texts safe, and every direction usable.
        rcond: Relative size at which an eigenvalue counts as zero. None: ``max(N, d) · eps(float64)``, but not below
            the noise of what was fed: of float32 ``(16 · eps)²``, 4e-12, as an encoder's rounding adds up over its
            layers, of other types ``eps²`` (float16 1e-6, bfloat16 6e-5), and ``eps(float32)`` once a block of 16,384
            or more float32 rows was multiplied in single precision.
        normalize: Whether to scale the result to unit length (a zero vector stays zero).

    Reads / Writes:
        ``sentence_embedding``: ``(batch, embedding_dimension)`` → ``(batch, output_dimension)``

    Example:
        >>> import numpy as np
        >>> texts = np.random.default_rng(0).normal(3.0, [5.0, 1.0, 0.1], size=(500, 3))
        >>> module = Whitening(3, output_dimension=2).fit(texts, source="500 random points")
        >>> white = module.transform(texts)
        >>> bool(np.allclose(white.T @ white / 500, np.eye(2), atol=1e-8)), bool(abs(white.mean()) < 1e-8)
        (True, True)
        >>> rotated = Whitening(3, center=False, power=0.0).fit(texts).transform(texts)
        >>> bool(np.allclose(rotated @ rotated.T, texts @ texts.T))
        True

    Reference:
        Su, Cao, Liu & Ou, "Whitening Sentence Representations for Better Semantics and Faster Retrieval" (2021),
        arXiv 2103.15316, algorithm 1. We differ: eigenvalues that are rounding noise are dropped (the published code
        divides by their roots), and the covariance is streamed about the mean instead of as E[xxᵀ] - μμᵀ, which
        cancels when the mean is large. ``center`` and ``power`` are not in the paper.
    """

    __module__ = "st_plugins.modules"  # what a model folder records is public, wherever the class is written

    def __init__(
        self,
        embedding_dimension: int,
        output_dimension: int | None = None,
        *,
        center: bool = True,
        power: float = 1.0,
        shrinkage: float | str = 0.0,
        rcond: float | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if embedding_dimension < 1:
            raise ValueError(f"embedding_dimension must be at least 1, got {embedding_dimension}")
        check_output_dimension(output_dimension)
        if output_dimension is not None and output_dimension > embedding_dimension:
            raise ValueError(
                f"output_dimension must be between 1 and embedding_dimension ({embedding_dimension}), or None for "
                f"the rank; got {output_dimension}"
            )
        check_center(center)
        check_power(power)
        check_shrinkage(shrinkage)
        if rcond is not None and not 0.0 <= rcond < 1.0:
            raise ValueError(f"rcond must be in [0, 1) or None, got {rcond}")
        self.embedding_dimension, self.output_dimension = embedding_dimension, output_dimension
        self.center, self.power = bool(center), float(power)
        self.shrinkage, self.rcond, self.normalize = shrinkage, rcond, normalize
        # One state for all: what forward, fold, save and load_state_dict use is the same thing.
        self.state = WhiteningState(embedding_dimension, output_dimension)
        self.register_state_dict_pre_hook(_derive_first)
        self.register_load_state_dict_post_hook(_forget_sources)

    def fit(self, embeddings: Array | Tensor | Iterable[Array | Tensor], source: str = "") -> Self:
        """Forget earlier statistics and fit on all of ``embeddings``.

        Args:
            embeddings: An ``(N, d)`` array or tensor, or an iterable of such blocks.
            source: Where they come from, for the record saved with the module.

        Returns:
            Itself.

        Raises:
            ValueError: There are fewer than 2 rows, or a block has the wrong shape or type or holds
                NaN or infinity; the module then keeps the statistics it had.
        """
        total = Moments(self.embedding_dimension)
        for block in [embeddings] if isinstance(embeddings, np.ndarray | Tensor) else embeddings:
            rows = as_rows(block, self.embedding_dimension, type(self).__name__)
            if len(rows):
                total.merge(Moments.of(rows, first_row=total.count))
        if total.count < 2:
            raise ValueError(f"embeddings has {total.count} rows, but a covariance needs at least 2; give more texts")
        return self._set(total, {source or "unnamed": total.count})

    def fit_moments(self, moments: Moments, source: str = "") -> Self:
        """Forget earlier statistics and fit on those of embeddings that are elsewhere.

        Args:
            moments: Of at least 2 embeddings, such as the ``moments`` of a `Summary`; left as they are.
            source: Where the embeddings come from, for the record saved with the module.

        Returns:
            Itself.

        Raises:
            TypeError: ``moments`` is something else, a whole summary for example.
            ValueError: They are of another width, of fewer than 2 embeddings, or hold NaN or infinity; the module
                then keeps the statistics it had.

        Example:
            >>> import numpy as np
            >>> from st_plugins.scale import Summary
            >>> rows = np.random.default_rng(0).normal(3.0, [5.0, 1.0, 0.1], size=(500, 3))
            >>> summary = Summary(3).add(rows[:200]).merge(Summary(3).add(rows[200:]))
            >>> module = Whitening(3).fit_moments(summary.moments, source="500 random points")
            >>> bool(np.allclose(module.weight, Whitening(3).fit(rows).weight, rtol=1e-12))
            True
        """
        if not isinstance(moments, Moments):
            raise TypeError(f"moments must be Moments, got {type(moments).__name__}; of a summary, give its moments")
        if moments.dimension != self.embedding_dimension:
            raise ValueError(
                f"moments are of width {moments.dimension}, but this {type(self).__name__} reads embeddings of width "
                f"{self.embedding_dimension}; create it with the width of the moments"
            )
        if moments.count < 2:
            raise ValueError(f"moments are of {moments.count} rows, but a covariance needs at least 2; add more texts")
        if not all(
            np.isfinite(part).all() for part in (moments.mean, moments.scatter, moments.cubic, moments.quartic)
        ):
            raise ValueError("moments must be finite, but hold NaN or infinity; sum the embeddings up again")
        # A copy: what is added to the moments later is not to change the module.
        return self._set(copy.deepcopy(moments), {source or "unnamed": moments.count})

    def partial_fit(self, block: Array | Tensor, source: str = "") -> Self:
        """Add one block of embeddings to the statistics.

        Args:
            block: An ``(N, d)`` array or tensor.
            source: Where it comes from, for the record saved with the module.

        Returns:
            Itself.

        Raises:
            ValueError: The block has the wrong shape or type, or holds NaN or infinity (rows are numbered from 0,
                over all blocks fitted so far); nothing of it is added then.
        """
        rows = as_rows(block, self.embedding_dimension, type(self).__name__)
        if not len(rows):
            return self
        return self._add(Moments.of(rows, first_row=self.count), {source or "unnamed": len(rows)})

    def merge(self, other: Whitening) -> Self:
        """Add the statistics of another partial fit, as if its blocks had been fed here.

        Args:
            other: A module of the same embedding dimension, for example from another worker; left as it is.

        Returns:
            Itself.

        Raises:
            ValueError: The embedding dimensions differ.
        """
        if other.embedding_dimension != self.embedding_dimension:
            raise ValueError(
                f"cannot merge statistics of width {other.embedding_dimension} into width {self.embedding_dimension}"
            )
        return self._add(other.state.moments(), other._sources)

    def map(self, rows: Tensor) -> Tensor:
        """Whiten rows."""
        mean, weight = (part.to(rows.device, rows.dtype) for part in self._map())
        return (rows - mean) @ weight.T

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return the transform in float64: ``mean`` of shape ``(d,)`` and ``weight`` of shape ``(k, d)``.

        The output, before any normalization, is ``(x - mean) @ weight.T``.
        """
        mean, weight = self._map()
        return mean.detach().cpu().clone(), weight.detach().cpu().clone()

    @property
    def mean(self) -> Tensor:
        """Mean that is subtracted, ``(d,)`` in float64, where the module is; zeros with ``center=False``."""
        return self._map()[0]

    @property
    def weight(self) -> Tensor:
        """The map that follows, ``(k, d)`` in float64, where the module is."""
        return self._map()[1]

    def get_embedding_dimension(self) -> int:
        """Return the width of the output."""
        return self.output_dimension if self.output_dimension is not None else len(self._map()[1])

    @property
    def count(self) -> int:
        """Number of embeddings fitted on."""
        return self.state.rows

    @property
    def fitted_mean(self) -> Array:
        """Mean of the embeddings fitted on, float64, ``(d,)``."""
        return self.state.moments().mean.copy()

    @property
    def covariance(self) -> Array:
        """Covariance of the embeddings fitted on (about their mean, divided by N, not shrunk), float64, ``(d, d)``."""
        return self.state.moments().second()

    @property
    def eigenvalues(self) -> Array:
        """All d eigenvalues of the (shrunk) covariance or second moment, descending."""
        self._map()
        return self.state.array("eigenvalues")

    @property
    def explained_variance_ratio(self) -> Array:
        """Share of the total variance (with ``center=False`` of ``E[‖x‖²]``) in each kept direction, not shrunk."""
        self._map()
        return self.state.array("explained")

    def record(self) -> dict[str, Any]:
        """Return what identifies the statistics, and what came of them."""
        self._map()
        moments = self.state.moments()
        return {
            "count": moments.count,
            "checksum": moments.checksum(),
            "ddof": 0,
            "shrinkage": self._intensity(moments),
            "explained_variance_ratio": self.explained_variance_ratio.tolist(),
        }

    def load_record(self, find: Callable[[str], Path]) -> None:
        """Read what it was fitted to, if that is what the tensors hold."""
        record = read_object(find(RECORD))
        matches = record.get("checksum") == self.state.moments().checksum()
        if not matches or not isinstance(record.get("sources"), dict):
            raise ValueError(f"{find(TENSORS)} does not match the checksum in {find(RECORD)}; save the model again")
        self._sources = {str(name): int(rows) for name, rows in record["sources"].items()}

    @classmethod
    def check_stored(cls, values: dict[str, Any], held: Shapes, where: str) -> None:
        """Compare the configuration with the shapes of the state, which is empty in a new module."""
        check_whole(values, where)
        wrong = misfit(held, values.get("embedding_dimension"), values.get("output_dimension"))
        if wrong:
            raise ValueError(f"{Path(where).with_name(TENSORS)} does not fit {where}: {wrong}")

    def _set(self, moments: Moments, sources: dict[str, int]) -> Self:
        self.state.set_moments(moments)
        self._sources = dict(sources)
        return self

    def _add(self, moments: Moments, sources: dict[str, int]) -> Self:
        total = {name: self._sources.get(name, 0) + sources.get(name, 0) for name in [*self._sources, *sources]}
        return self._set(self.state.moments().merge(moments), total)

    def _intensity(self, moments: Moments) -> float:
        return moments.ledoit_wolf(center=self.center) if isinstance(self.shrinkage, str) else float(self.shrinkage)

    def _map(self) -> tuple[Tensor, Tensor]:
        """Return mean and weight, derived anew if the statistics changed."""
        if self.state.mean is None or self.state.weight is None:
            self._derive()
        return cast("tuple[Tensor, Tensor]", (self.state.mean, self.state.weight))

    @torch.compiler.disable  # type: ignore[untyped-decorator] # once after a fit, in NumPy
    def _derive(self) -> None:
        moments = self.state.moments()
        shrinkage = self._intensity(moments)
        self.state.set_transform(
            derive(moments, self.output_dimension, shrinkage, self.rcond, center=self.center, power=self.power)
        )


def check_output_dimension(output_dimension: int | None) -> None:
    """Refuse what no embedding can be cut down to."""
    if output_dimension is None:
        return
    if not isinstance(output_dimension, int | np.integer):
        raise TypeError(f"output_dimension must be a whole number or None, got {output_dimension!r}")
    if output_dimension < 1:
        raise ValueError(f"output_dimension must be at least 1, or None for the rank; got {output_dimension}")


def check_center(center: bool) -> None:
    """Refuse what is neither yes nor no: a mean, say."""
    if not isinstance(center, bool | np.bool_):
        raise TypeError(f"center must be True or False, got {center!r}")


def check_power(power: float) -> None:
    """Refuse what is no share of a whitening."""
    if not isinstance(power, int | float | np.number) or not 0.0 <= power <= 1.0:
        raise ValueError(f"power must be a number in [0, 1] (1 whitens, 0 rotates), got {power!r}")


def check_shrinkage(shrinkage: float | str) -> None:
    """Refuse what is no weight of the identity in a covariance."""
    number = isinstance(shrinkage, int | float | np.number) and 0.0 <= shrinkage <= 1.0
    if not number and shrinkage != "ledoit-wolf":
        raise ValueError(f"shrinkage must be a number in [0, 1] or 'ledoit-wolf', got {shrinkage!r}")


def _derive_first(module: nn.Module, *unused: Any) -> None:
    """Bring the transform up to date before ``state_dict`` reads it."""
    if not isinstance(module, Whitening) or module.state.weight is not None:
        return
    count = module.state.statistics_count
    if count is not None and not count.is_meta and module.count > 1:
        module._map()


def _forget_sources(module: nn.Module, *unused: Any) -> None:
    """After ``load_state_dict`` the record is of other texts, unless it is still the same number of them."""
    if isinstance(module, Whitening) and module.count != sum(module._sources.values()):
        module._sources = {"state dict": module.count} if module.count else {}
