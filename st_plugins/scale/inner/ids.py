"""Whether every text has an id of its own, over all files, in eight bytes a text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from st_plugins.scale.inner.reading import TextFile

_BYTES = 8
_COMPARED = 1 << 20  # at a time


class Ids:
    """Hashes of all ids, eight bytes each."""

    def __init__(self) -> None:
        self._found = bytearray()

    @staticmethod
    def keys(ids: Iterable[str | int | None]) -> bytes:
        """Return the hashes of ids, one behind another."""
        return b"".join([hashlib.blake2b(str(one).encode(), digest_size=_BYTES).digest() for one in ids])

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._found) // _BYTES

    def add(self, keys: bytes) -> None:
        """Add some hashes."""
        self._found += keys

    def keep(self, count: int) -> None:
        """Forget all hashes but the first ones, such as those of a file that turned out to be damaged."""
        del self._found[_BYTES * count :]

    def refuse_twice(self, files: Sequence[TextFile]) -> None:
        """Raise a ValueError that names the first id that occurs twice in files, those that were added."""
        # In place, and compared some at a time: a copy would be eight bytes more for each of 10⁹ texts.
        keys: NDArray[np.uint64] = np.frombuffer(self._found, dtype="<u8")
        self._found = bytearray()
        keys.sort()
        double: set[int] = set()
        for first in range(0, len(keys), _COMPARED):
            some = keys[first : first + _COMPARED + 1]
            double.update(some[1:][some[1:] == some[:-1]].tolist())
        del keys
        if double:
            self._named(double, files)

    def _named(self, double: set[int], files: Sequence[TextFile]) -> None:
        """Raise the ValueError: read all again, which only a fault costs, as hashes alone do not say where."""
        seen: dict[str, str] = {}
        for file in files:
            for row in file.rows():
                if int.from_bytes(self.keys([row.id]), "little") not in double:
                    continue
                key, where = str(row.id), f"{file.path}:{row.line + 1}"
                if key in seen:
                    raise ValueError(
                        f"{where}: {file.id_column} {key!r} occurs twice, first at {seen[key]}; give every text "
                        "an id of its own, or leave id_column out"
                    )
                seen[key] = where
