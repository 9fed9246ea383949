"""VIRT: a bi-encoder learns the interaction of a cross-encoder from its attention (Li et al., arXiv 2112.04195)."""

from __future__ import annotations
