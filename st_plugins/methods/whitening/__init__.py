"""BERT-whitening: embeddings of mean zero and unit covariance (Su et al., arXiv 2103.15316), and folding them away."""

from __future__ import annotations
