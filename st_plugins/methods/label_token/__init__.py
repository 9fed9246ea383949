"""label_token."""

from __future__ import annotations
