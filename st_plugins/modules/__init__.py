"""Sentence-transformers modules: features in, features out."""

from __future__ import annotations

from st_plugins.modules.normalizing_flow import NormalizingFlow
from st_plugins.modules.span_pooling import SpanPooling
from st_plugins.modules.whitening import Whitening

__all__ = ["NormalizingFlow", "SpanPooling", "Whitening"]
