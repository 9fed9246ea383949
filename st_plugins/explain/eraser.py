"""Whether an explanation names the tokens that matter: delete them and see, as ERASER does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table as TerminalTable
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import batch_to_device
from torch import Tensor
from typing_extensions import Self

from st_plugins.core.host import check_encoder, evaluating
from st_plugins.explain.gradient import gradient_saliency
from st_plugins.explain.inner.reading import Reading, read
from st_plugins.report.table import Cell, Table

BINS = (0.01, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class Ranking:
    """How the score reacts to one order of the tokens.

    Args:
        comprehensiveness: Per bin: score of the text minus score without its first tokens. High is faithful.
        sufficiency: Per bin: score of the text minus score of its first tokens alone. Low is faithful.

    Example:
        >>> Ranking(comprehensiveness=(0.4, 0.6), sufficiency=(0.2, 0.1)).sufficiency
        (0.2, 0.1)
    """

    comprehensiveness: tuple[float, ...]
    sufficiency: tuple[float, ...]

    @property
    def mean_comprehensiveness(self) -> float:
        """Mean over the bins (AOPC)."""
        return float(np.mean(self.comprehensiveness))

    @property
    def mean_sufficiency(self) -> float:
        """Mean over the bins (AOPC)."""
        return float(np.mean(self.sufficiency))


@dataclass(frozen=True)
class Faithfulness:
    """What deletion says about an explanation, beside gradient × input and random orders.

    Args:
        score: Score of the whole text.
        bins: Shares of the tokens that are deleted, or kept.
        rankings: By name: ``"explanation"``, ``"gradient"`` (unless left out) and ``"random"``.

    Example:
        >>> found = Faithfulness(0.9, (0.1, 0.5), {"explanation": Ranking((0.4, 0.6), (0.2, 0.1))})
        >>> found.rankings["explanation"].comprehensiveness[1]
        0.6
    """

    score: float
    bins: tuple[float, ...]
    rankings: Mapping[str, Ranking]

    def to_table(self) -> TerminalTable:
        """Return the numbers as a terminal table."""
        return self._table(f"Faithfulness by deletion (score of the whole text {self.score:.4f})").to_terminal()

    def to_html(self) -> str:
        """Return the numbers as a card of an HTML page."""
        note = (
            f"The score of the whole text is {self.score:.4f}. “Without” is what it loses when so many of the most "
            "salient tokens are deleted (high is good), “only” what it loses when they alone are left (low is good)."
        )
        return self._table("Faithfulness by deletion", note).to_html()

    def _table(self, title: str, note: str = "") -> Table:
        rows: list[list[str | Cell]] = [[name, *(Cell(f"{value:+.4f}") for value in row)] for name, row in self.rows()]
        return Table(title, ["tokens", *self.columns()], rows, note)

    def columns(self) -> list[str]:
        """Return the headings of :meth:`rows`: both measures of each ranking."""
        return [f"{word}: {name}" for word in ("without", "only") for name in self.rankings]

    def rows(self) -> list[tuple[str, list[float]]]:
        """Return the share of the tokens and the numbers of each bin, and their means in the last row."""
        rankings = self.rankings.values()
        table = [[*r.comprehensiveness, r.mean_comprehensiveness] for r in rankings]
        table += [[*r.sufficiency, r.mean_sufficiency] for r in rankings]
        names = [*(f"{100 * share:g} %" for share in self.bins), "mean"]
        return list(zip(names, np.array(table).T.tolist(), strict=True))

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Return what ``dataclasses.asdict`` took apart, also after JSON.

        Args:
            stored: Its fields.

        Returns:
            The result.
        """
        rankings = {
            name: Ranking(tuple(ranking["comprehensiveness"]), tuple(ranking["sufficiency"]))
            for name, ranking in stored["rankings"].items()
        }
        return cls(float(stored["score"]), tuple(stored["bins"]), rankings)


