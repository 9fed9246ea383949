"""Embeddings of texts that are too many for memory, as Parquet files: written block by block, and read so."""

from __future__ import annotations

import itertools
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from st_plugins.core.host import check_encoder, check_prompt
from st_plugins.core.identity import fingerprint, plain
from st_plugins.core.loading.files import read_object
from st_plugins.core.quantization import Quantization, bytes_of, check_precision
from st_plugins.core.writing import marks
from st_plugins.core.writing.atomic import folder_target
from st_plugins.scale.encode_batches import Encode
from st_plugins.scale.engines import Engine, engine_of
from st_plugins.scale.inner.parts import MANIFEST, Unfinished, WriteParts, check_room, read_part
from st_plugins.scale.inner.reading import parquet_library
from st_plugins.scale.inner.work import Worker, items_of
from st_plugins.scale.texts import Texts, is_dataset, source

logger = logging.getLogger(__name__)

_PACKAGES = ("st-plugins", "sentence-transformers", "transformers", "tokenizers", "torch", "pyarrow")
_FITTED = 16_384  # texts that ranges are fitted on
_ROW = 16  # bytes of a text's row besides its vector: the id


class Embeddings:
    """A folder of embeddings that `encode` has written, read part by part.

    Args:
        folder: The folder: Parquet files with the columns ``id``, ``vector`` and ``precision``, and ``manifest.json``,
            which names the model, the settings, all files with their checksums, and what could not be read.

    Raises:
        FileNotFoundError: The folder or its manifest is missing.
        ValueError: The manifest is damaged.

    Example:
        >>> import tempfile
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "corpus.txt").write_text(chr(10).join(corpus(100)))
        ...     _ = encode(untrained_encoder(16), Path(folder, "corpus.txt"), Path(folder, "out"))
        ...     embeddings = Embeddings(Path(folder, "out"))
        ...     ids, vectors = next(iter(embeddings))
        >>> len(embeddings), embeddings.dimension, ids[:3].tolist(), vectors.shape
        (100, 16, [0, 1, 2], (100, 16))
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not (self.folder / MANIFEST).is_file():
            begun = self.folder.with_name(f"{self.folder.name}.unfinished")
            what = f"; {str(begun)!r} is a run that has not ended, run it again" if begun.is_dir() else ""
            raise FileNotFoundError(f"{str(folder)!r} has no {MANIFEST}, as st-plugins encode writes one{what}")
        self.manifest = read_object(self.folder / MANIFEST)
        try:
            self.dimension, self.precision = int(self.manifest["dimension"]), str(self.manifest["precision"])
            self.count = int(self.manifest["texts"])
            self.files = [self.folder / part["file"] for part in self.manifest["parts"]]
            self.missing = dict(self.manifest["missing"])
            self.quantization = Quantization.load(self.folder)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.folder / MANIFEST} is damaged: {error!r}") from None

    def __len__(self) -> int:
        """Return the number of texts."""
        return self.count

    def __iter__(self) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
        """Yield ids and vectors of each part, the latter in float32, read back from what is stored."""
        for file in self.files:
            yield self.read(file)

    def read(self, file: Path) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Return ids, ``(N,)``, and vectors, ``(N, dimension)`` in float32, of one of ``files``.

        Args:
            file: The file.

        Returns:
            Ids and vectors.

        Raises:
            ValueError: The file is damaged.
        """
        ids, stored = read_part(file)
        return ids, self.quantization.vectors(stored)

    def verify(self) -> None:
        """Read all files and compare their checksums.

        Raises:
            ValueError: A file is missing, or is another one than was written.
        """
        for part in self.manifest["parts"]:
            file = self.folder / part["file"]
            if not file.is_file() or marks.checksum(file) != part["sha256"]:
                raise ValueError(f"{file} is {'damaged' if file.is_file() else 'missing'}; encode the texts again")


