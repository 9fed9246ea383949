"""Files of embeddings, one a block, in a folder that is not finished until all are there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from st_plugins.core.files import LIBRARY
from st_plugins.core.quantization import Quantization
from st_plugins.core.writing import marks
from st_plugins.core.writing.atomic import write_text
from st_plugins.core.writing.neighbors import lock
from st_plugins.scale.inner.finding import MANIFEST as MANIFEST
from st_plugins.scale.inner.finding import SETTINGS, UNFINISHED
from st_plugins.scale.inner.reading import is_id, opened_parquet, parquet_library
from st_plugins.scale.texts import Block

_STORED = ("halffloat", "float", "int8", "uint8")
_METADATA = b"st_plugins"


class WriteParts:
    """Write the embeddings of a block into a file of its own, whole or not at all."""

    def __init__(self, folder: Path, run: str, quantization: Quantization) -> None:
        self.folder, self.run, self.quantization = folder, run, quantization

    def __call__(self, block: Block, vectors: NDArray[np.float32]) -> bytes:
        """Write the file, and return its record as JSON."""
        import pyarrow as arrow

        parquet = parquet_library()
        stored = np.ascontiguousarray(self.quantization.quantize(vectors))
        ids: Any = range(block.first_row, block.first_row + len(stored)) if block.ids is None else block.ids
        kind = arrow.int64() if not isinstance(ids, list) or isinstance(ids[0], int) else arrow.string()
        flat = arrow.array(stored.reshape(-1))
        words = arrow.DictionaryArray.from_arrays(
            arrow.array(np.zeros(len(stored), np.int8)), [self.quantization.precision]
        )
        table = arrow.table(
            {
                "id": arrow.array(ids, kind),
                "vector": arrow.FixedSizeListArray.from_arrays(flat, stored.shape[1]),
                "precision": words,
            }
        )
        about = {"run": self.run, "number": block.number, "first_row": block.first_row, "rows": len(stored)}
        table = table.replace_schema_metadata({_METADATA: json.dumps(about).encode()})
        # Numbers of embeddings are hardly ever equal: a dictionary or packing of them costs time and saves nothing.
        written = io.BytesIO()
        parquet.write_table(table, written, compression="none", use_dictionary=["precision"], write_statistics=["id"])
        content = written.getbuffer()
        file = self.folder / name_of(block.number)
        unfinished = self.folder / f".{file.name}.{uuid.uuid4().hex}.tmp"
        try:
            unfinished.write_bytes(content)
            unfinished.replace(file)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            lost = error.errno == errno.ENOENT
            remedy = "choose an output that all machines see under this path" if lost else "make room there"
            raise OSError(
                error.errno,
                f"output {str(self.folder)!r}: {file.name} cannot be written ({error.strerror or error}); {remedy}, "
                "and run the same again: finished blocks are kept",
            ) from error
        return json.dumps(_record(file, about, hashlib.sha256(content).hexdigest())).encode()


class Unfinished:
    """``OUTPUT.unfinished``: the files of a run until it has succeeded, used by one run at a time."""

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(output.name + UNFINISHED)
        self.run = ""  # known when it is opened
        self._lock = output.with_name(f".{output.name}.lock")
        self._settings: dict[str, Any] = {}

    def same(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the settings of an unfinished run, if these, which lack some, are among them."""
        try:
            old = dict(json.loads((self.path / SETTINGS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return old if json.loads(json.dumps(settings)).items() <= old.items() else None

    @contextlib.contextmanager
    def opened(self, settings: Mapping[str, Any], *, overwrite: bool) -> Iterator[dict[int, dict[str, Any]]]:
        """Make or find the folder, hold it, and give the records of the files that are finished, by block."""
        self._settings = json.loads(json.dumps(settings))
        self.run = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, which is moved away while it is held.
        with self._lock.open("ab") as held:
            if lock(held) is False or not _is_at(held, self._lock):
                raise FileExistsError(
                    f"output: another run is writing into {str(self.path)!r}; wait for it, or choose another output"
                )
            try:
                self._check()
                yield self._taken_up(overwrite)
            finally:
                self._tidy()
        self._lock.unlink(missing_ok=True)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest."""
        write_text(self.path / MANIFEST, json.dumps({"library": LIBRARY, **manifest}, indent=1) + "\n")

    def _tidy(self) -> None:
        """Leave no folder of a run that has written nothing, and no lock where that can be helped."""
        with contextlib.suppress(OSError):
            if (self.path / SETTINGS).is_file() and not any(self.path.glob("part-*")):
                self._remove_ours()
                self.path.rmdir()
        with contextlib.suppress(OSError):  # Windows keeps what is open
            self._lock.unlink()

    def _check(self) -> None:
        if self.path.exists() and not (self.path / SETTINGS).is_file() and any(self.path.iterdir()):
            raise FileExistsError(
                f"{str(self.path)!r} is in the way, and no run of st-plugins made it; move it away, or choose another "
                "output"
            )

    def _taken_up(self, overwrite: bool) -> dict[int, dict[str, Any]]:
        """Make the folder, or find in it what is finished."""
        self.path.mkdir(exist_ok=True)
        settings = self.path / SETTINGS
        content = json.dumps(self._settings, indent=1, sort_keys=True) + "\n"
        if settings.is_file() and settings.read_text(encoding="utf-8") != content:
            different = self._different(settings)
            if not overwrite:
                raise FileExistsError(
                    f"{str(self.path)!r} holds an unfinished run with other settings: {different}; run it again with "
                    "the same to go on, or overwrite to begin anew"
                )
            self._remove_ours()
        for left in self.path.glob(".part-*.tmp"):  # of a killed run
            left.unlink()
        write_text(settings, content)
        return self._found()

    def _remove_ours(self) -> None:
        for pattern in ("part-*.parquet", ".part-*.tmp", SETTINGS, MANIFEST, "quantization.*"):
            for file in self.path.glob(pattern):
                file.unlink()

    def _different(self, settings: Path) -> str:
        try:
            old = json.loads(settings.read_text(encoding="utf-8"))
        except ValueError:
            return "settings.json is damaged"
        names = [name for name in sorted({*old, *self._settings}) if old.get(name) != self._settings.get(name)]
        return ", ".join(f"{name} was {old.get(name)!r:.60} and is {self._settings.get(name)!r:.60}" for name in names)

    def _found(self) -> dict[int, dict[str, Any]]:
        """Return the records of whole files of this very run."""
        found = {}
        for file in sorted(self.path.glob("part-*.parquet")):
            try:
                about = json.loads((opened_parquet(file).schema_arrow.metadata or {}).get(_METADATA, b"{}"))
            except ValueError:
                about = {}
            if about.get("run") != self.run or file.name != name_of(int(about["number"])):
                file.unlink()
                continue
            found[about["number"]] = _record(file, about, marks.checksum(file))
        return found


def _is_at(held: BinaryIO, path: Path) -> bool:
    """Say whether an open file is still what stands at its path, and was not removed meanwhile."""
    try:
        return os.path.samestat(path.stat(), os.fstat(held.fileno()))
    except OSError:
        return False


def name_of(number: int) -> str:
    """Return the name of the file of a block."""
    return f"part-{number:07d}.parquet"


def read_part(file: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return ids, and what is stored of the embeddings."""
    import pyarrow.compute as compute
    from pyarrow import types

    # Before any value is read: those of an extension type can run code of its own.
    opened = opened_parquet(file)
    kinds = {field.name: field.type for field in opened.schema_arrow}
    for name in ("id", "vector"):
        if name not in kinds:
            raise ValueError(f"{file}: no column {name!r}; there are {', '.join(kinds) or 'none'}")
    if not is_id(kinds["id"]):
        raise ValueError(f"{file}: column 'id' is of type {kinds['id']}; ids are whole numbers or texts")
    kind = kinds["vector"]
    is_list = any(check(kind) for check in (types.is_fixed_size_list, types.is_list, types.is_large_list))
    if not is_list or str(kind.value_type) not in _STORED:
        raise ValueError(f"{file}: column 'vector' is of type {kind}; vectors are lists of {', '.join(_STORED)}")
    table = opened.read(columns=["id", "vector"])
    vectors = table.column("vector").combine_chunks()
    widths = compute.list_value_length(vectors).unique().to_pylist()
    if None in widths or len(widths) > 1:
        raise ValueError(f"{file}: column 'vector' has rows of {widths} numbers; encode the texts again")
    ids = table.column("id").combine_chunks().to_numpy(zero_copy_only=False)
    return ids, vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(table), *widths or (0,))


def check_room(folder: Path, needed: int) -> None:
    """Raise an OSError if a disk has less room than is needed."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"output {os.fspath(folder)!r} needs about {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free; "
            "make room, choose another disk, or a smaller precision",
        )


def _record(file: Path, about: Mapping[str, Any], digest: str) -> dict[str, Any]:
    return {
        "file": file.name,
        "number": about["number"],
        "first_row": about["first_row"],
        "rows": about["rows"],
        "sha256": digest,
    }
