"""text_pooling."""

from __future__ import annotations
