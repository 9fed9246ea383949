"""Writing: to a temporary neighbor, only over what is ours, and resumed only where it is provably the same run."""

from __future__ import annotations
