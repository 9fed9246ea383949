"""layer_mix."""

from __future__ import annotations
