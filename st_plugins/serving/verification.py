"""Whether every runtime gives the same vectors of a model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import table as rich_table
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize

from st_plugins.core.host import rebuild
from st_plugins.core.serving import served_otherwise
from st_plugins.core.texts import check_texts
from st_plugins.io import load_sentence_transformer
from st_plugins.report.table import Table, number
from st_plugins.serving.encoder import OnnxEncoder

TOLERANCE = 1e-5
# Bytes for weights move a vector visibly and a ranking hardly; a broken file is far below.
COSINE_OF_INT8 = 0.9
# What goes wrong in one runtime only: no token but the special ones, other alphabets, marks that some normalizers
# compose, white space, words of one piece and of many, more tokens than any model takes.
TEXTS = (
    "",
    " ",
    "A",
    "A man is playing a guitar.",
    "A man is playing a guitar",
    "  Two  dogs\trun\nthrough the OLD park.  ",
    "Why does the e\u0301clair cost 3,50 € — isn't it \u201ctoo much\u201d?",
    "Der Zug nach München fährt um 7:45 Uhr ab.",
    "今天天气很好,我们去公园吧。",
    "Привет, мир! שלום עולם مرحبا بالعالم",
    "👩‍🔬 🏳️‍🌈 ½ ﬁne",
    "x = {'key': [1.0e-3, None]}  # https://example.org/?q=a&b=c",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "The committee met again on Tuesday to discuss the budget for the coming year. " * 3,
    "word " * 700,
)


@dataclass(frozen=True)
class Agreement:
    """How far the vectors of two runtimes lie apart.

    Args:
        first: The one runtime.
        second: The other one.
        largest_difference: Of two numbers of the same text, over the largest number there is if that is above 1.
        smallest_cosine: Between the two vectors of a text.
        mean_cosine: The same, on average.
        exact: Whether both compute in floating point; else one has weights of eight bits.
        tolerance: Of ``largest_difference``, or for weights of eight bits the least ``smallest_cosine``.

    Example:
        >>> Agreement("torch", "model.onnx", 2e-7, 1.0, 1.0, exact=True, tolerance=1e-5).agrees
        True
    """

    first: str
    second: str
    largest_difference: float
    smallest_cosine: float
    mean_cosine: float
    exact: bool
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether they are the same within the tolerance; NaN never is."""
        if self.exact:
            return self.largest_difference <= self.tolerance
        return self.smallest_cosine >= self.tolerance


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Args:
        texts: How many texts were encoded.
        agreements: Every two runtimes.
        missing: Runtimes that could not be asked, and why.

    Example:
        >>> found = Verification(15, [Agreement("torch", "server", 0.31, 0.96, 0.97, exact=True, tolerance=1e-5)], {})
        >>> found.agrees, found.to_terminal().row_count
        (False, 1)
    """

    texts: int
    agreements: list[Agreement]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        """Whether all agree, and there was something to compare."""
        return bool(self.agreements) and all(one.agrees for one in self.agreements)

    def to_terminal(self) -> rich_table.Table:
        """Return a table for ``rich.console.Console().print``: one row for every two runtimes."""
        columns = ("runtimes", "largest difference", "smallest cosine", "tolerance", "same")
        rows = [
            (
                f"{one.first} and {one.second}",
                number(one.largest_difference),
                f"{one.smallest_cosine:.6f}",
                number(one.tolerance) if one.exact else f"cosine {number(one.tolerance)}",
                "yes" if one.agrees else "NO",
            )
            for one in self.agreements
        ]
        return Table(f"Vectors of {self.texts} texts", columns, rows).to_terminal()


def verify(
    model: str | Path,
    runtimes: Sequence[str | Path] = ("onnx", "server"),
    texts: Iterable[str] | None = None,
    *,
    tolerance: float = TOLERANCE,
    batch_size: int = 8,
) -> Verification:
    """Encode texts by every runtime and compare the vectors, each two runtimes with each other.

    The first runtime is always PyTorch through sentence-transformers, with the model as `st_plugins.load` loads it.

    Args:
        model: Model folder or hub id.
        runtimes: ``"onnx"``, the host's own ``SentenceTransformer(model, backend="onnx")``, where its package is
            installed and works; ``"server"``, what embedding servers make of the folder: linear layers right after
            the pooling, and then unit length (compared with vectors of unit length); files that `export_onnx` wrote.
        texts: The texts; None for a list of odd ones.
        tolerance: The largest difference of two numbers that is no difference, relative to the largest number if
            that is above 1. Files with weights of eight bits (int8) must reach a cosine of 0.9 instead.
        batch_size: Texts in a batch.

    Returns:
        The `Verification`. Runtimes that could not be asked are listed with the reason and count neither way.

    Raises:
        FileNotFoundError: The model or a file is not there.
        ValueError: A runtime is unknown, or a text cannot be encoded.

    Example:
        >>> import tempfile
        >>> from st_plugins.miniature import untrained_encoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     untrained_encoder(32).save(folder, create_model_card=False)
        ...     found = verify(folder, ["server"])
        >>> [(one.first, one.second) for one in found.agreements], found.agrees
        ([('torch', 'server')], True)
    """
    named = [str(runtime) for runtime in runtimes if runtime != "torch"]
    unknown = [name for name in named if name not in ("onnx", "server") and not name.endswith(".onnx")]
    if unknown:
        raise ValueError(f"runtimes: {unknown[0]!r} is none of torch, onnx, server, or a file that ends in .onnx")
    if not named:
        raise ValueError(
            "runtimes names nothing to compare torch with; give onnx, server or a file that ends in .onnx"
        )
    given = list(TEXTS) if texts is None else check_texts(texts, "texts")
    if not given:
        raise ValueError("texts is empty; give at least one text to encode")
    # Opened before the model is loaded, so that a wrong name is known at once.
    files = {name: OnnxEncoder(name) for name in dict.fromkeys(named) if name not in ("onnx", "server")}
    encoder = load_sentence_transformer(model, "cpu").float()
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False}
    vectors = {"torch": encoder.encode(given, **options)}
    missing = {}
    if "onnx" in named:
        absent = _onnx_backend_fault()
        if absent:
            missing["onnx"] = absent
        else:
            host = SentenceTransformer(str(model), backend="onnx", device="cpu", local_files_only=True)
            vectors["onnx"] = host.encode(given, **options)
    vectors |= {name: file.encode(given, batch_size=batch_size) for name, file in files.items()}
    coarse = {name for name, file in files.items() if file.settings["int8"]}
    found = [
        agreement(
            first, vectors[first], second, vectors[second], exact=not {first, second} & coarse, tolerance=tolerance
        )
        for first, second in itertools.combinations(vectors, 2)
    ]
    if "server" in named:
        served = _served(encoder)
        if isinstance(served, str):
            missing["server"] = served
        else:
            mine, theirs = (one.encode(given, normalize_embeddings=True, **options) for one in (encoder, served))
            found.append(agreement("torch", mine, "server", theirs, tolerance=tolerance))
    return Verification(len(given), found, missing)


def agreement(
    first: str,
    a: NDArray[np.float32],
    second: str,
    b: NDArray[np.float32],
    *,
    exact: bool = True,
    tolerance: float = TOLERANCE,
) -> Agreement:
    """Compare the vectors that two runtimes gave of the same texts."""
    if a.shape != b.shape:
        raise ValueError(f"{first} gives {a.shape[1]} dimensions and {second} {b.shape[1]}: they are two models")
    one, other = a.astype(np.float64), b.astype(np.float64)
    # Numbers of raw encoders go to 10 and more, and the rounding of float32 with them.
    difference = np.abs(one - other).max() / max(1.0, np.abs(one).max())
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = np.where((one == other).all(axis=1), 1.0, (one * other).sum(axis=1) / lengths)
    return Agreement(
        first,
        second,
        float(difference),
        float(cosines.min()),
        float(cosines.mean()),
        exact,
        tolerance if exact else COSINE_OF_INT8,
    )


def _onnx_backend_fault() -> str | None:
    """Return why the host's ONNX backend does not work here, or None."""
    try:
        # As the host imports it; versions that do not fit each other fail here, too.
        from optimum.onnxruntime import ORTModelForFeatureExtraction  # noqa: F401
    except (ImportError, RuntimeError) as error:
        what = "not installed" if isinstance(error, ModuleNotFoundError) else "does not work with what is installed"
        return (
            f"{what} ({str(error).partition(' (')[0]}): pip install 'sentence-transformers[onnx]', once optimum-onnx "
            "takes the transformers that sentence-transformers needs"
        )
    return None


def _served(model: SentenceTransformer) -> SentenceTransformer | str:
    """Return what servers make of the model, or why they make nothing of it."""
    dense = [module for module in model if type(module) is Dense]
    others = [module for module in model if type(module) not in (Dense, Normalize)]
    made = rebuild(model, [*others, *dense, Normalize()])
    return served_otherwise(made) or made
