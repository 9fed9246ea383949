"""Token embeddings from all layers of an encoder: a learned mix, or one of the published fixed ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn
from typing_extensions import Self

from st_plugins.core.all_layers import return_all_layers
from st_plugins.core.module import StoredModule
from st_plugins.core.precision import precise
from st_plugins.core.tokens import unflattened

RECIPES: dict[str, tuple[int, ...]] = {
    "last": (-1,),
    "first-last": (1, -1),
    "last-two": (-2, -1),
    "embedding": (0,),
}
_LEARNED = "learned"
_EPSILON = 1e-12


def recipe_weights(recipe: str, num_hidden_layers: int) -> Tensor:
    """Return what a published recipe weighs the layers with."""
    if recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(map(repr, RECIPES))}, got {recipe!r}")
    if num_hidden_layers < max(abs(index) - (index < 0) for index in RECIPES[recipe]):
        raise ValueError(
            f"recipe {recipe!r} needs an encoder with layers, but num_hidden_layers is {num_hidden_layers}"
        )
    # The embedding layer is the first; the weights sum to one, also where first and last layer are the same.
    weights = torch.zeros(num_hidden_layers + 1, device="cpu")
    # "first" is index 1: a published table took the embedding layer for it, 56.7 instead of 60.7 with BERT-base.
    for index in RECIPES[recipe]:
        weights[index] += 1.0 / len(RECIPES[recipe])
    return weights


class LayerMix(StoredModule):
    """Replace the token embeddings by a weighted mean of the outputs of all layers: ELMo's scalar mix.

    With h_0 the output of the embedding layer and h_1 … h_L those of the Transformer's layers::

        token_embeddings = γ Σ_j w_j h_j,   w = softmax(s)

    The s begin at 0, which is the plain mean of all layers, and γ at 1; both are trained. The published recipes have
    fixed weights and no parameters: ``"last"`` (what the Transformer returns anyway), ``"first-last"`` (layers 1 and
    L; "first" is the first layer, not the embedding layer), ``"last-two"`` and ``"embedding"``.

    It comes right after the Transformer and before the pooling, and makes the Transformer return its layers when a
    model is built with it, in copies, process pools, compiled and with adapters too; where it is appended or inserted
    later, call `on_model_ready`. A batch without them is an error. The host's ``WeightedLayerPooling`` would return it
    unchanged; it divides by the sum of unbounded weights and has no γ.

    To keep the weights of the layers together, as in ELMo (λ ‖s‖² in the loss), train with
    `st_plugins.losses.LayerMixRegularizer` around any loss.

    Args:
        embedding_dimension: Width d of the layers.
        num_hidden_layers: Layers L of the Transformer, without the embedding layer.
        recipe: ``"learned"``, or a published one: ``"last"``, ``"first-last"``, ``"last-two"``, ``"embedding"``.
        layer_norm: Whether every layer is normalised before it is weighted, with one mean and one variance over all
            numbers of a text that are no padding.

    Reads / Writes:
        ``all_layer_embeddings``, L + 1 times ``(batch, n, d)``; for ``layer_norm`` also ``attention_mask``
        ``(batch, n)``; or all of them flattened, with ``cu_seq_lens_q`` → ``token_embeddings`` ``(batch, n, d)``

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import Pooling
        >>> from st_plugins.miniature import untrained_encoder
        >>> encoder = untrained_encoder(layers=3)
        >>> modules = [encoder[0], LayerMix.after(encoder[0]), Pooling(64)]
        >>> model = SentenceTransformer(modules=modules, device="cpu")
        >>> model.encode(["a dog runs"]).shape, model[1].report()
        ((1, 64), {'embedding': 0.25, 'layer 1': 0.25, 'layer 2': 0.25, 'layer 3': 0.25, 'gamma': 1.0})

    Reference:
        Peters et al., "Deep contextualized word representations" (NAACL 2018), arXiv 1802.05365, equation 1 and
        section 3.2. The authors' layer norm takes mean and variance over the whole batch, so that a text's embedding
        depends on the others; ours takes them over one text. Recipes: Su et al., arXiv 2103.15316, section 4.1, after
        Li et al., arXiv 2011.05864 (first-last); Yan et al., arXiv 2105.11741, evaluation (last-two).
    """

    __module__ = "st_plugins.modules"  # what a model folder records is public, wherever the class is written

    def __init__(
        self,
        embedding_dimension: int,
        num_hidden_layers: int,
        recipe: Literal["learned", "last", "first-last", "last-two", "embedding"] = "learned",
        *,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if embedding_dimension < 1:
            raise ValueError(f"embedding_dimension must be at least 1, got {embedding_dimension}")
        if num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers must be at least 0, got {num_hidden_layers}")
        if recipe not in (_LEARNED, *RECIPES):
            raise ValueError(f"recipe must be one of {', '.join(map(repr, (_LEARNED, *RECIPES)))}, got {recipe!r}")
        self.embedding_dimension, self.num_hidden_layers = embedding_dimension, num_hidden_layers
        self.recipe: str = recipe
        self.layer_norm = layer_norm
        if self.learned:
            self.scalars = nn.Parameter(torch.zeros(num_hidden_layers + 1))
            self.gamma = nn.Parameter(torch.ones(()))
        else:
            self._fixed = recipe_weights(recipe, num_hidden_layers).tolist()

    @classmethod
    def after(cls, transformer: Transformer, recipe: Any = _LEARNED, *, layer_norm: bool = False) -> Self:
        """Make one that fits an encoder.

        Args:
            transformer: The first module of a model; left as it is.
            recipe: As for the class.
            layer_norm: As for the class.

        Returns:
            The module.

        Raises:
            TypeError: ``transformer`` is another module.
        """
        if not isinstance(transformer, Transformer):
            raise TypeError(f"transformer must be a Transformer module, got {type(transformer).__name__}")
        layers = int(transformer.model.config.num_hidden_layers)
        return cls(transformer.get_embedding_dimension(), layers, recipe, layer_norm=layer_norm)

    @property
    def learned(self) -> bool:
        """Whether there are weights to train."""
        return self.recipe == _LEARNED

    def on_model_ready(self, model: Any) -> None:
        """Let the Transformers of a model return their layers; the host calls this when it has built a model.

        Args:
            model: The model; where the module was appended to it later, call this yourself.

        Raises:
            ValueError: The module does not come right after a Transformer.
        """
        modules = list(model)
        if self in modules and not isinstance(modules[max(modules.index(self) - 1, 0)], Transformer):
            names = [type(module).__name__ for module in modules]
            raise ValueError(
                f"LayerMix must come right after the Transformer, before the pooling; the model is {names}"
            )
        for module in model.modules():
            if isinstance(module, Transformer):
                return_all_layers(module)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Mix the layers.

        Args:
            features: What the Transformer produced.
            **kwargs: Ignored.

        Returns:
            The same dictionary, with the token embeddings replaced.

        Raises:
            ValueError: The layers are missing, or of another number or width, or another layer than the last stands
                for the model's output.
        """
        states = features.get("all_layer_embeddings")
        if states is None:
            raise ValueError(
                "LayerMix needs all_layer_embeddings, but the encoder does not return its layers: build the model "
                "with SentenceTransformer(modules=[transformer, layer_mix, ...]), or call "
                "layer_mix.on_model_ready(model)"
            )
        if len(states) != self.num_hidden_layers + 1:
            raise ValueError(
                f"the encoder returned {len(states)} layers with the embedding layer, but this LayerMix was made for "
                f"{self.num_hidden_layers} + 1; make it with LayerMix.after(transformer)"
            )
        widths = [state.shape[-1] for state in states]
        if any(width != self.embedding_dimension for width in widths):
            raise ValueError(
                f"the layers have widths {widths}, but this LayerMix was made for {self.embedding_dimension}; make it "
                "with LayerMix.after(transformer)"
            )
        # These losses of the host hand over an inner layer as if it were the last.
        if any(features.get("token_embeddings") is state for state in states[:-1]):
            raise ValueError(
                "AdaptiveLayerLoss and Matryoshka2dLoss cannot train a model with a LayerMix, which reads all layers "
                "at once, so that it would give the same embedding for each layer; leave out the one or the other"
            )
        # Equation 1: a sum over L + 1 layers, index 0 the embedding layer, in float32 at least.
        mixed = torch.zeros_like(states[-1], dtype=torch.promote_types(states[-1].dtype, torch.float32))
        weights = (self.gamma * self._softmax()).to(mixed.dtype) if self.learned else self._fixed
        for weight, state in zip(weights, states, strict=True):  # never all layers in one tensor
            if self.learned or weight:
                layer = state.to(mixed.dtype)
                mixed = mixed + weight * (_normalized(layer, features) if self.layer_norm else layer)
        features["token_embeddings"] = mixed.to(states[-1].dtype)
        return features

    def weights(self) -> Tensor:
        """Return the weights of the layers, ``(L + 1,)`` in float32 on the CPU, the embedding layer first.

        They sum to one; γ is not in them.
        """
        return self._softmax().detach().cpu() if self.learned else torch.tensor(self._fixed)

    def report(self) -> dict[str, float]:
        """Return the weights by the names of the layers, and γ."""
        names = ["embedding", *(f"layer {layer}" for layer in range(1, self.num_hidden_layers + 1))]
        gamma = {"gamma": float(self.gamma.detach())} if self.learned else {}
        return {**dict(zip(names, self.weights().tolist(), strict=True)), **gamma}

    def penalty(self) -> Tensor:
        """Return ``‖s‖²``, which is 0 at first, where all layers weigh the same.

        Returns:
            A number, in float32 at least, with its gradient.

        Raises:
            ValueError: The recipe has no weights to learn.
        """
        if not self.learned:
            raise ValueError(f"LayerMix with recipe={self.recipe!r} has no weights to learn; use recipe='learned'")
        return precise(self.scalars).square().sum()

    def get_embedding_dimension(self) -> int:
        """Return the width of the output."""
        return self.embedding_dimension

    def _softmax(self) -> Tensor:
        return precise(self.scalars).softmax(dim=0)


def _normalized(layer: Tensor, features: Mapping[str, Any]) -> Tensor:
    """Return a layer with mean 0 and variance 1 over all numbers of a text that are no padding."""
    # Over one text: the authors take mean and variance over the batch, so that a text depends on the others.
    batch = unflattened({**features, "token_embeddings": layer})
    values = batch["token_embeddings"]
    mask = batch.get("attention_mask", values.new_ones(values.shape[:2])).bool()
    inside = mask[:, :, None]
    count = (mask.sum(dim=1)[:, None, None] * values.shape[2]).clamp(min=1)
    centered = (values - values.masked_fill(~inside, 0.0).sum(dim=(1, 2), keepdim=True) / count).masked_fill(
        ~inside, 0.0
    )
    normal: Tensor = centered / (centered.square().sum(dim=(1, 2), keepdim=True) / count + _EPSILON).sqrt()
    return normal[mask][None] if "cu_seq_lens_q" in features else normal
