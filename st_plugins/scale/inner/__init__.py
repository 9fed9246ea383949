"""What the parts of this folder are made of."""

from __future__ import annotations
