"""RE2: a network that matches two texts by aligning their tokens (Yang et al., arXiv 1908.00300)."""

from __future__ import annotations
