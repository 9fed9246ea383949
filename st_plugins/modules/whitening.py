"""Whitening: mean to zero, covariance to the identity, and as few dimensions as wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize as unit_length
from typing_extensions import Self

from st_plugins.modules import storage
from st_plugins.modules.moments import Moments
from st_plugins.modules.rows import as_rows
from st_plugins.modules.stored import StoredModule
from st_plugins.modules.transform import Transform, derive

__all__ = ["Whitening"]

Array = NDArray[np.floating]
_DEFAULTS = {"output_dimension": None, "shrinkage": 0.0, "rcond": None, "normalize": False}


class Whitening(StoredModule):
    """Linear map that gives sentence embeddings zero mean and identity covariance, keeping the first few directions.

    With the mean ``μ`` and covariance ``Σ = U Λ Uᵀ`` of the texts it was fitted on (eigenvalues descending, ``Σ``
    divided by N as in the paper, not N - 1)::

        x̃ = (x - μ) U[:, :k] Λ[:k]^(-1/2)

    The statistics are streamed in float64 and O(d²) memory; blocks and partial fits merge exactly. The transform is
    derived when it is first needed after a change of the statistics (forward, save, dimension), by one
    eigen-decomposition. Directions whose eigenvalue is at most ``rcond`` times the largest are dropped, never
    inverted. Eigenvectors get the sign that makes their largest entry positive.

    The module computes in float32, in float64 for float64 input, and returns the type it was given. ``.half()`` and
    ``.to(bfloat16)`` therefore leave its buffers at float32: in half precision 1 / √λ would overflow.

    Args:
        embedding_dimension: Width d of the embeddings it reads.
        output_dimension: Number k of directions kept, those of largest variance first; None keeps as many as the
            statistics have (the rank).
        shrinkage: Replaces ``Σ`` by ``(1 - a) Σ + a (trace Σ / d) I``: a number a in [0, 1], or ``"ledoit-wolf"`` to
            estimate it. Makes few texts safe, and every direction usable.
        rcond: Relative size at which an eigenvalue counts as zero. None: ``max(N, d) · eps(float64)``, but not below
            the rounding noise of what was fed: ``eps²`` of its type (float16 1e-6, bfloat16 6e-5), and
            ``eps(float32)`` once a block of 16,384 or more float32 rows was multiplied in single precision.
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

    Reference:
        Su, Cao, Liu & Ou, "Whitening Sentence Representations for Better Semantics and Faster Retrieval" (2021),
        arXiv 2103.15316, algorithm 1. We differ: eigenvalues that are rounding noise are dropped (the published code
        divides by their roots), and the covariance is streamed about the mean instead of as E[xxᵀ] - μμᵀ, which
        cancels when the mean is large.
    """

    config_defaults = _DEFAULTS
    config_keys = ["embedding_dimension", *_DEFAULTS]  # noqa: RUF012 - the host declares it so
    mean: Tensor | None
    weight: Tensor | None

    def __init__(
        self,
        embedding_dimension: int,
        output_dimension: int | None = None,
        *,
        shrinkage: float | str = 0.0,
        rcond: float | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if embedding_dimension < 1:
            raise ValueError(f"embedding_dimension must be at least 1, got {embedding_dimension}")
        if output_dimension is not None and not 1 <= output_dimension <= embedding_dimension:
            raise ValueError(
                f"output_dimension must be between 1 and embedding_dimension ({embedding_dimension}), or None for "
                f"the rank; got {output_dimension}"
            )
        if shrinkage != "ledoit-wolf" and (isinstance(shrinkage, str) or not 0.0 <= shrinkage <= 1.0):
            raise ValueError(f"shrinkage must be a number in [0, 1] or 'ledoit-wolf', got {shrinkage!r}")
        if rcond is not None and not 0.0 <= rcond < 1.0:
            raise ValueError(f"rcond must be in [0, 1) or None, got {rcond}")
        self.embedding_dimension, self.output_dimension = embedding_dimension, output_dimension
        self.shrinkage, self.rcond, self.normalize = shrinkage, rcond, normalize
        self.register_buffer("mean", None)
        self.register_buffer("weight", None)
        self.register_state_dict_pre_hook(_derive_first)
        # Float64 statistics stay on the CPU as plain arrays: the host casts buffers to the model's type.
        self._reset(Moments(embedding_dimension), {})

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
        fresh = Whitening(self.embedding_dimension)
        for block in [embeddings] if isinstance(embeddings, np.ndarray | Tensor) else embeddings:
            fresh.partial_fit(block, source)
        if fresh.count < 2:
            raise ValueError(f"embeddings has {fresh.count} rows, but a covariance needs at least 2; give more texts")
        self._reset(fresh._moments, fresh._sources)
        return self

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
        return self._add(other._moments, other._sources)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Whiten ``features["sentence_embedding"]``.

        Args:
            features: What the module before produced.
            **kwargs: Ignored.

        Returns:
            The same dictionary, with the embedding replaced.

        Raises:
            ValueError: The module is not fitted, or the width is another one.
        """
        embeddings: Tensor = features["sentence_embedding"]
        if embeddings.shape[-1] != self.embedding_dimension:
            raise ValueError(
                f"sentence_embedding has width {embeddings.shape[-1]}, but this Whitening was made for "
                f"{self.embedding_dimension}"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            mean, weight = self._map_for(embeddings)
            white = (embeddings.to(weight.dtype) - mean) @ weight.T
            white = unit_length(white, dim=-1) if self.normalize else white
        features["sentence_embedding"] = white.to(embeddings.dtype)
        return features

    def transform(self, embeddings: Array) -> Array:
        """Whiten an array.

        Args:
            embeddings: ``(N, embedding_dimension)``, of a floating-point type.

        Returns:
            ``(N, output_dimension)``, of the same type.
        """
        features = {"sentence_embedding": torch.from_numpy(np.require(embeddings, requirements=["C", "W"]))}
        return np.asarray(self.forward(features)["sentence_embedding"].cpu().numpy())

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return the transform in float64: ``mean`` of shape ``(d,)`` and ``weight`` of shape ``(k, d)``.

        The output, before any normalisation, is ``(x - mean) @ weight.T``.
        """
        transform = self._derived()
        return torch.from_numpy(transform.mean), torch.from_numpy(transform.weight)

    def get_embedding_dimension(self) -> int:
        """Return the width of the output."""
        return self.output_dimension if self.output_dimension is not None else len(self._derived().weight)

    @property
    def count(self) -> int:
        """Number of embeddings fitted on."""
        return self._moments.count

    @property
    def center(self) -> Array:
        """Mean of the embeddings fitted on, float64, ``(d,)``."""
        return self._moments.mean

    @property
    def covariance(self) -> Array:
        """Covariance of the embeddings fitted on (divided by N, not shrunk), float64, ``(d, d)``."""
        return self._moments.scatter / max(self.count, 1)

    @property
    def sources(self) -> dict[str, int]:
        """Number of embeddings fitted on, by source."""
        return dict(self._sources)

    @property
    def eigenvalues(self) -> Array:
        """All d eigenvalues of the (shrunk) covariance, descending."""
        return self._derived().eigenvalues

    @property
    def explained_variance_ratio(self) -> Array:
        """Share of the total variance that each kept direction carries, before shrinkage."""
        return self._derived().explained

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write ``config.json``, ``model.safetensors`` (transform and statistics) and ``fit.json`` (what it saw).

        Args:
            output_path: An existing folder.
            *args: Ignored.
            safe_serialization: Ignored: the file is always safetensors.
            **kwargs: Ignored.

        Raises:
            ValueError: The module is not fitted.
        """
        self.save_config(output_path)
        storage.write(Path(output_path), self._moments, self._derived(), self._sources, self._intensity())

    @classmethod
    def read(cls, values: dict[str, Any], config: Path, find: Callable[[str], Path]) -> Self:
        """Build the module from its files, bit for bit; it can be fitted further and merged.

        Args:
            values: The configuration.
            config: Its file, for messages.
            find: From the name of another file to its path; raises a ValueError if there is none.

        Returns:
            The module.

        Raises:
            ValueError: A file is missing, damaged, or does not fit the others; the message names it.
        """
        module = cls.from_config(values, str(config))
        sizes = module.embedding_dimension, module.output_dimension
        moments, transform, sources = storage.read(find(storage.TENSORS), find(storage.RECORD), *sizes)
        module._reset(moments, sources, transform)
        module._fill_buffers(torch.device("cpu"))
        return module

    def _reset(self, moments: Moments, sources: dict[str, int], transform: Transform | None = None) -> None:
        self._moments, self._sources, self._transform = moments, sources, transform

    def _add(self, moments: Moments, sources: dict[str, int]) -> Self:
        total = {name: self._sources.get(name, 0) + sources.get(name, 0) for name in [*self._sources, *sources]}
        self._reset(self._moments.merge(moments), total)
        return self

    def _intensity(self) -> float:
        return self._moments.ledoit_wolf() if isinstance(self.shrinkage, str) else float(self.shrinkage)

    def _derived(self) -> Transform:
        """Return the transform, derived anew if the statistics changed."""
        if self._transform is None:
            self._transform = derive(self._moments, self.output_dimension, self._intensity(), self.rcond)
            self._fill_buffers(self.weight.device if self.weight is not None else torch.device("cpu"))
        return self._transform

    def _fill_buffers(self, device: torch.device) -> None:
        mean, weight = self.affine()
        self.mean, self.weight = mean.float().to(device), weight.float().to(device)

    def _map_for(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and weight on the embeddings' device, in the type to compute in."""
        mean, weight = self.affine()
        if embeddings.dtype == torch.float64:
            return mean.to(embeddings.device), weight.to(embeddings.device)
        if self.mean is None or self.weight is None or self.weight.device != embeddings.device:
            self._fill_buffers(embeddings.device)
        return cast("tuple[Tensor, Tensor]", (self.mean, self.weight))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Let ``.to``, ``.half`` and the like move the buffers, but not cast them."""
        buffers = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in buffers.items():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self


def _derive_first(module: torch.nn.Module, *unused: Any) -> None:
    """Bring the buffers up to date before ``state_dict`` reads them."""
    if isinstance(module, Whitening) and module.count > 1:
        module._derived()
