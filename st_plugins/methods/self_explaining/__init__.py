"""self_explaining."""

from __future__ import annotations
