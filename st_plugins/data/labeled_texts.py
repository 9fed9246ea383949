"""Single texts with the class of each, for classification and clustering."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from st_plugins.core.reading.labels import class_labels
from st_plugins.core.reading.tables import read_table
from st_plugins.core.texts import check_texts


@dataclass(frozen=True, eq=False)
class LabeledTexts:
    """Texts and the class of each.

    Args:
        name: Short name, used in metric keys and files.
        texts: The texts, N of them.
        labels: Name of the class of each, N of them, of at least two classes.
        source: Where the texts came from: a file, or ``"own texts"``.
        warnings: Sentences for the report.

    Raises:
        ValueError: The columns differ in length, all texts have one class, or a text holds half a character (a lone
            surrogate).

    Example:
        >>> data = LabeledTexts("pets", ["a dog barks", "a cat purrs"], ["dog", "cat"])
        >>> len(data), data.labels
        (2, ['dog', 'cat'])
    """

    name: str
    texts: list[str]
    labels: list[str]
    source: str = "own texts"
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for column in ("texts", "labels"):
            object.__setattr__(self, column, check_texts(getattr(self, column), f"{column} of {self.name!r}"))
        if len(self.texts) != len(self.labels):
            raise ValueError(
                f"labeled texts {self.name!r}: {len(self.texts):,} texts and {len(self.labels):,} labels; give each "
                "text one"
            )
        if len(set(self.labels)) < 2:
            said = f"all texts are of the class {self.labels[0]!r}" if self.labels else "there is no text"
            raise ValueError(f"labeled texts {self.name!r}: {said}; give texts of at least two classes")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def checksum(self) -> str:
        """SHA-256 over texts and labels, so that two results can prove they saw the same texts."""
        rows = zip(self.texts, self.labels, strict=True)
        return hashlib.sha256(b"".join(json.dumps(row).encode() + b"\n" for row in rows)).hexdigest()


def read_labeled_texts(
    path: str | Path, text: str = "text", label: str = "label", name: str | None = None
) -> LabeledTexts:
    r"""Read texts with their classes from a table with named columns.

    Args:
        path: A table: fields between tabs, commas or semicolons, or JSON (an array of objects, or one a line); packed
            with gzip or not.
        text: Column of the texts.
        label: Column of the classes: names, or whole numbers.
        name: Short name of the set; the file's name by default.

    Returns:
        The texts. An empty text is allowed, since it can be encoded, and counted in ``warnings``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is broken, a label is missing or spelled in two ways, or all texts have one class; the
            message names file and line.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "pets.csv")
        ...     _ = path.write_text("text,label\na dog barks,dog\na cat purrs,cat\n")
        ...     data = read_labeled_texts(path)
        >>> data.name, data.texts, data.labels
        ('pets', ['a dog barks', 'a cat purrs'], ['dog', 'cat'])
    """
    path = Path(path).expanduser()
    table = read_table(path)
    texts, labels = table.texts(text, "text"), class_labels(table, label, "label")
    name = name or path.name.split(".")[0]
    empty = sum(not one.strip() for one in texts)
    warnings = (f"{name}: {empty:,} of the {len(texts):,} texts are empty",) if empty else ()
    if len(set(labels)) < 2:
        raise ValueError(f"{path}: {label} is {labels[0]!r} on every line; at least two classes are needed")
    return LabeledTexts(name, texts, labels, source=str(path), warnings=warnings)
