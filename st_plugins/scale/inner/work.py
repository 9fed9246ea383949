"""What is done with the embeddings of a block, the same in this process, in others and on other machines."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from st_plugins.scale.encode_batches import Encode
from st_plugins.scale.inner.reading import Place
from st_plugins.scale.summary import Summary
from st_plugins.scale.texts import Block, Scan, Segment, Texts


class Work(Protocol):
    """What is done with the embeddings of a block; what comes back is small."""

    def __call__(self, block: Block, vectors: NDArray[np.float32]) -> bytes:
        """Return what is kept of a block."""
        ...


class SumUp:
    """Sum up the embeddings of a block."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary.empty()

    def __call__(self, block: Block, vectors: NDArray[np.float32]) -> bytes:
        """Return the summary."""
        return self.summary.empty().add(vectors, block.texts).to_bytes()


class Worker:
    """Read blocks, embed them and do the work: the same in this process, in others and on other machines."""

    def __init__(self, encode: Encode, texts: Texts, work: Work) -> None:
        self.encode, self.texts, self.work = encode, texts, work

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of the texts what only the process that plans needs."""
        return self.__dict__ | {"texts": self.texts._for_workers()}

    def __call__(self, item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield for each block of an item its number, how many texts it has, and what the work returned."""
        for block, vectors in self.embedded(item):
            yield self.finished(block, vectors)

    def at_once(self, item: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return what is yielded, for those who wait for all of it; of sums, which would pile up, their sum."""
        if not isinstance(self.work, SumUp):
            return list(self(item))
        total, numbers, texts = self.work.summary.empty(), [], 0
        for block, vectors in self.embedded(item):
            total.add(vectors, block.texts)
            numbers.append(block.number)
            texts += len(block.texts)
        return [{"number": numbers[0], "blocks": len(numbers), "texts": texts, "found": total.to_bytes()}]

    def embedded(self, item: Mapping[str, Any]) -> Iterator[tuple[Block, NDArray[np.float32]]]:
        """Yield the blocks of an item with their embeddings."""
        segment, wanted = task_of(item)
        for block in self.texts.read(segment, wanted):
            yield block, self.encode.embed(block.texts)

    def finished(self, block: Block, vectors: NDArray[np.float32]) -> dict[str, Any]:
        """Do the work, and say of which block."""
        return {"number": block.number, "blocks": 1, "texts": len(block.texts), "found": self.work(block, vectors)}


def items_of(scan: Scan, finished: Collection[int] = ()) -> list[dict[str, Any]]:
    """Return what is to be done, as rows that any engine can hold: some blocks of a file each."""
    items = []
    for segment in scan.segments:
        wanted = [number for number, _ in segment.numbered() if number not in finished]
        # A small file is read again for each of its blocks, so that several workers can share it.
        for part in [[number] for number in wanted] if segment.small else [wanted] if wanted else []:
            values = [segment.file, list(segment.start), segment.number, segment.first_row, list(segment.rows)]
            items.append({"item": json.dumps({"segment": values, "wanted": part})})
    return items


def task_of(item: Mapping[str, Any]) -> tuple[Segment, frozenset[int]]:
    """Read an item of `items_of` back."""
    told = json.loads(item["item"])
    file, start, number, first_row, rows = told["segment"]
    return Segment(file, Place(*start), number, first_row, tuple(rows)), frozenset(told["wanted"])
