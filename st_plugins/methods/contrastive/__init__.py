"""ConSERT (Yan et al., arXiv 2105.11741) and SimCSE (Gao et al., arXiv 2104.08821): views of the same sentence."""

from __future__ import annotations
