"""What is measured on texts that were not trained on, without a label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from st_plugins.adaptation.race.found_pairs import parts_of
from st_plugins.compression.choice.copies import mutilated
from st_plugins.compression.choice.fidelity import Held, reciprocal_ranks, unit

Array = NDArray[np.floating]
Encode = Callable[[list[str]], Array]

_STRANGE, _TOKENS = 100, 8
_LEAST_COPIES = 30  # fewer say nothing, and with two or three the standard error is 0 by chance


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors of held-out texts, of two mutilated copies and two neighboring parts of each, and of gibberish."""

    texts: Array  # (n, d)
    copies: tuple[Array, Array]  # (c, d) each, c may be 0
    parts: tuple[Array, Array]  # (p, d) each, p may be 0
    gibberish: Array  # (g, d)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Texts that no entry is trained on, and what is made of them."""

    texts: list[str]
    copies: tuple[list[str], list[str]]
    parts: tuple[list[str], list[str]]
    gibberish: list[str]

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: Any, seed: int) -> HeldOut:
        """Mutilate and split texts."""
        generator = torch.Generator().manual_seed(seed)
        split = [parts for parts in map(parts_of, texts) if len(parts) > 1]
        copies = mutilated(texts, generator)
        return cls(
            list(texts),
            copies if len(copies[0]) >= _LEAST_COPIES else ([], []),
            ([parts[0] for parts in split], [parts[1] for parts in split]),
            gibberish(tokenizer, generator),
        )

    def encoded(self, encode: Encode) -> Vectors:
        """Encode all of them in one go."""
        lists = [self.texts, *self.copies, *self.parts, self.gibberish]
        vectors = encode([text for one in lists for text in one])
        ends = np.cumsum([len(one) for one in lists])[:-1]
        texts, one, two, first, second, strange = np.split(vectors, ends)
        return Vectors(texts, (one, two), (first, second), strange)


def gibberish(tokenizer: Any, generator: torch.Generator) -> list[str]:
    """Return texts of random tokens, which no text of any domain has to do with."""
    words = [] if hasattr(tokenizer, "decode") else list(tokenizer.get_vocab())  # the host's own tokenizers
    size = len(words) or (len(tokenizer) if hasattr(tokenizer, "__len__") else tokenizer.get_vocab_size())
    drawn = torch.randint(size, (_STRANGE, _TOKENS), generator=generator).tolist()
    if words:
        return [" ".join(words[place] for place in row) for row in drawn]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in drawn]


@dataclass(frozen=True, eq=False)
class Seen:
    """What vectors of held-out texts show: how surely copies and parts find each other, and the shape of the space."""

    copies: Array  # 1 / rank of each text's other copy among all, both ways, (c,)
    parts: Array  # the same of parts, (p,)
    uniformity: float  # log of the mean of exp(-2 |x - y|²) over pairs of texts
    alignment: float  # mean squared distance of two copies
    alike: float  # mean cosine of two texts
    strange: float  # mean cosine of a text and gibberish
    rank: float  # exp of the entropy of the spectrum: directions that are used

    @classmethod
    def of(cls, vectors: Vectors) -> Seen:
        """Look at vectors."""
        rows = unit(np.asarray(vectors.texts, dtype=np.float64))
        cosines = (rows @ rows.T)[np.triu_indices(len(rows), 1)]
        spectrum = np.linalg.svd(rows, compute_uv=False)
        shares = np.maximum(spectrum / spectrum.sum(), 1e-12)
        one, two = (unit(np.asarray(side, dtype=np.float64)) for side in vectors.copies)
        return cls(
            copies=reciprocal_ranks(*vectors.copies),
            parts=reciprocal_ranks(*vectors.parts),
            uniformity=float(np.log(np.mean(np.exp(4 * cosines - 4)))),
            alignment=float(np.mean(2 - 2 * np.einsum("id,id->i", one, two))) if len(one) else 0.0,
            alike=float(cosines.mean()),
            strange=float((rows @ unit(np.asarray(vectors.gibberish, dtype=np.float64)).T).mean()),
            rank=float(np.exp(-(shares * np.log(shares)).sum())),
        )


def kept(given: Vectors, new: Vectors) -> dict[str, float]:
    """Return how much of the given similarities and nearest neighbors is as it was."""
    found = Held(given.texts).measure(new.texts)
    return {"correlation": 1 - found.loss, "neighbors": found.neighbors}
