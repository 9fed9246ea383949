"""Normalizing flow: an invertible network that turns sentence embeddings into standard normal noise (BERT-flow)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from st_plugins.core.loading.files import read_object
from st_plugins.core.module import RECORD, FittedModule
from st_plugins.core.rows import stacked
from st_plugins.methods.flow.fitting import FlowTraining, maximize_likelihood
from st_plugins.methods.flow.flow import CouplingKind, Flow, PermutationKind

Array = NDArray[np.floating]

PRESETS = MappingProxyType(
    {
        "paper": {"levels": 2, "depth": 3, "permutation": "random"},
        "code": {"levels": 3, "depth": 3, "permutation": "reverse"},
        "published": {"levels": 3, "depth": 3, "permutation": "reverse", "published": True},
    }
)
"""The architecture of the paper and that of the authors' code, and the latter with all that belongs to it; all have
additive couplings with 32 units."""


class NormalizingFlow(FittedModule):
    """Invertible map of sentence embeddings, fitted so that its output is distributed like standard normal noise.

    The encoder stays as it is; the flow alone is fitted, by maximum likelihood, on embeddings of unlabeled texts:
    with ``z = f⁻¹(u)`` it maximizes the mean of ``log N(z; 0, I) + log |det ∂z/∂u|`` over the embeddings u. What the
    model compares then is z, of which no direction is preferred. See `Flow` for the architecture. Nothing is lost:
    `inverse` gives u back.

    A tenth of the embeddings is held out, and fitting stops when their likelihood has not improved for three epochs;
    the parameters of the best epoch stay; a fit that never improves says so (`improved`). All random numbers come from
    one generator, so that a fit can be repeated. All embeddings are kept in memory while it is fitted. Dimensions that
    do not vary, or by no more than rounding beside the one that varies most, stay near 0.

    The module computes in float32, in float64 for float64 input, and returns the type it was given. ``.half()`` and
    ``.to(bfloat16)`` leave its parameters at float32. After `fit` they are frozen; ``module.requires_grad_()`` lets
    another loss train them.

    Args:
        embedding_dimension: Width d of the embeddings, at least 2; any width will do, odd ones too.
        levels: Number of levels; after each but the last, half of the dimensions are done.
        depth: Steps (actnorm, permutation, coupling) in each level.
        hidden_dimension: Units in each of the two hidden layers of a coupling's network.
        coupling: ``"additive"``, volume-preserving: then only the actnorms (and learned permutations) scale. Or
            ``"affine"``.
        permutation: ``"random"`` and ``"reverse"`` are fixed orders of the dimensions. ``"learned"`` and
            ``"learned-lu"`` are full matrices, plain or in LU factors: of the latter the determinant is cheap.
        normalize: Whether to scale the result to unit length (a zero vector stays zero).
        published: Whether everything else is that of the authors' code, too: layers and starting point here, and the
            training as the default of `fit`.

    Reads / Writes:
        ``sentence_embedding``: ``(batch, embedding_dimension)`` → ``(batch, embedding_dimension)``

    Example:
        >>> import numpy as np
        >>> texts = np.random.default_rng(0).normal(3.0, [5.0, 1.0, 0.1], size=(500, 3))
        >>> module = NormalizingFlow(3).fit(texts, source="500 random points")
        >>> latents = module.transform(texts)
        >>> bool(abs(latents.mean()) < 0.1), bool(abs(latents.std(axis=0) - 1).max() < 0.1)
        (True, True)
        >>> bool(abs(module.inverse(latents) - texts).max() < 1e-8)
        True

    Reference:
        Li, Zhou, He, Wang, Yang & Li, "On the Sentence Embeddings from Pre-trained Language Models" (EMNLP 2020),
        arXiv 2011.05864, equation 4 and section 4.1; their code is github.com/bohanli/BERT-flow. ``from_preset`` has
        the architecture of the paper (``"paper"``: levels 2, depth 3, a random permutation; also the default), that of
        the code (``"code"``: levels 3, depth 3, and a reversal, which the paper calls random), and the code's with its
        layers and its training (``"published"``). Without ``published=True`` we differ from the code in this:

        - Training: a part is held out to stop on, batches have 256 embeddings, Adam corrects its moments for starting
          at zero, epsilon is 1e-8, nothing is clipped or decayed. There: one epoch, batches of 32 pairs, gradients
          clipped to norm 1 (of the likelihood in bits for each dimension, summed over both texts), `PublishedAdam` (no
          correction, epsilon 1e-6, decoupled decay of 0.01 on all parameters). The rate, 1e-3, is constant in both.
        - Starting point: from up to 4,096 embeddings. There: from one batch of 32, with 1e-6 added to each standard
          deviation.
        - Actnorm: its shift is counted in units of the result. There: of the input, so that dimensions which vary
          little take large steps. Its ``log_scale`` is trained, three times as fast, in both.
        - Couplings: hidden layers with a bias, drawn with variance 2/inputs. There: `PublishedCoupling`, normalized,
          drawn with standard deviation 0.05, with a trained scale ``exp(3 · log_scale)`` at the end.
        - The affine coupling, which the authors do not use, is two-sided.

        With it one difference is left: dimensions that do not vary are not scaled by a million at the start. The
        authors fit on the evaluated texts themselves ("target"), or on NLI for 0.15 epochs with a rate of 2e-5, and
        average the token vectors of two layers (`first_last_avg`).
    """

    __module__ = "st_plugins.modules"  # what a model folder records is public, wherever the class is written

    def __init__(
        self,
        embedding_dimension: int,
        levels: int = 2,
        depth: int = 3,
        hidden_dimension: int = 32,
        *,
        coupling: CouplingKind = "additive",
        permutation: PermutationKind = "random",
        normalize: bool = False,
        published: bool = False,
    ) -> None:
        super().__init__()
        if embedding_dimension < 2:
            raise ValueError(f"embedding_dimension must be at least 2, got {embedding_dimension}")
        self.embedding_dimension = embedding_dimension
        self.levels, self.depth, self.hidden_dimension = levels, depth, hidden_dimension
        self.coupling, self.permutation, self.normalize = coupling, permutation, normalize
        self.published = published
        self.flow = Flow(embedding_dimension, levels, depth, hidden_dimension, coupling, permutation, published)
        self._history: list[dict[str, float]] = []
        self._improved = False
        self.register_load_state_dict_pre_hook(_refuse_parts)
        self.register_load_state_dict_post_hook(_forget_record)

    @classmethod
    def from_preset(cls, preset: str, embedding_dimension: int, **options: Any) -> Self:
        """Build a flow of a published architecture.

        Args:
            preset: ``"paper"`` or ``"code"``, see `PRESETS`; ``"published"`` is the authors' recipe with
                their training.
            embedding_dimension: Width of the embeddings.
            **options: Further arguments of the constructor; they override the preset's.

        Returns:
            The module, not fitted.

        Raises:
            ValueError: There is no such preset.

        Example:
            >>> NormalizingFlow.from_preset("code", 768).flow.widths
            [768, 384, 192]
        """
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}")
        return cls(embedding_dimension, **{**PRESETS[preset], **options})

    def fit(
        self,
        embeddings: Array | Tensor | Iterable[Array | Tensor],
        source: str = "",
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        held_out: float | None = None,
        patience: int | None = None,
        resume: bool = False,
        generator: torch.Generator | None = None,
        show_progress_bar: bool | None = None,
    ) -> Self:
        """Forget earlier fits and fit on all of ``embeddings``, in single precision unless they are float64.

        What is not given is as in `FlowTraining`; with ``published=True`` as in ``FlowTraining.as_published()``: one
        epoch in batches of 32 pairs of texts, nothing held out, and the authors' optimizer.

        Args:
            embeddings: An ``(N, d)`` array or tensor, or an iterable of such blocks. Repeated rows let the held-out
                likelihood look better than it is.
            source: Where they come from, for the record saved with the module.
            epochs: Passes over the data, at most: 30, or 1.
            batch_size: Rows in a step: 256, or 64.
            learning_rate: Of Adam: 1e-3.
            held_out: Share of the rows that the likelihood is measured on, to stop in time: 0.1, or 0.
            patience: Epochs without a better one after which to stop: 3.
            resume: Whether to go on from the parameters the module has, with no new initialization.
            generator: Where the random numbers come from, on the CPU; None: a new one with seed 0. Resume with the
                same embeddings and a generator in the same state, and the same rows are held out.
            show_progress_bar: Whether to show a progress bar; None shows one on a terminal.

        Returns:
            Itself.

        Raises:
            ValueError: There are too few rows, they are all equal, a block has the wrong shape or type or holds NaN or
                infinity, or the fit diverges; the module then stays what it was.
        """
        given: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "held_out": held_out,
            "patience": patience,
        }
        training = FlowTraining.as_published() if self.published else FlowTraining()
        training = replace(training, **{name: value for name, value in given.items() if value is not None})
        if resume:
            self._check_fitted()
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        device = next(self.parameters()).device
        # Whoever encodes without gradients may fit there, too.
        with torch.inference_mode(mode=False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            rows = stacked(embeddings, self.embedding_dimension, type(self).__name__, device)
            flow = copy.deepcopy(self.flow)  # a fit that diverges leaves the module as it was
            history, better = maximize_likelihood(
                flow, rows, training, generator, resume=resume, show_progress_bar=show_progress_bar
            )
        name = source or "unnamed"
        earlier = self._sources if resume else {}
        self._sources = {**earlier, name: earlier.get(name, 0) + len(rows)}
        self.flow, self._history, self._improved = flow, history, better
        return self

    def map(self, rows: Tensor) -> Tensor:
        """Map embeddings to latents."""
        latents: Tensor = self.flow(rows)[0]
        return latents

    @torch.no_grad()
    def inverse(self, latents: Array) -> Array:
        """Map latents back to embeddings.

        Args:
            latents: ``(N, embedding_dimension)``, of a floating-point type.

        Returns:
            ``(N, embedding_dimension)``, of the same type.

        Raises:
            ValueError: The module is not fitted, the width is another one, or ``normalize`` has taken the lengths.
        """
        if self.normalize:
            raise ValueError("normalize=True scales latents to unit length, which cannot be undone; set it to False")
        given = self.tensor(latents)
        return np.asarray(self.flow.inverse(self.checked(given)).to(given.dtype).cpu())

    @torch.no_grad()
    def log_likelihood(self, embeddings: Array) -> Array:
        """Return how likely embeddings are under the flow, in nats.

        Args:
            embeddings: ``(N, embedding_dimension)``, of a floating-point type.

        Returns:
            ``(N,)``, float64 for float64 embeddings, otherwise float32.
        """
        return np.asarray(self.flow.log_likelihood(self.checked(self.tensor(embeddings))).cpu())

    def get_embedding_dimension(self) -> int:
        """Return the width of the output, which is that of the input."""
        return self.embedding_dimension

    @property
    def count(self) -> int:
        """Number of embeddings fitted on, those held out among them."""
        return sum(self._sources.values())

    @property
    def history(self) -> list[dict[str, float]]:
        """Negative log-likelihood of the latest fit, epoch by epoch; see `maximize_likelihood`."""
        return [dict(entry) for entry in self._history]

    @property
    def improved(self) -> bool:
        """Whether the latest fit made the likelihood better than it was before."""
        return self._improved

    def record(self) -> dict[str, Any]:
        """Return how the fit went."""
        self._check_fitted()
        return {"history": self._history, "improved": self._improved}

    def load_record(self, find: Callable[[str], Path]) -> None:
        """Read what it was fitted to, so that fitting can be resumed."""
        record = find(RECORD)
        known = read_object(record)
        try:
            self._sources = {str(name): int(rows) for name, rows in known["sources"].items()}
            self._history = [dict(entry) for entry in known["history"]]
            self._improved = bool(known["improved"])
            self._check_fitted()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{record} does not describe the fit of a NormalizingFlow: {error!r}") from error

    def checked(self, rows: Tensor) -> Tensor:
        """Return rows of the right width in the type to compute in, if the module is fitted."""
        self._check_fitted()
        return super().checked(rows)

    def _check_fitted(self) -> None:
        if not self.flow.is_initialized():
            raise ValueError("NormalizingFlow is not fitted; call fit() with embeddings of your texts first")

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Let ``.to``, ``.half`` and the like move parameters and buffers, but not cast them."""
        kept = {name: tensor.data for name, tensor in self.state_dict(keep_vars=True).items()}
        super()._apply(fn, recurse)
        for name, tensor in self.state_dict(keep_vars=True).items():
            old = kept[name]  # on meta there is nothing to keep, only the type
            tensor.data = tensor.data.to(old.dtype) if old.is_meta else old.to(tensor.device)
        return self


def _refuse_parts(module: torch.nn.Module, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Before ``load_state_dict``: a flow is taken over whole and finite, or not at all, also if not strict."""
    given = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    own = module.state_dict()
    problems = [f"{name} is missing" for name in own if name not in given]
    for name, tensor in given.items():
        if name in own and tensor.shape != own[name].shape:
            problems.append(f"{name} has shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}")
        elif not tensor.is_meta and not bool(tensor.isfinite().all()):
            problems.append(f"{name} holds NaN or infinity")
    if given and problems:
        errors: list[str] = unused[-1]
        errors.append(f"the state of a NormalizingFlow must be whole: {problems[0]} ({prefix or 'the module itself'})")
        for name in given:
            state[prefix + name] = own.get(name)  # nothing changes


def _forget_record(module: torch.nn.Module, *unused: Any) -> None:
    """After ``load_state_dict``: what these weights were fitted to is not known."""
    if isinstance(module, NormalizingFlow):
        module._sources, module._history, module._improved = {}, [], False
