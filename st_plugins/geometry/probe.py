"""A fixed set of texts by which to watch the space of a model that is being trained."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn

from st_plugins.core.host import check_encoder, default_prompt, evaluating
from st_plugins.geometry.embeddings import describe

NUMBERS = {"alignment": -1, "effective_rank": 1, "isoscore": 1, "mean_random_cosine": -1, "uniformity": -1}
"""What is measured, and whether more (1) or less (-1) of it counts as better."""

_DROPOUT_TEXTS = 512  # enough for a mean; the dropout passes cost as much as encoding them twice


class Probe:
    """Texts, and perhaps pairs of like meaning, on which a model is measured without disturbing its training.

    Args:
        texts: Unlabelled texts. Duplicates are dropped.
        pairs: Pairs of texts that mean the same, for the alignment; None takes two passes with dropout on.
        batch_size: Texts encoded at a time.
        max_texts: More texts than this are sampled down.
        seed: Seed of that sample, of the dropout passes, and of the pairs behind the uniformity.

    Raises:
        TypeError: ``texts`` is one string.
        ValueError: Fewer than two distinct texts or two pairs, or a number below its minimum.

    Example:
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> numbers = Probe(corpus(100)).measure(untrained_encoder())
        >>> bool(numbers["alignment"] < 0.5), bool(-8 < numbers["uniformity"] < 0)
        (True, True)
    """

    def __init__(
        self,
        texts: Iterable[str],
        pairs: Iterable[tuple[str, str]] | None = None,
        *,
        batch_size: int = 64,
        max_texts: int = 2000,
        seed: int = 0,
    ) -> None:
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, got one string; put it into a list")
        if batch_size < 1 or max_texts < 2:
            raise ValueError(f"batch_size={batch_size} must be at least 1, max_texts={max_texts} at least 2")
        distinct = list(dict.fromkeys(texts))
        if len(distinct) < 2:
            raise ValueError(f"texts has {len(distinct)} distinct entries; the geometry needs at least 2")
        if len(distinct) > max_texts:
            kept = np.random.default_rng(seed).choice(len(distinct), max_texts, replace=False)
            distinct = [distinct[index] for index in np.sort(kept)]
        self.texts = distinct
        self.pairs = None if pairs is None else list(pairs)
        if self.pairs is not None and len(self.pairs) < 2:
            raise ValueError(f"pairs has {len(self.pairs)} entries; give at least 2, or None")
        self.batch_size = batch_size
        self.seed = seed

    def measure(self, model: SentenceTransformer) -> dict[str, float]:
        """Measure a model as it is now, in evaluation mode.

        Args:
            model: The model. Its modes and the random states (CPU and CUDA) are restored.

        Returns:
            ``alignment``, ``effective_rank``, ``isoscore``, ``mean_random_cosine`` and ``uniformity`` by name, as
            :mod:`st_plugins.geometry` defines them.

        Raises:
            FloatingPointError: A text gets an embedding with NaN or infinity.
        """
        check_encoder(model)
        with evaluating(model):
            embeddings = self._encode(model, self.texts)
            if self.pairs is not None:
                first, second = (self._encode(model, list(side)) for side in zip(*self.pairs, strict=True))
            else:
                first, second = self._dropout_passes(model)
        found = describe(embeddings, positives=(first, second), seed=self.seed)
        return {name: float(found[name]) for name in NUMBERS}

    def _encode(self, model: SentenceTransformer, texts: list[str]) -> NDArray[np.float64]:
        found = model.encode(texts, batch_size=self.batch_size, show_progress_bar=False, convert_to_tensor=True)
        return _finite(found, texts)

    def _dropout_passes(self, model: SentenceTransformer) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Embed the same texts twice with dropout on, from a random state of its own."""
        # `encode` would switch dropout off. Forked, for the random states of the training must not move.
        texts = self.texts[:_DROPOUT_TEXTS]
        on_gpu = model.device.type == "cuda"
        with torch.random.fork_rng(range(torch.cuda.device_count()) if on_gpu else []), torch.no_grad():
            (torch.manual_seed if on_gpu else torch.default_generator.manual_seed)(self.seed)
            for module in model.modules():
                module.training = not isinstance(module, nn.BatchNorm1d | nn.SyncBatchNorm)  # they would learn
            passes: tuple[list[Tensor], list[Tensor]] = ([], [])
            for start in range(0, len(texts), self.batch_size):
                batch = model.preprocess(texts[start : start + self.batch_size], prompt=default_prompt(model))
                for embeddings in passes:
                    # Another dictionary for each pass: the host's forward adds to the one that it gets.
                    features = batch_to_device(dict(batch), model.device)
                    embeddings.append(model(features)["sentence_embedding"])
        first, second = (_finite(torch.cat(embeddings), texts) for embeddings in passes)
        return first, second


def _finite(tensor: Tensor, texts: list[str]) -> NDArray[np.float64]:
    embeddings: NDArray[np.float64] = tensor.detach().cpu().double().numpy()
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if bad.size:
        raise FloatingPointError(
            f"{bad.size} of {len(texts)} probe texts have NaN or infinity in their embedding, the first is "
            f"{texts[bad[0]][:80]!r}; the weights are lost: go back to a checkpoint, and train with a lower learning "
            "rate or in float32"
        )
    return embeddings
