"""Smaller vectors: fewer dimensions and fewer bits, chosen on unlabeled texts, with what it costs said beforehand."""

from __future__ import annotations

from st_plugins.compression.choice.certificate import Certificate
from st_plugins.compression.compress import compress
from st_plugins.compression.compressed import Compressed, Option
from st_plugins.core.quantization import Quantization

__all__ = ["Certificate", "Compressed", "Option", "Quantization", "compress"]
