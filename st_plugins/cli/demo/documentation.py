"""Real texts that every machine has: the docstrings of Python's standard library, read without importing anything.

A docstring begins with a line that sums up what follows, so that a search can be made of it whose truth is known: the
first line is the query, and the rest of the same docstring the document that it should find.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from st_plugins.data.retrieval import RetrievalData

DOCUMENTS, QUERIES, SENTENCES = 600, 300, 1000
_LEAST_WORDS = 4  # of a query, and of a sentence
_MOST_WORDS = 30  # of a sentence: what is longer is a list or a table
_LEAST_BODY = 15  # words of a document
_MOST_CHARACTERS = 400  # of a document: longer ones only take longer
# Not for readers, or written by others.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip", "__pycache__"}


@dataclass(frozen=True)
class Documentation:
    """A search in docstrings, and sentences of other ones."""

    search: RetrievalData
    sentences: list[str]  # none of which is a query or part of a document

    @property
    def name(self) -> str:
        """What the texts are, in words."""
        return f"the docstrings of Python {platform.python_version()}"

    def write(self, folder: Path) -> None:
        """Write ``texts.txt`` and the folder ``search``, as the commands read them."""
        (folder / "texts.txt").write_text("".join(f"{text}\n" for text in self.sentences), encoding="utf-8")
        search = folder / "search"
        (search / "qrels").mkdir(parents=True)
        for name, texts in (("corpus", self.search.corpus), ("queries", self.search.queries)):
            lines = (json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items())
            (search / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        rows = (
            f"{query}\t{document}\t{score}\n"
            for query, scores in self.search.qrels.items()
            for document, score in scores.items()
        )
        (search / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows), encoding="utf-8")


def read_documentation(
    documents: int = DOCUMENTS, queries: int = QUERIES, sentences: int = SENTENCES, source: Path | None = None
) -> Documentation:
    """Read the standard library's docstrings; the same Python gives the same texts in the same order."""
    source = source or Path(sysconfig.get_paths()["stdlib"])
    found = list(dict.fromkeys(_docstrings(source)))
    # A line that begins several docstrings, or a body that several share, has no one answer.
    lines, bodies = (Counter(column) for column in zip(*found, strict=True)) if found else (Counter(), Counter())
    usable = [
        (line, body)
        for line, body in found
        if lines[line] == bodies[body] == 1 and len(line.split()) >= _LEAST_WORDS and len(body.split()) >= _LEAST_BODY
    ]
    # By a checksum: of the whole library, not of the modules that come first.
    usable.sort(key=lambda one: hashlib.sha256(one[0].encode()).digest())
    searched = usable[:documents]
    if len(searched) < documents:
        raise FileNotFoundError(
            f"{str(source)!r} has {len(searched):,} docstrings that the demo can use, not {documents:,}: the source "
            "files of Python's standard library are missing or packed; run the demo with a Python that has them"
        )
    corpus = {f"d{number}": body for number, (_, body) in enumerate(searched)}
    asked = {f"q{number}": line for number, (line, _) in enumerate(searched[:queries])}
    qrels = {f"q{number}": {f"d{number}": 1} for number in range(len(asked))}
    taken = {text for pair in searched for text in pair}
    others = [text for line, body in found if line not in taken for text in (line, *_sentences(body))]
    others = [
        text
        for text in dict.fromkeys(others)
        if _LEAST_WORDS <= len(text.split()) <= _MOST_WORDS and text not in taken
    ]
    others.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
    return Documentation(
        RetrievalData("python", corpus, asked, qrels, source="docstrings of Python's standard library"),
        others[:sentences],
    )


def _docstrings(source: Path) -> Iterator[tuple[str, str]]:
    """Give the first line and the rest of each docstring of public modules, classes and functions."""
    for path in _modules(source):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # escapes in others' strings
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):  # unreadable, or a template
            continue
        yield from _of_node(tree)


def _modules(source: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(source):
        # In place: what is left out is not entered, and site-packages may be large.
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT and not name.startswith("_"))
        for name in sorted(files):
            if name.endswith(".py") and (name == "__init__.py" or not name.startswith("_")):
                yield Path(root, name)


def _of_node(node: ast.AST) -> Iterator[tuple[str, str]]:
    for child in (node, *ast.iter_child_nodes(node)):
        if not isinstance(child, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if child is not node:
            if not child.name.startswith("_"):  # type: ignore[union-attr]
                yield from _of_node(child)
            continue
        line, _, body = (ast.get_docstring(child) or "").partition("\n\n")
        if line:
            yield _one_line(line), _one_line(body)[:_MOST_CHARACTERS]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?:])\s+(?=[A-Z])", text)
