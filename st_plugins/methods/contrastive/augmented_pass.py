"""Several views of a batch in one forward pass, for the length of a ``with`` block."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from st_plugins.core.wrappers import repeated
from st_plugins.methods.contrastive.bags import bag_mean, unpack_bags
from st_plugins.methods.contrastive.encoders import EncoderParts, encoder_parts, special_ids
from st_plugins.methods.contrastive.functional import adversarial_delta, shuffle_permutation
from st_plugins.methods.contrastive.notation import flatten_view
from st_plugins.methods.contrastive.views import AdversarialPerturbation, TokenShuffle, View

logger = logging.getLogger(__name__)

_TOKEN_FEATURES = ("input_ids", "token_type_ids")  # what moves when tokens are read in another order
_open_blocks = threading.local()


@contextmanager
def augmented(
    model: SentenceTransformer,
    views: Sequence[View | Iterable[View]],
    perturbations: Sequence[Tensor | None] | None = None,
) -> Iterator[AugmentedPass]:
    """Let every call of the model inside the block encode several views of its batch, in one forward pass.

    The batch is repeated once for each view and augmented where the token embeddings leave the encoder's embedding
    layer. The output is view-major: rows ``[v * N : (v + 1) * N]`` are view v of the N texts. The features given are
    not modified by the block; with static embeddings only the sentence embedding is repeated. Any number of calls is
    fine; so is a call through a wrapper of the model (``DistributedDataParallel``), but not through ``DataParallel``,
    which calls copies in other threads.

    Views act while the model is in training mode. In evaluation mode the batch is repeated but not augmented, and a
    warning is logged; perturbations are added all the same. Do not call ``encode`` inside the block: it would get
    all views.

    The block works by hooks, which act in the thread that opened it only and are gone after it, whatever happens.
    The model is then the same, bit for bit.

    Args:
        model: The model itself, no wrapper of it; its first module is a Transformer, a StaticEmbedding or
            TokenEmbeddings.
        views: One entry for each view: an augmentation, or a sequence of them, applied in order (except that tokens
            are shuffled first, and perturbed last).
        perturbations: What to add to the token embeddings, one entry for each call, ``(views * N, tokens,
            features)`` or None; see `AugmentedPass.perturbations`.

    Yields:
        What happened inside the embedding layer.

    Raises:
        ValueError: There are no views, the encoder has no embedding layer that could be found, a view cannot be had
            from it, the thread is inside a block for this model already, or the block ends and the model was never
            called. Inside the block, a call raises it when its features have no attention mask, or ``perturbations``
            do not fit.

    Example:
        >>> from st_plugins.augment import FeatureCutoff, TokenShuffle, augmented
        >>> from st_plugins.miniature import untrained_encoder
        >>> model = untrained_encoder().train()
        >>> with augmented(model, [FeatureCutoff(0.2), TokenShuffle()]) as views:
        ...     output = model(model.preprocess(["a cat slept", "the dog ate"]))
        >>> a, b = output["sentence_embedding"].chunk(2)
        >>> a.shape, len(views.token_embeddings)
        (torch.Size([2, 64]), 1)

    Reference:
        Yan et al., arXiv 2105.11741, section 3.1: the data augmentation module stands between the embedding layer and
        the encoder. The published code encodes one view after the other; we encode them together.
    """
    pass_ = AugmentedPass(model, views, perturbations)
    # Other threads may have blocks for the same model: the hooks of each act in its own thread only.
    inside: set[int] = _open_blocks.__dict__.setdefault("models", set())
    if id(model) in inside:
        raise ValueError("this thread is inside augmented() for this model already; give one block all its views")
    inside.add(id(model))
    handles: list[Any] = []
    try:
        parts = pass_.parts
        if isinstance(parts.embedding, nn.EmbeddingBag):
            handles.append(parts.embedding.register_forward_hook(pass_._augment_bags))
        else:
            handles.append(model.register_forward_pre_hook(pass_._repeat, with_kwargs=True))
            handles.append(model.register_forward_hook(pass_._finish))
            handles.append(parts.transformer.register_forward_hook(pass_._restore))
            handles.append(parts.embedding.register_forward_hook(pass_._augment))
            if parts.positions is not None and pass_._shuffles("position_ids"):
                handles.append(parts.positions.register_forward_pre_hook(pass_._permute, with_kwargs=True))
        yield pass_
        if not pass_.token_embeddings:
            raise ValueError(
                "the model was not called inside the block by the thread that opened it: DataParallel and compiled "
                "models are called past their hooks; use DistributedDataParallel, or compile nothing"
            )
    finally:
        for handle in handles:
            handle.remove()
        inside.discard(id(model))


@dataclass
class _Call:
    """What one call of the model needs on its way through the hooks."""

    attention_mask: Tensor  # (views * N, tokens), as all below
    special_tokens: Tensor
    training: bool
    position_permutation: Tensor | None = None
    token_permutation: Tensor | None = None
    unshuffled: dict[str, Tensor] = field(default_factory=dict)
    embedded: bool = False
    positioned: bool = False


class AugmentedPass:
    """What `augmented` yields: the token embeddings of its calls, and the way back to them.

    Args:
        model: As for `augmented`.
        views: As for `augmented`.
        perturbations: As for `augmented`.

    Attributes:
        views: The augmentations of each view.
        token_embeddings: For each call the ``(views * N, tokens, features)`` that left the embedding layer, augmented;
            part of the autograd graph, so that a loss can be differentiated with respect to it.

    Example:
        >>> from st_plugins.augment import AdversarialPerturbation, NoAugmentation, augmented
        >>> from st_plugins.miniature import untrained_encoder
        >>> model, views = untrained_encoder().train(), [NoAugmentation(), AdversarialPerturbation(0.5)]
        >>> features = model.preprocess(["a cat slept", "the dog ate"])
        >>> with augmented(model, views) as first:
        ...     loss = model(features)["sentence_embedding"].std()
        >>> gradients = torch.autograd.grad(loss, first.token_embeddings)
        >>> steps = first.perturbations(gradients)
        >>> with augmented(model, views, steps):
        ...     output = model(features)
        >>> [round(length, 4) for length in steps[0].norm(dim=2)[:, 0].tolist()]
        [0.0, 0.0, 0.5, 0.5]
    """

    def __init__(
        self,
        model: SentenceTransformer,
        views: Sequence[View | Iterable[View]],
        perturbations: Sequence[Tensor | None] | None = None,
    ) -> None:
        self.views: tuple[tuple[View, ...], ...] = tuple(flatten_view(view) for view in views)
        if not self.views:
            raise ValueError("views is empty; give one View for each view, NoAugmentation() for a clean one")
        self.token_embeddings: list[Tensor] = []
        self.parts: EncoderParts = encoder_parts(model)
        self._perturbations = perturbations
        self._attention_masks: list[Tensor] = []
        spared = any(not getattr(part, "include_special_tokens", True) for part in chain(*self.views))
        bags = isinstance(self.parts.embedding, nn.EmbeddingBag)  # which hold no special tokens
        self._special_ids = special_ids(model.tokenizer) if spared and not bags else []
        self._thread = threading.get_ident()
        self._call: _Call | None = None
        self._warned = False
        if self.parts.shuffle == "none" and any(isinstance(part, TokenShuffle) for part in chain(*self.views)):
            raise ValueError(
                "TokenShuffle does nothing to static embeddings, which know no order, and to TokenEmbeddings, which "
                "have no encoder to shuffle for; choose other views, such as TokenCutoff(0.5) ('token-cutoff:0.5') "
                "twice"
            )
        if self._shuffles("position_ids") and self.parts.positions is None:
            raise ValueError(
                "TokenShuffle(kind='position_ids') needs an encoder that looks up or rotates by position ids; "
                "this one does neither, so use kind='auto' or kind='embeddings'"
            )

    def perturbations(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Turn gradients into the perturbations of a second pass.

        The second pass must repeat the first: the same model, views, features and order of calls, and the same random
        numbers (save the generator's state before the first pass and restore it before the second), or else the steps
        belong to other views than they are added to.

        Args:
            gradients: Of a loss with respect to `token_embeddings`; None where the loss does not depend on a call.

        Returns:
            For each call the steps of the adversarial views, zero in all other rows and on pads.

        Raises:
            ValueError: There is not one gradient for each call.
        """
        if len(gradients) != len(self._attention_masks):
            raise ValueError(
                f"gradients has {len(gradients)} entries, but the model was called {len(self._attention_masks)} times"
            )
        return [
            None if gradient is None else self._step(gradient, mask)
            for gradient, mask in zip(gradients, self._attention_masks, strict=True)
        ]

    def _step(self, gradient: Tensor, mask: Tensor) -> Tensor:
        # (views,), 0 for a view that is not adversarial; rows are view-major, so each is repeated for its N sentences.
        norms = torch.tensor(self._norms(), device=gradient.device)
        norm = norms.repeat_interleave(len(mask) // len(norms))
        return adversarial_delta(gradient, mask & (norm > 0)[:, None], norm)

    def _shuffles(self, kind: str) -> bool:
        return any(self._is_shuffle(part, kind) for part in chain(*self.views))

    def _is_shuffle(self, part: View, kind: str) -> bool:
        return isinstance(part, TokenShuffle) and kind == (self.parts.shuffle if part.kind == "auto" else part.kind)

    # Another thread may find a hook just when it is being removed, and then calls it without kwargs.
    def _repeat(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the model: repeat the batch, and shuffle."""
        if threading.get_ident() != self._thread or kwargs is None:
            return None
        features = dict(args[0] if args else kwargs["input"])  # the caller's stay as they are
        mask = features.get("attention_mask")
        if not isinstance(mask, Tensor) or not isinstance(features.get("input_ids"), Tensor):
            raise ValueError(
                "features must hold input_ids and attention_mask, which tell the sentences of a batch apart; if flash "
                "attention flattens the inputs, set model[0].unpad_inputs = False"
            )
        features = repeated(features, len(self.views))
        real = features["attention_mask"].bool()
        special = torch.zeros_like(real)
        if self._special_ids:
            special = torch.isin(features["input_ids"], torch.tensor(self._special_ids, device=real.device))
        self._call = call = _Call(real, special, module.training)
        if module.training:
            call.position_permutation = self._permutation("position_ids", call)
            call.token_permutation = self._permutation("embeddings", call)
        else:
            self._warn()
        if call.token_permutation is not None:
            # The tokens move before they are embedded, so that each gets the position of its new place.
            for key in _TOKEN_FEATURES:
                if isinstance(features.get(key), Tensor):
                    call.unshuffled[key] = features[key]
                    features[key] = features[key].gather(1, call.token_permutation)
            call.special_tokens = special.gather(1, call.token_permutation)
        return ((features, *args[1:]), kwargs) if args else (args, {**kwargs, "input": features})

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("The model is in evaluation mode: the views are not augmented. Call model.train() first.")

    def _permutation(self, kind: str, call: _Call) -> Tensor | None:
        """Draw the permutations of the views that are shuffled this way; the others keep their order."""
        if not self._shuffles(kind):
            return None
        movable = []
        for view, real, special in self._by_view(call.attention_mask, call.special_tokens):
            shuffles: list[Any] = [part for part in view if self._is_shuffle(part, kind)]
            whole = any(part.include_special_tokens for part in shuffles)
            movable.append(torch.zeros_like(real) if not shuffles else real if whole else real & ~special)
        return shuffle_permutation(torch.cat(movable))

    def _by_view(self, *tensors: Tensor) -> Iterator[Any]:
        """Yield each view with its rows of every tensor."""
        return zip(self.views, *(tensor.chunk(len(self.views)) for tensor in tensors), strict=True)

    def _current(self) -> _Call | None:
        return self._call if threading.get_ident() == self._thread else None

    def _permute(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the position table or the rotary module: permute the position ids."""
        call = self._current()
        if call is None or call.position_permutation is None or kwargs is None:
            return None
        call.positioned = True
        permutation = call.position_permutation

        def shuffled(ids: Tensor) -> Tensor:
            own = ids[:, : permutation.shape[1]].expand_as(permutation).gather(1, permutation)
            rest = ids[:, permutation.shape[1] :]  # pads that some encoders add
            return own if not rest.shape[1] else torch.cat([own, rest.expand(len(own), -1)], dim=1)

        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": shuffled(kwargs["position_ids"])}
        index = 0 if isinstance(module, nn.Embedding) else 1  # rotary modules take the hidden states first
        return (*args[:index], shuffled(args[index]), *args[index + 1 :]), kwargs

    def _augment(self, module: nn.Module, args: Any, output: Any) -> Any:
        """After the embedding layer: augment what leaves it."""
        call = self._current()
        if call is None or call.embedded:
            return None
        call.embedded = True
        embeddings = output.transpose(0, 1) if self.parts.tokens_first and isinstance(output, Tensor) else output
        expected = call.attention_mask.shape
        shape = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
        if not isinstance(shape, tuple) or len(shape) != 3 or shape[0] != expected[0] or shape[1] < expected[1]:
            raise ValueError(
                f"the embedding layer {type(module).__name__} returned {shape}, expected {tuple(expected)} and the "
                "features; views do not work with this encoder"
            )
        padding = (0, shape[1] - expected[1])  # some encoders pad further, up to whole blocks
        call.attention_mask = nn.functional.pad(call.attention_mask, padding)
        call.special_tokens = nn.functional.pad(call.special_tokens, padding)
        embeddings = self._recorded(embeddings, call)
        return embeddings.transpose(0, 1) if self.parts.tokens_first else embeddings

    def _augment_bags(self, module: nn.EmbeddingBag, args: Any, output: Any) -> Tensor | None:
        """After an embedding bag: average the tokens of all views instead."""
        if threading.get_ident() != self._thread:
            return None
        if not module.training:
            self._warn()
        embeddings, mask = unpack_bags(module, *args)
        mask = mask.repeat(len(self.views), 1)
        call = _Call(mask, torch.zeros_like(mask), module.training)
        return bag_mean(self._recorded(embeddings.repeat(len(self.views), 1, 1), call), mask)

    def _recorded(self, embeddings: Tensor, call: _Call) -> Tensor:
        """Make the views of token embeddings, and remember them."""
        if call.training:
            views = []
            for view, own, real, special in self._by_view(embeddings, call.attention_mask, call.special_tokens):
                for part in view:
                    own = part.augment(own, real, special)
                views.append(own)
            embeddings = torch.cat(views) if len(views) > 1 else views[0]
        embeddings = self._perturbed(embeddings)
        self.token_embeddings.append(embeddings)
        self._attention_masks.append(call.attention_mask)
        return embeddings

    def _perturbed(self, embeddings: Tensor) -> Tensor:
        # Where the embedding layer is frozen, an adversarial step still needs the gradient at what leaves it.
        if not embeddings.requires_grad and torch.is_grad_enabled() and any(self._norms()):
            embeddings = embeddings.detach().requires_grad_()
        if self._perturbations is None:
            return embeddings
        number = len(self.token_embeddings)
        if number >= len(self._perturbations):
            raise ValueError(
                f"perturbations has {len(self._perturbations)} entries, but the model is called more often; give one "
                "for each call, in the same order as in the first pass"
            )
        step = self._perturbations[number]
        if step is None:
            return embeddings
        if step.shape != embeddings.shape:
            raise ValueError(
                f"perturbations[{number}] has shape {tuple(step.shape)}, but the token embeddings of this call have "
                f"{tuple(embeddings.shape)}; give the features of the first pass, in the same order"
            )
        return embeddings + step.to(embeddings.dtype)

    def _norms(self) -> list[float]:
        return [sum(part.norm for part in view if isinstance(part, AdversarialPerturbation)) for view in self.views]

    def _restore(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the Transformer: return the outputs to the places of their tokens."""
        call = self._current()
        if call is None or call.token_permutation is None:
            return
        # What comes after the encoder reads tokens by their places: prompts, padding and masks have not moved.
        back = call.token_permutation.argsort(dim=1)[:, :, None]
        output.update(call.unshuffled)
        for key, value in output.items():
            if key == "token_embeddings":
                output[key] = value.gather(1, back.expand_as(value))
            elif key == "all_layer_embeddings":
                output[key] = tuple(layer.gather(1, back.expand_as(layer)) for layer in value)

    def _finish(self, module: nn.Module, args: Any, output: Any) -> None:
        """After the model: make sure that what should have happened did."""
        call = self._current()
        if call is None:
            return
        self._call = None
        if not call.embedded:
            raise ValueError(
                f"the model did not call its embedding layer {type(self.parts.embedding).__name__}; views do not work "
                "with this encoder"
            )
        if call.position_permutation is not None and not call.positioned:
            raise ValueError(
                f"the encoder did not read its position ids through {type(self.parts.positions).__name__}; use "
                "TokenShuffle(kind='embeddings') for this encoder"
            )
