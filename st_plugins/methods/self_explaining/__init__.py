"""Self-Explaining: a text is a weighted sum of its spans (Sun et al., arXiv 2012.01786)."""

from __future__ import annotations
