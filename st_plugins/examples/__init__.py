"""Examples, to read and to run: ``python -m st_plugins.examples.04_re2``; ``st-plugins demo`` runs all of them."""

from __future__ import annotations
