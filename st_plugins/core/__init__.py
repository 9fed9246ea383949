"""What the methods share; for nobody's direct use."""

from __future__ import annotations
