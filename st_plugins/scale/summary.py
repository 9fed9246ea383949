"""What is kept of embeddings that are too many to keep: moments, directions and a sample, which merge exactly."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from typing_extensions import Self

from st_plugins.core.rows import as_rows, refuse_non_finite
from st_plugins.methods.whitening.moments import Moments

Array = NDArray[np.floating]
Split = tuple[Array, float]
"""A direction, ``(d,)``, and a threshold: texts beyond it along the direction are the second of two groups."""

_ROWS = 4096  # added at a time: products of so few rows are in float64, and memory does not grow with the block
_FORMAT = "st_plugins.Summary 2"
_ABOUT = ("dimension", "sample", "seed", "keep_texts")


class Summary:
    """Statistics of embeddings in O(d²) memory, the same for any order and any division into blocks.

    Everything that whitening, rotation, compression, geometry and distances between Gaussians ask of embeddings:
    count, mean and covariance (in float64, about the mean), the fourth-order sums of Ledoit-Wolf shrinkage, the
    lengths and the sum of the directions, and a sample. Summaries of parts merge to that of the whole: to about 1e-15
    of it in the sums, exactly in the sample, which holds the texts whose hashes are smallest. A text that occurs twice
    counts twice in the sums and once in the sample.

    Args:
        dimension: Width d of the embeddings.
        sample: How many texts to keep with their embeddings, in each group.
        split: Keep two groups apart: those at most ``threshold`` along ``direction``, and those beyond it.
        seed: Of the hashes, for another sample.
        keep_texts: Whether the sample has the texts too; False keeps their embeddings alone, which long documents
            would be many times as large as.

    Raises:
        ValueError: A number is out of its range.

    Example:
        >>> rows = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
        >>> whole = Summary(3, sample=5).add(rows)
        >>> parts = Summary(3, sample=5).add(rows[600:]).merge(Summary(3, sample=5).add(rows[:600]))
        >>> bool(np.allclose(parts.moments.second(), whole.moments.second(), rtol=1e-13))
        True
        >>> Summary.from_bytes(parts.to_bytes()).sample().tolist() == whole.sample().tolist()
        True

    Reference:
        Chan, Golub & LeVeque, "Algorithms for computing the sample variance" (1983), for merging; the sample is that
        of Broder, "On the resemblance and containment of documents" (1997): the smallest hashes.
    """

    def __init__(
        self,
        dimension: int,
        *,
        sample: int = 0,
        split: Split | None = None,
        seed: int = 0,
        keep_texts: bool = True,
    ) -> None:
        if dimension < 1 or sample < 0:
            raise ValueError(f"dimension={dimension} must be at least 1, and sample={sample} at least 0")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed={seed} must be at least 0 and below 2**64")
        self.dimension, self.size, self.split, self.seed = dimension, sample, split, seed
        self.keep_texts = keep_texts
        self.groups = [Moments(dimension) for _ in range(1 if split is None else 2)]
        self.zero_rows, self.norms, self.directions = 0, 0.0, np.zeros(dimension)
        empty = np.zeros(0, np.uint64), np.zeros((0, dimension), np.float32)
        self._kept: list[tuple[NDArray[np.uint64], NDArray[np.float32], list[str]]] = [
            (*empty, []) for _ in self.groups
        ]

    @property
    def count(self) -> int:
        """Number of texts."""
        return sum(group.count for group in self.groups)

    @property
    def moments(self) -> Moments:
        """Moments of all texts, of both groups together."""
        total = Moments(self.dimension)
        for group in self.groups:
            total.merge(group)
        return total

    def sample(self, group: int = 0) -> NDArray[np.float32]:
        """Return the embeddings of the sample of a group, ``(at most sample, d)``, in the order of their hashes."""
        return self._kept[group][1]

    def texts(self, group: int = 0) -> list[str]:
        """Return the texts of the sample of a group; none where they were not given or not to be kept."""
        return self._kept[group][2]

    def empty(self) -> Summary:
        """Return a new summary of nothing, with the same settings."""
        settings: dict[str, Any] = {"sample": self.size, "split": self.split, "seed": self.seed}
        return type(self)(self.dimension, **settings, keep_texts=self.keep_texts)

    def add(self, vectors: Any, texts: Sequence[str] | None = None) -> Self:
        """Add embeddings.

        Args:
            vectors: ``(N, d)``, an array or a tensor.
            texts: Their texts, whose hashes decide about the sample; None: those of the embeddings do.

        Returns:
            Itself.

        Raises:
            ValueError: The shape or type is wrong, there are more or fewer texts, or a number is NaN or infinite;
                nothing is added then.
        """
        rows = as_rows(vectors, self.dimension, type(self).__name__)
        resolution = 0.0
        if not isinstance(rows, np.ndarray):
            rows = rows.detach().cpu()
            if rows.dtype == torch.bfloat16:  # NumPy has no such type, but what it rounded away is to be known
                rows, resolution = rows.float(), torch.finfo(torch.bfloat16).eps ** 2
            rows = rows.numpy()
        if texts is not None and len(texts) != len(rows):
            raise ValueError(f"texts has {len(texts)} entries, but vectors {len(rows)} rows; row i must be of text i")
        refuse_non_finite(rows, self.count)
        found = self.empty()  # apart, since numbers may turn out too large for their squares
        for first in range(0, len(rows), _ROWS):
            part = slice(first, first + _ROWS)
            found._add(rows[part], None if texts is None else texts[part])
        for group in found.groups:
            group.resolution = max(group.resolution, resolution)
        return self.merge(found)

    def merge(self, other: Summary) -> Self:
        """Add what another summary has seen.

        Args:
            other: A summary with the same settings; left as it is.

        Returns:
            Itself.

        Raises:
            ValueError: The settings differ.
        """
        mine, theirs = ((one.dimension, one.size, one.seed, one.keep_texts) for one in (self, other))
        if mine != theirs or not _equal(self.split, other.split):
            raise ValueError(
                f"cannot merge a summary of dimension {other.dimension} with a sample of {other.size} into one of "
                f"{self.dimension} with {self.size}, or their seeds or groups differ, or keep_texts; make both alike"
            )
        self.zero_rows, self.norms = self.zero_rows + other.zero_rows, self.norms + other.norms
        self.directions = self.directions + other.directions
        for number, (group, added) in enumerate(zip(self.groups, other.groups, strict=True)):
            group.merge(copy.copy(added))
            self._keep(number, *other._kept[number])
        return self

    def to_bytes(self) -> bytes:
        """Return everything as the bytes of a safetensors file, which :meth:`from_bytes` reads."""
        tensors: dict[str, NDArray[Any]] = {
            "directions": self.directions,
            "sums": np.array([self.norms, float(self.zero_rows)]),
        }
        if self.split is not None:
            tensors |= {"split.direction": np.asarray(self.split[0]), "split.threshold": np.array([self.split[1]])}
        for number, (group, kept) in enumerate(zip(self.groups, self._kept, strict=True)):
            tensors |= {
                f"{number}.mean": group.mean,
                f"{number}.scatter": np.ascontiguousarray(group.scatter),
                f"{number}.cubic": group.cubic,
                f"{number}.other": np.array([group.count, group.quartic, group.resolution]),
                f"{number}.keys": kept[0].view(np.int64),
                f"{number}.vectors": np.ascontiguousarray(kept[1]),
            }
            # As tensors: the header, where all else of words stands, has a limit of 100 MB.
            words = [text.encode() for text in kept[2]]
            tensors |= {
                f"{number}.texts": np.frombuffer(b"".join(words), np.uint8),
                f"{number}.ends": np.cumsum([len(word) for word in words], dtype=np.int64),
            }
        about: dict[str, Any] = {"dimension": self.dimension, "sample": self.size, "seed": self.seed}
        about["keep_texts"] = self.keep_texts
        # One entry only: safetensors writes several in any order, and equal summaries are to be equal bytes.
        header = {"format": _FORMAT, "checksum": _checksum(about, tensors), **about}
        return save(tensors, {"summary": json.dumps(header)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read :meth:`to_bytes` back.

        Args:
            data: What `to_bytes` returned.

        Returns:
            The summary.

        Raises:
            ValueError: The bytes are something else, or damaged.
        """
        try:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
            about, tensors = json.loads(header["summary"]), load(bytes(data))
            if about["format"] != _FORMAT:
                raise ValueError(f"of the format {about['format']!r}")
            if about["checksum"] != _checksum({name: about[name] for name in _ABOUT}, tensors):
                raise ValueError("the checksum is of other numbers")
            split = None
            if "split.direction" in tensors:
                split = tensors["split.direction"], float(tensors["split.threshold"][0])
            settings = {name: about[name] for name in ("sample", "seed", "keep_texts")}
            found = cls(about["dimension"], split=split, **settings)
            found.directions = tensors["directions"]
            found.norms, found.zero_rows = float(tensors["sums"][0]), int(tensors["sums"][1])
            for number in range(len(found.groups)):
                count, quartic, resolution = tensors[f"{number}.other"].tolist()
                mean, scatter, cubic = (tensors[f"{number}.{name}"] for name in ("mean", "scatter", "cubic"))
                found.groups[number] = Moments(
                    found.dimension, int(count), mean, scatter, cubic, float(quartic), float(resolution)
                )
                keys = tensors[f"{number}.keys"].view(np.uint64)
                content, ends = tensors[f"{number}.texts"].tobytes(), tensors[f"{number}.ends"].tolist()
                texts = [content[first:end].decode() for first, end in zip([0, *ends], ends, strict=False)]
                found._kept[number] = keys, tensors[f"{number}.vectors"], texts
        except Exception as error:  # whatever other bytes lead to, in the reader of safetensors too
            raise ValueError(f"data is no summary, or a damaged one ({error}); give what to_bytes returned") from None
        return found

    def _add(self, rows: Array, texts: Sequence[str] | None) -> None:
        exact = np.asarray(rows, dtype=np.float64)
        # The largest entry goes first, so that squares of very small or very large ones neither vanish nor overflow.
        largest = np.abs(exact).max(axis=1)
        directed = largest > 0
        scaled = exact[directed] / largest[directed, None]
        lengths = np.sqrt(np.square(scaled).sum(axis=1))
        self.zero_rows += int(len(rows) - directed.sum())
        self.norms += float((lengths * largest[directed]).sum())
        self.directions = self.directions + (scaled / lengths[:, None]).sum(axis=0)
        beyond = np.zeros(len(rows), dtype=bool) if self.split is None else along(rows, self.split[0]) > self.split[1]
        keys = _hashes(rows, texts, self.seed) if self.size else np.zeros(len(rows), np.uint64)
        for number, group in enumerate(self.groups):
            chosen = np.flatnonzero(beyond == bool(number))
            if len(chosen):
                group.merge(Moments.of(rows[chosen]))
                self._sample(number, rows, keys, chosen, texts)

    def _sample(
        self,
        group: int,
        rows: Array,
        keys: NDArray[np.uint64],
        chosen: NDArray[np.intp],
        texts: Sequence[str] | None,
    ) -> None:
        if not self.size:
            return
        kept = self._kept[group][0]
        if len(kept) == self.size:  # what cannot get in is not copied
            chosen = chosen[keys[chosen] <= kept[-1]]
        names = [texts[row] for row in chosen] if texts is not None and self.keep_texts else []
        self._keep(group, keys[chosen], np.asarray(rows[chosen], dtype=np.float32), names)

    def _keep(self, group: int, keys: NDArray[np.uint64], vectors: NDArray[np.float32], texts: list[str]) -> None:
        """Add candidates to a sample: the smallest hashes stay, each once, in ascending order."""
        if not len(keys):
            return
        old_keys, old_vectors, old_texts = self._kept[group]
        # A sample has the texts of all its rows, or of none.
        with_texts = (len(texts) == len(keys)) and (len(old_texts) == len(old_keys))
        every, names = np.concatenate([old_keys, keys]), [*old_texts, *texts] if with_texts else []
        stacked = np.concatenate([old_vectors, vectors])
        found, places = np.unique(every, return_index=True)
        if len(found) < len(every):
            # Other batches round the embedding of the same text differently; which one stays does not depend on order.
            order = np.lexsort((_hashes(stacked, None, self.seed), every))
            places = order[np.unique(every[order], return_index=True)[1]]
        places = places[: self.size]
        self._kept[group] = found[: self.size], stacked[places], [names[place] for place in places] if names else []


def along(rows: Array, direction: Array) -> NDArray[np.float64]:
    """Return how far rows, scaled to length 1, go along a direction: the same for a row in any block."""
    # A product of matrices rounds a row differently in another block; one right at the threshold would change sides.
    exact = np.asarray(rows, dtype=np.float64)
    lengths = np.maximum(np.sqrt(np.square(exact).sum(axis=1)), 1e-12)
    return np.asarray((exact * direction).sum(axis=1) / lengths)


def _hashes(rows: Array, texts: Sequence[str] | None, seed: int) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each text, or of each embedding."""
    single = None if texts is not None else np.ascontiguousarray(rows, dtype=np.float32)
    content = [row.tobytes() for row in single] if single is not None else [text.encode() for text in texts or ()]
    salt = seed.to_bytes(8, "little")
    digests = b"".join(hashlib.blake2b(one, digest_size=8, salt=salt).digest() for one in content)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def _checksum(about: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> str:
    """Return a hash of all that a summary holds."""
    digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def _equal(first: Split | None, second: Split | None) -> bool:
    if first is None or second is None:
        return first is second
    return first[1] == second[1] and np.array_equal(first[0], second[0])
