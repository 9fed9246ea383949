"""A weighted mix of all layers of an encoder, and the penalty that keeps its weights apart from noise."""

from __future__ import annotations
