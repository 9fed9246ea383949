"""The unlabelled texts of a recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from st_plugins.data import read_texts


def draw_texts(sources: list[str], data: Path, size: int = 0, seed: int = 0, distinct: bool = True) -> list[str]:
    """Read texts of files or folders below ``data`` (``file.tsv#column``: a column) and draw ``size``, 0 for all."""
    texts: list[str] = []
    for source in sources:
        file, _, column = source.partition("#")
        texts += read_texts(data / file, column or None)
    if distinct:
        texts = list(dict.fromkeys(texts))
    if 0 < size < len(texts):
        drawn = np.random.default_rng(seed).choice(len(texts), size, replace=False)
        texts = [texts[index] for index in np.sort(drawn)]
    return texts
