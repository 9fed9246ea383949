"""R-Drop: two dropout masks must agree (Liang et al., arXiv 2106.14448)."""

from __future__ import annotations
