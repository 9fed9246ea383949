"""PyTorch's exporter to ONNX: which operators it writes, and what it says by itself."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

OPSET = 20


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep back the exporter's remarks on its own internals; errors are raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
