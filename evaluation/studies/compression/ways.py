"""How else vectors are made smaller: what users do today, fitted on the same texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers.util import quantize_embeddings
from sklearn.decomposition import PCA

from st_plugins.compression.choice.sample import Map, applied
from st_plugins.core.quantization import BITS, Quantization
from st_plugins.modules import Whitening

Array = NDArray[Any]
Way = Callable[[Array], Array]
"""From embeddings to the vectors that what is stored of them stands for."""

METHODS = ("raw", "truncation", "PCA", "whitening", "OPQ", "ours")
_ROUNDS = 5  # of OPQ's rotation and codes in turn; more changed little


def fit(method: str, precision: str, vectors: Array, size: int) -> tuple[str, Way | None]:
    """Fit a way to store vectors in so many bytes, and say what it keeps; None where it has no meaning."""
    if method == "OPQ":
        return _opq(vectors, size)
    kept = min(vectors.shape[1], size * 8 // BITS[precision])
    mapped = _map(method, vectors, kept)
    mapped = mapped[0].astype(np.float32), mapped[1].astype(np.float32)
    kept = len(mapped[1])
    seen = applied(vectors, mapped)
    ranges = np.stack([seen.min(axis=0), seen.max(axis=0)])

    def way(rows: Array) -> Array:
        found = applied(rows, mapped)
        if precision == "float32":
            return found
        host: Any = quantize_embeddings
        codes = host(found, precision=precision, ranges=ranges)
        # A user compares the host's int8 codes as they are, and its bits by Hamming distance, in the order of cosines.
        return Quantization("binary", kept).vectors(codes) if precision == "binary" else codes.astype(np.float32)

    return f"{kept} x {precision}", way


def _map(method: str, vectors: Array, kept: int) -> Map:
    width = vectors.shape[1]
    if method == "PCA":
        pca = PCA(min(kept, len(vectors)), svd_solver="covariance_eigh").fit(vectors.astype(np.float64))
        return pca.mean_, pca.components_
    if method == "whitening":
        mean, weight = Whitening(width).fit(vectors).affine()
        return mean.double().numpy(), weight.double().numpy()[:kept]
    return np.zeros(width), np.eye(kept, width)


def _opq(vectors: Array, size: int) -> tuple[str, Way | None]:
    import faiss  # a peer of this study alone

    width = vectors.shape[1]
    # Of a single number a byte is int8 again, which has its own row.
    if 2 * size > width:
        return "", None
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    rotation: Any = faiss.OPQMatrix(width, size, width - width % size)
    while_turning: Any = faiss.ProductQuantizer(width - width % size, size, 8)
    codes: Any = faiss.ProductQuantizer(width - width % size, size, 8)
    # All fit on as many texts as there are; faiss would ask for more.
    codes.cp.min_points_per_centroid = while_turning.cp.min_points_per_centroid = 1
    rotation.niter, rotation.pq = _ROUNDS, while_turning
    rotation.train(rows)
    codes.train(rotation.apply(rows))

    def way(found: Array) -> Array:
        given = np.ascontiguousarray(found, dtype=np.float32)
        return np.asarray(codes.decode(codes.compute_codes(rotation.apply(given))))

    return f"{size} x 8 bits", way