def faithfulness(
    model: SentenceTransformer,
    text: str | Sequence[str],
    saliency: Sequence[float] | NDArray[np.floating],
    score: Callable[[Tensor], Tensor],
    *,
    bins: Sequence[float] = BINS,
    repeats: int = 10,
    seed: int = 0,
    gradient: bool = True,
    prompt: str | None = None,
) -> Faithfulness:
    """Measure comprehensiveness and sufficiency of a saliency over tokens.

    At a bin p the ceil(p · m) most salient of the m tokens that can be deleted (never special tokens or a prompt) are
    taken out of the model's input, or kept alone, and the shorter text is encoded anew. At least one token always
    stays. Gradient × input and random orders are measured in the same way.

    Args:
        model: The model; as it was afterwards.
        text: The text, or a pair of texts that the model reads as one.
        saliency: One number a token of ``model``, special tokens included, high for tokens that raise the score.
        score: From embeddings ``(B, k)`` to scores ``(B,)``: a similarity to another embedding, say, or the
            probability of a class. It is called on the CPU for deletions, and on the model's device for the gradient,
            where it has to be differentiable.
        bins: Shares p of the tokens.
        repeats: Random orders, whose results are averaged.
        seed: Seed of the random orders.
        gradient: Whether to measure gradient × input too; leave it out where the score is at its top, as the cosine
            of an embedding to itself, because all gradients vanish there.
        prompt: As for ``explain_text``.

    Returns:
        The results.

    Raises:
        TypeError: ``model`` is no SentenceTransformer.
        ValueError: The saliency does not fit the text, the text has fewer than two tokens to delete, or a bin is not
            between 0 and 1.

    Example:
        >>> from st_plugins.miniature import untrained_encoder
        >>> from st_plugins.explain import explain_text
        >>> model, text = untrained_encoder(), "A happy dog sleeps in the garden."
        >>> whole = torch.from_numpy(model.encode(text))
        >>> saliency = explain_text(model, text).saliency
        >>> found = faithfulness(model, text, saliency, lambda e: torch.cosine_similarity(e, whole.to(e)))
        >>> round(found.score, 4), sorted(found.rankings)
        (1.0, ['explanation', 'gradient', 'random'])

    Reference:
        DeYoung et al., "ERASER: A Benchmark to Evaluate Rationalized NLP Models" (2020), arXiv 1911.03429, section
        4.2, with its bins of 1, 5, 10, 20 and 50 % of the tokens. We average over the bins; the printed formula of
        AOPC also counts the empty deletion, whose change is zero, and so is 5/6 of our mean. Our similarity scores
        are no probabilities: compare rankings of one model on one text, not numbers across models.
    """
    check_encoder(model)
    if not bins or not all(0 < share < 1 for share in bins):
        raise ValueError(f"bins must be shares between 0 and 1, such as {BINS}; got {tuple(bins)}")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    reading = read(model, text, prompt)
    values = np.asarray(saliency, dtype=np.float64)
    if values.shape != (len(reading.tokens),):
        raise ValueError(
            f"saliency has shape {values.shape}, but the model reads {len(reading.tokens)} tokens (special ones "
            "included); take it from an explanation of the same text with the same model"
        )
    # Special tokens and a prompt are never deleted: without them the model would read what it was not made for.
    free = np.array([position for position, token in enumerate(reading.tokens) if token.kind == "text"])
    if len(free) < 2:
        raise ValueError(
            f"text {reading.text[:80]!r} has {len(free)} token that can be deleted; give a text of at least two tokens"
        )
    generator = torch.Generator().manual_seed(seed)
    saliencies = {"explanation": values}
    if gradient:
        saliencies["gradient"] = gradient_saliency(model, text, score, prompt=prompt)
    # Stable: of equally salient tokens the first comes first, on every machine.
    orders = [free[np.argsort(-numbers[free], kind="stable")] for numbers in saliencies.values()]
    orders += [free[torch.randperm(len(free), generator=generator).numpy()] for _ in range(repeats)]
    with torch.no_grad():
        whole = float(score(encode_without(model, reading, [np.ones(len(reading.tokens), dtype=bool)])))
    changes = np.array(
        [[_changes(model, reading, orders, share, keep, score, whole) for share in bins] for keep in (False, True)]
    )
    named = {name: changes[:, :, row] for row, name in enumerate(saliencies)}
    named["random"] = changes[:, :, len(saliencies) :].mean(-1)
    rankings = {name: Ranking(*(tuple(map(float, row)) for row in found)) for name, found in named.items()}
    return Faithfulness(whole, tuple(bins), rankings)


def mean_faithfulness(results: Sequence[Faithfulness]) -> Faithfulness:
    """Average results of several texts, measured at the same bins.

    Args:
        results: At least one.

    Returns:
        Means of all numbers.

    Raises:
        ValueError: There are none, or their bins differ.

    Example:
        >>> one, two = (Faithfulness(score, (0.5,), {"random": Ranking((score,), (0.0,))}) for score in (0.5, 1.0))
        >>> mean_faithfulness([one, two]).score
        0.75
    """
    if not results or any(result.bins != results[0].bins for result in results):
        raise ValueError("results must be at least one, all measured at the same bins")

    def mean(name: str, part: str) -> tuple[float, ...]:
        table = np.array([getattr(result.rankings[name], part) for result in results])
        return tuple(map(float, table.mean(0)))

    rankings = {
        name: Ranking(mean(name, "comprehensiveness"), mean(name, "sufficiency")) for name in results[0].rankings
    }
    return Faithfulness(float(np.mean([result.score for result in results])), results[0].bins, rankings)


def encode_without(model: SentenceTransformer, reading: Reading, kept: Sequence[NDArray[np.bool_]]) -> Tensor:
    """Delete tokens from the input of a model and encode what is left, as ERASER does: removed, not masked."""
    # All versions keep the same number of tokens, so that none needs padding.
    # The tokens that are left stand side by side, as in a shorter text.
    index = torch.from_numpy(np.stack([np.flatnonzero(keep) for keep in kept]))
    features: dict[str, Any] = dict(reading.features)
    # It has one flat list of tokens for all texts, and where each begins.
    if isinstance(model[0], StaticEmbedding):
        features["input_ids"] = features["input_ids"][index].reshape(-1)
        features["offsets"] = torch.arange(len(index)) * index.shape[1]
    else:
        shape = features["input_ids"].shape
        for name, value in features.items():
            # Everything with one number a token goes with the tokens: masks, token types.
            if isinstance(value, Tensor) and value.shape == shape:
                features[name] = value[0][index]
    with evaluating(model), torch.no_grad():
        embeddings: Tensor = model(batch_to_device(features, model.device))["sentence_embedding"]
    return embeddings[:, : model.truncate_dim].float().cpu()


def _changes(
    model: SentenceTransformer,
    reading: Reading,
    orders: Sequence[NDArray[np.intp]],
    share: float,
    keep: bool,
    score: Callable[[Tensor], Tensor],
    whole: float,
) -> NDArray[np.float64]:
    """Score of the text minus score of each shortened version: without the first tokens, or with them alone."""
    # At least one token stays: of nothing a model has no embedding to speak of.
    count = min(math.ceil(share * len(orders[0])), len(orders[0]) - 1)
    masks = []
    for order in orders:
        mask = np.ones(len(reading.tokens), dtype=bool)
        mask[order[count:] if keep else order[:count]] = False
        masks.append(mask)
    with torch.no_grad():
        scores = score(encode_without(model, reading, masks))
    return whole - scores.double().cpu().numpy()
