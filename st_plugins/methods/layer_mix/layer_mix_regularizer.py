"""Keep the layers of a LayerMix together while it is trained."""

from __future__ import annotations

from collections.abc import Iterable

from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss
from torch import Tensor, nn

from st_plugins.core.host import inner_model
from st_plugins.core.loss import Features, with_term
from st_plugins.core.wrappers import refuse_around
from st_plugins.core.wrapping_loss import WrappingLoss
from st_plugins.methods.layer_mix.layer_mix import LayerMix

_TERM = "layer_weights"
_ALL_LAYERS = (
    "the model's LayerMix reads all layers at once, so that it would give the same embedding for each layer; leave "
    "out the one or the other"
)


class LayerMixRegularizer(WrappingLoss):
    """Add to any loss of a model with a learned `LayerMix` a term that draws its layers towards equal weights.

    The wrapped loss plus ``weight · ‖s‖²``, with s the numbers whose softmax weighs the layers; it is 0 at first,
    where all layers weigh the same. The terms are returned by name: ``layer_weights`` (weighted) beside those of
    the wrapped loss, or beside one with the name of its class. A trainer logs each and trains on their sum.

    The term depends on no text, so every loss can be wrapped, those with gradient caching too. It is not the weight
    decay of the optimizer: AdamW's does not pass through its moments.

    Args:
        loss: A loss with the model at ``loss.model``.
        weight: λ of the paper, at least 0; 1 keeps the mean of all layers, 0.001 leaves them nearly free.

    Inputs:
        Those of the wrapped loss.

    Example:
        >>> import torch
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
        >>> from sentence_transformers.sentence_transformer.modules import Pooling
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> encoder = untrained_encoder()[0]
        >>> modules = [encoder, LayerMix.after(encoder), Pooling(64)]
        >>> model = SentenceTransformer(modules=modules, device="cpu").train()
        >>> model[1].scalars.data = torch.tensor([1.0, 0.0, -2.0])
        >>> loss = LayerMixRegularizer(CosineSimilarityLoss(model), weight=0.1)
        >>> terms = loss([model.preprocess(corpus(4)), model.preprocess(corpus(4, seed=1))], torch.rand(4))
        >>> list(terms), terms["layer_weights"].item()
        (['CosineSimilarityLoss', 'layer_weights'], 0.5)

    Reference:
        Peters et al., "Deep contextualized word representations" (NAACL 2018), arXiv 1802.05365, section 3.4.
    """

    _paper = """
@inproceedings{peters-etal-2018-deep,
    title = "Deep Contextualized Word Representations",
    author = "Peters, Matthew E. and Neumann, Mark and Iyyer, Mohit and Gardner, Matt and Clark, Christopher and
              Lee, Kenton and Zettlemoyer, Luke",
    booktitle = "Proceedings of NAACL-HLT 2018",
    year = "2018",
}
"""

    def __init__(self, loss: nn.Module, weight: float) -> None:
        super().__init__(loss, weight)
        for part in loss.modules():
            if isinstance(part, AdaptiveLayerLoss):
                raise ValueError(f"{type(part).__name__} cannot be inside LayerMixRegularizer: {_ALL_LAYERS}")
        LayerMix.of(self.model).penalty()  # fixed recipes are refused now

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the wrapped loss and the term."""
        columns = list(sentence_features)
        self.begin(columns, labels)
        refuse_around(self.model, "LayerMixRegularizer", _ALL_LAYERS, truncates=False)
        # Of s, before the softmax: λ ‖s‖² draws towards s = 0, the plain mean of all layers; γ is free.
        penalty = self.weight * LayerMix.of(inner_model(self.model)).penalty()
        return self.guarded(with_term(self.loss, self.loss(columns, labels), _TERM, penalty))
