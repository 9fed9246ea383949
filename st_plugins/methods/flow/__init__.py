"""BERT-flow: embeddings made Gaussian by an invertible network (Li et al., arXiv 2011.05864)."""

from __future__ import annotations
