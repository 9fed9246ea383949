"""One room for each published method. A method imports core, and never another method."""

from __future__ import annotations
