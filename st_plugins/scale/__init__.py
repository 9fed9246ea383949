"""A hundred million texts: the same calls in blocks, by this machine's processes or by Ray, with the same numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st_plugins.scale.embeddings import Embeddings, encode
from st_plugins.scale.encode_batches import Encode
from st_plugins.scale.engines import Local, Ray, ray_library
from st_plugins.scale.one_pass import summarize, summarize_vectors
from st_plugins.scale.planning import Plan, plan
from st_plugins.scale.summary import Summary
from st_plugins.scale.texts import Block, Scan, Texts

if TYPE_CHECKING:
    from st_plugins.scale.aggregate import MomentsAggregate

__all__ = [
    "Block",
    "Embeddings",
    "Encode",
    "Local",
    "MomentsAggregate",
    "Plan",
    "Ray",
    "Scan",
    "Summary",
    "Texts",
    "encode",
    "plan",
    "summarize",
    "summarize_vectors",
]


if not TYPE_CHECKING:  # which would take any name for one that is here

    def __getattr__(name: str) -> Any:
        if name == "MomentsAggregate":  # its base class is Ray's, which not everybody has
            ray_library()
            from st_plugins.scale.aggregate import MomentsAggregate

            return MomentsAggregate
        raise AttributeError(f"module 'st_plugins.scale' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "MomentsAggregate"])
