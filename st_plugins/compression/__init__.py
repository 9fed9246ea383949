"""Smaller vectors: fewer dimensions and fewer bits, chosen on unlabeled texts, with what it costs said beforehand."""

from __future__ import annotations

from st_plugins.compression.quantization import Quantization

__all__ = ["Quantization"]
