"""Adapt a model without training it: whiten its embeddings, fit a flow to them, or change how it pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, WeightedLayerPooling
from torch import nn

from st_plugins.core.all_layers import return_all_layers
from st_plugins.core.appending import closed, encoded, opened, width_of
from st_plugins.core.host import check_encoder, default_prompt, gives_unit_length, rebuild
from st_plugins.core.model_card import Made, texts_in_words, told
from st_plugins.core.texts import checksum
from st_plugins.methods.flow.normalizing_flow import NormalizingFlow
from st_plugins.methods.layer_mix.layer_mix import LayerMix, recipe_weights
from st_plugins.methods.whitening.whitening import Whitening, check_center, check_output_dimension, check_power
from st_plugins.scale.engines import Engine
from st_plugins.scale.one_pass import described, opened_anywhere, settled, summarize

_WHITENING = (
    "BERT-whitening (Su et al. 2021, [arXiv 2103.15316](https://arxiv.org/abs/2103.15316)): a linear map of the "
    "embeddings, fitted on unlabelled texts. The encoder was not trained."
)
_FLOW = (
    "BERT-flow (Li et al. 2020, [arXiv 2011.05864](https://arxiv.org/abs/2011.05864)): an invertible map of the "
    "embeddings, fitted on unlabelled texts. The encoder was not trained."
)


def whiten(
    model: SentenceTransformer,
    texts: Sequence[str] | Any,
    output_dimension: int | None = None,
    *,
    center: bool = True,
    power: float = 1.0,
    shrinkage: float | str = 0.0,
    rcond: float | None = None,
    normalize: bool = False,
    prompt: str | None = None,
    route: str | None = None,
    batch_size: int = 32,
    source: str = "",
    engine: str | Engine = "local",
    show_progress_bar: bool | None = None,
) -> SentenceTransformer:
    """Return the model with a Whitening, fitted on unlabeled texts.

    The texts are encoded block by block, so that only O(d²) numbers are kept; duplicates count as often as they
    occur. With the default prompt of the model, if it has one, as its users will encode. Whitening is for raw
    encoders. It can hurt a model that was trained with cosine similarity on text like yours: compare before and after.
    For smaller vectors of such a model ``center=False, power=0`` only rotates.

    The Whitening comes last, but before a Normalize if the model ends in one, and is fitted on what enters it. A model
    of unit vectors stays one, and servers that apply linear layers right after the pooling and normalize last give the
    same vectors. On all-MiniLM-L6-v2, all dimensions whitened on 6,000 texts, STS-B test is 78.7 that way by cosine
    and by dot product (82.0 before). Whitening after the Normalize gives 79.3 by cosine, but 56.3 by dot product.

    Args:
        model: The model; left as it is, the new one has copies of its weights.
        texts: Texts like those the model will see; a few thousand at least, more than the model has dimensions. For
            more than fit into memory: a path or pattern of files, `st_plugins.scale.Texts`, or a Ray Dataset.
        output_dimension: Dimensions to keep; None keeps all that the texts span. A ``truncate_dim`` of the model
            that would cut what is asked for here is lifted.
        center: As for `Whitening`: whether the mean is subtracted.
        power: As for `Whitening`: 1 whitens, 0 rotates.
        shrinkage: As for `Whitening`.
        rcond: As for `Whitening`.
        normalize: Whether the new embeddings have unit length also when those of the model have not.
        prompt: What goes before the texts; None is the model's default prompt, if it has one.
        route: Whose texts these are in a model with routes, "query" or "document" for example.
        batch_size: Texts encoded at a time.
        source: Where the texts come from, for the record saved with the module.
        engine: What encodes texts in files: ``"local"``, ``"ray"``, or a ``Local`` or ``Ray`` of `st_plugins.scale`.
        show_progress_bar: Whether to show a progress bar; None shows one on a terminal.

    Returns:
        The new model.

    Raises:
        TypeError: ``texts`` is one string and no path, something in it is no string, or ``model`` is no
            SentenceTransformer.
        ValueError: There are too few texts, ``output_dimension`` exceeds the model's dimension or the rank, or the
            model has routes and ``route`` names none of them.

    Example:
        >>> import numpy as np
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> texts = corpus(400)
        >>> white = whiten(untrained_encoder(), texts, 8).encode(texts)
        >>> bool(np.allclose(np.cov(white.T, ddof=0), np.eye(8), atol=1e-3))
        True
    """
    check_output_dimension(output_dimension)
    check_center(center)
    check_power(power)
    texts = settled(texts)
    here, result, tail, dimension = opened_anywhere(model, texts, 2, "a covariance", prompt, route, engine)
    if output_dimension is not None and output_dimension > dimension:
        raise ValueError(f"output_dimension is {output_dimension}, but the model's embeddings have only {dimension}")
    if here is not None and output_dimension is not None and not shrinkage and power > 0:
        _check_rank(here, output_dimension, center)
    # A Normalize in the tail does it afterwards.
    normalize = (normalize or gives_unit_length(model[-1])) and not tail
    options: dict[str, Any] = {"shrinkage": shrinkage, "rcond": rcond, "normalize": normalize}
    whitening = Whitening(dimension, output_dimension, center=center, power=power, **options)
    if here is None:
        shown: Any = {"description": "Whitening", "show_progress_bar": show_progress_bar}
        way: Any = {"prompt": prompt, "route": route, "batch_size": batch_size}
        whitening.fit_moments(summarize(result, texts, engine=engine, **way, **shown).moments, source)
    else:
        for block in encoded(result, here, batch_size, "Whitening", show_progress_bar, prompt, route):
            whitening.partial_fit(block, source)
    whitening.affine()  # a rank that does not suffice is reported here, not at the first encode()
    # Directions are sorted by variance, so truncation goes on meaning something, unless more was asked for here.
    truncated = model.truncate_dim
    if truncated is not None and (output_dimension is None or output_dimension <= truncated):
        result.truncate_dim = truncated
    settings = {"output_dimension": whitening.get_embedding_dimension(), "center": center, "power": power, **options}
    made = Made("whitening", _WHITENING, described(texts, here, source), settings | _way(model, prompt, route))
    return told(closed(result, [whitening, *tail]), made)


def fit_flow(
    model: SentenceTransformer,
    texts: Sequence[str],
    preset: str = "paper",
    *,
    epochs: int | None = None,
    learning_rate: float | None = None,
    prompt: str | None = None,
    route: str | None = None,
    batch_size: int = 32,
    source: str = "",
    generator: torch.Generator | None = None,
    show_progress_bar: bool | None = None,
    **options: Any,
) -> SentenceTransformer:
    """Return the model with a NormalizingFlow, fitted on unlabeled texts (BERT-flow).

    The encoder is not trained. All embeddings are kept in memory while the flow is fitted. As with `whiten` the new
    module comes last, but before a final Normalize, the model's default prompt is used, and models trained with cosine
    similarity may get worse: compare before and after, and with `whiten`, which takes less time. For further options
    of the fit, use `NormalizingFlow` itself.

    Args:
        model: The model; left as it is, the new one has copies of its weights.
        texts: Texts like those the model will see; a few thousand at least.
        preset: ``"paper"`` or ``"code"``, the published architectures; or ``"published"``, the authors' whole recipe,
            with their training; see `NormalizingFlow`.
        epochs: Passes over the embeddings, at most: 30, where a held-out likelihood that no longer improves ends it
            earlier; or with ``"published"`` 1.
        learning_rate: Of Adam; None: 1e-3.
        prompt: As for `whiten`.
        route: As for `whiten`.
        batch_size: Texts encoded at a time.
        source: Where the texts come from, for the record saved with the module.
        generator: Where random numbers come from; None: a new one with seed 0.
        show_progress_bar: Whether to show progress bars; None shows them on a terminal.
        **options: Arguments of `NormalizingFlow`, which override the preset's: ``coupling="affine"`` or
            ``normalize=True`` for example.

    Returns:
        The new model.

    Raises:
        TypeError: ``texts`` is one string, something in it is no string, or ``model`` is no SentenceTransformer.
        ValueError: There are too few texts, they all have the same embedding, or an option is not allowed.

    Example:
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> texts = corpus(400)
        >>> flowed = fit_flow(untrained_encoder(), texts, epochs=3)
        >>> type(flowed[-1]).__name__, bool(abs(flowed.encode(texts).std(axis=0).mean() - 1) < 0.1)
        ('NormalizingFlow', True)

    Reference:
        Li et al., arXiv 2011.05864; see `NormalizingFlow`.
    """
    texts, result, tail, dimension = opened(model, texts, 3, "a flow", prompt, route)
    normalize = options.pop("normalize", False) or gives_unit_length(model[-1])
    options["normalize"] = normalize and not tail
    module = NormalizingFlow.from_preset(preset, dimension, **options).to(result.device)
    embeddings = list(encoded(result, texts, batch_size, "Encoding", show_progress_bar, prompt, route))
    module.fit(
        embeddings,
        source,
        epochs=epochs,
        learning_rate=learning_rate,
        generator=generator,
        show_progress_bar=show_progress_bar,
    )
    result.truncate_dim = model.truncate_dim
    settings = {"preset": preset, "epochs": epochs, "learning_rate": learning_rate, **options}
    words = texts_in_words(len(texts), source, checksum(texts))
    made = Made("BERT-flow", _FLOW, words, settings | _way(model, prompt, route))
    return told(closed(result, [module, *tail]), made)


def first_last_avg(model: SentenceTransformer) -> SentenceTransformer:
    """Return the model with the published "first-last-avg" pooling, made of stock modules only.

    The token embeddings become the average of the outputs of the first and the last Transformer layer, and their mean
    over the tokens that are no padding becomes the sentence embedding. "First" is ``hidden_states[1]``, the output of
    layer one, not the word embeddings ``hidden_states[0]``: the latter gives 56.7 instead of 60.7 on the seven STS
    tasks with BERT-base (SimCSE, issue 285). `LayerMix` with ``recipe="first-last"`` is the same as a module of this
    package. It holds in copies, process pools, compiled and with adapters; saved, loaded by plain
    ``SentenceTransformer`` and sent to a pool it fails rather than read the last layer only (`st_plugins.load` mends
    that).

    Args:
        model: A model whose first module is a Transformer, with at most a Pooling and a Normalize after it; left as
            it is.

    Returns:
        The new model; plain ``SentenceTransformer`` loads it.

    Raises:
        ValueError: The model has other modules, which would not fit the new embeddings, or the encoder no layers.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> averaged = first_last_avg(untrained_encoder(layers=4))
        >>> [type(module).__name__ for module in averaged], averaged[1].layer_weights.tolist()
        (['Transformer', 'WeightedLayerPooling', 'Pooling'], [1.0, 0.0, 0.0, 1.0])

    Reference:
        Su et al., arXiv 2103.15316, section 4.1, after Li et al., arXiv 2011.05864.
    """
    transformer, rest = _split(model)
    dimension = width_of(transformer)
    layers = int(transformer.model.config.num_hidden_layers)
    # The host's module divides by the sum of the weights; as a parameter it is saved.
    weights = nn.Parameter(2 * recipe_weights("first-last", layers)[1:])
    # layer_start=1 leaves out the embedding layer, index 0; the host's default is 4.
    layer_pooling = WeightedLayerPooling(dimension, num_hidden_layers=layers, layer_start=1, layer_weights=weights)
    mean = Pooling(dimension, "mean", include_prompt=_include_prompt(model))
    result = rebuild(model, [transformer, layer_pooling, mean, *rest])
    copied: Any = result[0]
    return_all_layers(copied)
    return told(result, Made("first-last-avg", "The token vectors of the first and the last layer are averaged."))


def pooling(model: SentenceTransformer, mode: str) -> SentenceTransformer:
    """Return the model with another stock pooling, "cls" or "mean" for example."""
    transformer, rest = _split(model)
    stock: Any = Pooling
    changed = stock(width_of(transformer), pooling_mode=mode, include_prompt=_include_prompt(model))
    return rebuild(model, [transformer, changed, *rest])


def _way(model: SentenceTransformer, prompt: str | None, route: str | None) -> dict[str, Any]:
    """Return how the texts were encoded, as the card says it."""
    return {"prompt": (default_prompt(model) if prompt is None else prompt) or None, "route": route}


def _check_rank(texts: Sequence[str], output_dimension: int, center: bool) -> None:
    """Refuse more dimensions than texts can span."""
    different = len(set(texts))
    # N points span N - 1 dimensions around their mean. The references have no ε: beyond that they divide by rounding.
    rank = different - 1 if center else different
    if output_dimension > rank:
        repeated = "" if different == len(texts) else f", {different} of them different,"
        raise ValueError(
            f"output_dimension is {output_dimension}, but {len(texts)} texts{repeated} have rank {rank} at most; give "
            "more texts, choose a smaller output_dimension, or set shrinkage='ledoit-wolf' or power=0"
        )


def _include_prompt(model: SentenceTransformer) -> bool:
    """Return whether the model's pooling counts the tokens of a prompt."""
    return all(module.include_prompt for module in model if isinstance(module, Pooling))


def _split(model: SentenceTransformer) -> tuple[Any, list[nn.Module]]:
    """Return the Transformer, and what follows its pooling."""
    check_encoder(model)
    transformer, *others = list(model)
    if not isinstance(transformer, Transformer):
        raise ValueError(f"the first module must be a Transformer, got {type(transformer).__name__}")
    rest = [module for module in others if not isinstance(module, LayerMix | Pooling | WeightedLayerPooling)]
    for module in rest:
        if not isinstance(module, Normalize):
            raise ValueError(
                f"the model has a {type(module).__name__} after its pooling, which was made for the old embeddings; "
                "change the pooling of the bare encoder first"
            )
    return transformer, rest
