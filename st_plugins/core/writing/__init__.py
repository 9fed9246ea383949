"""writing."""

from __future__ import annotations