def encode(
    model: SentenceTransformer,
    texts: Any,
    output: str | Path,
    *,
    engine: str | Engine = "local",
    precision: str | Quantization = "float32",
    prompt: str | None = None,
    route: str | None = None,
    batch_size: int = 32,
    overwrite: bool = False,
    show_progress_bar: bool | None = None,
) -> Embeddings:
    """Write the embeddings of texts that need not fit into memory as Parquet files, ready for an index.

    A block of texts becomes a file with the columns ``id``, ``vector`` and ``precision``. Until all are there they
    stand in ``OUTPUT.unfinished``; then the folder gets its name, in one step. Run again after it was killed, with the
    same model, texts and settings, it goes on behind the blocks that are finished; the result has the same bytes, if
    it ran on the same kind of processor and with as many threads.

    Args:
        model: The model.
        texts: `Texts`, a path or paths. (Of a Ray Dataset, map `Encode` over it, and write what you get.)
        output: The folder to write.
        engine: ``"local"``, ``"ray"``, or a `Local` or `Ray`.
        precision: ``"float32"``, ``"float16"``, ``"int8"``, ``"int4"``, ``"int2"`` or ``"binary"``; ranges are fitted
            on the first 16,384 texts. Or a `Quantization`, such as that of a compressed model.
        prompt: What goes before the texts; None is the model's default prompt, if it has one.
        route: Whose texts these are in a model with routes, "query" or "document" for example.
        batch_size: Texts that the model encodes at a time.
        overwrite: Whether to replace what an earlier run has written, and to drop an unfinished one that differs.
        show_progress_bar: Whether to show a progress bar; None shows one on a terminal.

    Returns:
        The embeddings, to be read part by part.

    Raises:
        FileExistsError: The output is there already, another run is writing it, or an unfinished one differs.
        OSError: There is too little room on the disk.
        ValueError: A file cannot be read, an id occurs twice, or an embedding is NaN or infinite.

    Example:
        >>> import tempfile
        >>> from st_plugins.miniature import corpus, untrained_encoder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "corpus.txt")
        ...     _ = path.write_text(chr(10).join(corpus(100)))
        ...     found = encode(untrained_encoder(16), path, Path(folder, "out"), precision="int8")
        ...     found.verify()
        >>> len(found), found.precision, found.quantization.bytes_per_text
        (100, 'int8', 16)
    """
    check_encoder(model)
    check_prompt(prompt)
    if is_dataset(texts):
        raise TypeError("texts is a Ray Dataset; map Encode over it and write what you get: .write_parquet(...)")
    given: Texts = source(texts)
    parquet_library()
    runner = engine_of(engine)
    target = folder_target(output, name="output", overwrite=overwrite, inputs=given.files)
    with runner.session():
        scan = given.scan()
        options: dict[str, Any] = {"prompt": prompt, "route": route, "batch_size": batch_size}
        embed, unfinished = Encode(model, **options), Unfinished(target.path)
        settings = {
            "model": fingerprint(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": runner.device(model),
            "truncate_dim": model.truncate_dim,
            **options,
            "texts": scan.checksum,
            "missing": sorted(scan.missing),
            "block_size": given.block_size,
            "precision": precision.precision if isinstance(precision, Quantization) else precision,
            "versions": {name: metadata.version(name) for name in _PACKAGES},
        }
        # An unfinished run's own ranges: fitted anew by another machine, they might differ in the last bit.
        begun = unfinished.same(settings) if isinstance(precision, str) else None
        quantization = _quantization(precision, embed, given, begun)
        ranges = None if quantization.ranges is None else quantization.ranges.tolist()
        with unfinished.opened({**settings, "ranges": ranges}, overwrite=overwrite) as records:
            if not overwrite:  # another run may have ended while this one read
                target = folder_target(output, name="output", inputs=given.files)
            sizes = {number: size for segment in scan.segments for number, size in segment.numbered()}
            todo = sum(size for number, size in sizes.items() if number not in records)
            check_room(unfinished.path, todo * (quantization.bytes_per_text + _ROW))
            if records:
                logger.warning("Going on: %d of %d blocks are finished.", len(records), scan.blocks)
            hidden = not sys.stderr.isatty() if show_progress_bar is None else not show_progress_bar
            worker = Worker(embed, given, WriteParts(unfinished.path, unfinished.run, quantization))
            done = scan.texts - todo
            with tqdm(total=scan.texts, initial=done, desc="Encoding", unit="texts", disable=hidden) as bar:
                for row in runner.run(worker, items_of(scan, records)):
                    record = records[row["number"]] = json.loads(row["found"])
                    if not (unfinished.path / record["file"]).is_file():
                        raise FileNotFoundError(
                            f"output {str(unfinished.path)!r} has no {record['file']}, which a worker wrote on its "
                            "own disk; choose an output that all machines see under this path"
                        )
                    bar.update(row["texts"])
            parts = [records[number] for number in range(scan.blocks)]
            if sum(part["rows"] for part in parts) != scan.texts:
                raise RuntimeError(f"{sum(part['rows'] for part in parts)} of {scan.texts} texts were written")
            quantization.save(unfinished.path)
            unfinished.finish(
                {
                    "model": {
                        "name": str(model.model_card_data.model_name or model.model_card_data.base_model or ""),
                        "fingerprint": settings["model"],
                        "max_seq_length": plain(model.max_seq_length),
                    },
                    "settings": {name: settings[name] for name in settings if name not in ("model", "missing")},
                    "dimension": quantization.dimension,
                    "precision": quantization.precision,
                    "texts": scan.texts,
                    "files": [str(file) for file in given.files],
                    "missing": scan.missing,
                    "parts": parts,
                }
            )
            target.take(unfinished.path, {part["file"]: part["sha256"] for part in parts})
    return Embeddings(target.path)


def _quantization(
    precision: str | Quantization, embed: Encode, texts: Texts, begun: Mapping[str, Any] | None
) -> Quantization:
    """Return how the vectors are stored; ranges are fitted on the first texts, or are those of the run so far."""
    dimension = embed.precision.dimension
    if isinstance(precision, Quantization):
        if precision.dimension != dimension:
            raise ValueError(
                f"precision is for {precision.dimension} dimensions, but the model's vectors have {dimension}; fit it "
                "on vectors of this model"
            )
        return precision
    check_precision(precision)
    if precision in ("float32", "float16", "binary"):
        return Quantization(precision, dimension)
    if begun is not None:
        return Quantization(precision, dimension, np.asarray(begun["ranges"], np.float32))
    # Of as many files as it takes: the first may have one text only.
    return Quantization.fit(precision, embed.embed(list(itertools.islice(texts, _FITTED))))


def size_of(texts: int, dimension: int, precision: str) -> int:
    """Return the bytes of embeddings on disk."""
    return texts * (bytes_of(precision, dimension) + _ROW)
