"""The RE2 network in onnxruntime: the ONNX file that `RE2Matcher.predict` computes with."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from st_plugins.core.loading.files import is_there
from st_plugins.methods.re2.export import export_onnx
from st_plugins.methods.re2.network import RE2

logger = logging.getLogger(__name__)

BACKENDS = ("torch", "onnx")
ONNX_FILE = "onnx/model.onnx"  # where the host keeps its own
# Tokens that a thread computes at once: more would not fit its cache.
_ROWS = 640


class OnnxNetwork:
    """A network's ONNX file, opened: lists of token vectors in, logits out, on the CPU in float32."""

    def __init__(self, content: bytes, said: str) -> None:
        self.content, self.said = content, said
        self._session = _session(content, said)
        self._width = self._session.get_inputs()[0].shape[2]

    @classmethod
    def exported(cls, network: RE2) -> Self:
        """Export a network, with the weights that it has now."""
        with tempfile.TemporaryDirectory() as folder:
            return cls(export_onnx(network, Path(folder, "model.onnx")).read_bytes(), "the exported network")

    @classmethod
    def of(cls, folder: Path, digest: object, network: RE2) -> Self:
        """Open the file in a matcher's folder, whose record gives its digest; without both, export the network."""
        file = folder / ONNX_FILE
        there = is_there(file)
        if digest is None and not there:
            logger.warning(
                "%s has no %s: the network is exported now. Save the matcher to keep the file.", folder, ONNX_FILE
            )
            return cls.exported(network)
        if not there:
            raise FileNotFoundError(
                f"{folder} has no {ONNX_FILE}, but its record does; copy the folder again, or use backend='torch'"
            )
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(
                f"{file} is not what was saved with the matcher, or is damaged; copy the folder again, or use "
                "backend='torch'"
            )
        return cls(content, str(file))

    def write(self, folder: Path) -> None:
        """Write the file into a matcher's folder."""
        file = folder / ONNX_FILE
        file.parent.mkdir()
        file.write_bytes(self.content)

    @property
    def digest(self) -> str:
        """What tells the file from others."""
        return hashlib.sha256(self.content).hexdigest()

    def __call__(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """Compute the logits of pairs; one first text may go with all second ones."""
        texts = [*([first[0]] * len(second) if len(first) == 1 else first)], list(second)
        rows = len(second) * sum(max(1, *map(len, side)) if side else 1 for side in texts)
        # A thread for each part of the batch, where onnxruntime's own would divide every matrix product among them:
        # nobody waits for the other, and each part fits its core's cache.
        threads = min(torch.get_num_threads(), len(second))
        parts = threads * math.ceil(rows / (threads * _ROWS))
        size = math.ceil(len(second) / parts)
        starts = range(0, len(second), size)
        given = [[side[start : start + size] for side in texts] for start in starts]
        if threads == 1 or len(given) == 1:
            found = [self._part(*part) for part in given]
        else:
            with ThreadPoolExecutor(threads) as pool:
                found = list(pool.map(lambda part: self._part(*part), given))
        return torch.from_numpy(np.concatenate(found))

    def _part(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> NDArray[np.float32]:
        feeds: dict[str, Any] = {}
        for name, texts in (("first", first), ("second", second)):
            for vectors in texts:
                if vectors.shape[1] != self._width:
                    raise ValueError(
                        f"{name} must be token vectors of width {self._width}, got {vectors.shape[1]}; encode texts "
                        "with the same matcher"
                    )
            feeds[name], feeds[f"{name}_mask"] = _padded(texts)
        logits: NDArray[np.float32] = self._session.run(None, feeds)[0]
        return logits

    def __reduce__(self) -> tuple[Any, ...]:
        """Give copies and other processes the file: a session of onnxruntime cannot be copied."""
        return type(self), (self.content, self.said)


def check_backend(backend: str) -> None:
    """Raise an error if there is no such backend, or not here."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be {' or '.join(map(repr, BACKENDS))}, got {backend!r}")
    if backend == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        raise ImportError("backend='onnx' needs onnxruntime: pip install 'st-plugins[onnx]', or use backend='torch'")


def _session(content: bytes, said: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no common base but this
        raise ValueError(f"{said} cannot be read as an ONNX model: {error}") from error


def _padded(texts: Sequence[Tensor]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Put token vectors into one array of at least one column; with it goes where they are."""
    lengths = np.array([len(vectors) for vectors in texts])
    columns = max(1, int(lengths.max()))
    batch = np.zeros((len(texts), columns, texts[0].shape[1]), dtype=np.float32)
    for row, vectors in zip(batch, texts, strict=True):
        row[: len(vectors)] = vectors.detach().float().cpu().numpy()
    return batch, np.arange(columns) < lengths[:, None]
