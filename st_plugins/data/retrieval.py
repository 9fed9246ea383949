"""Read a retrieval task: a corpus, queries, and judgments of which documents answer which query."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_plugins.core.reading.content import read_lines
from st_plugins.core.reading.tables import Table, read_table
from st_plugins.core.texts import text_fault


@dataclass(frozen=True, eq=False)
class RetrievalData:
    """Documents, queries, and how relevant the judged documents are for each query.

    Queries for which no document is relevant (a score above 0) are left out, since nothing that a model returns for
    them is right, and counted in ``warnings``. Empty documents stay, since an index would hold them, and are counted.

    Args:
        name: Short name, used in metric keys and files.
        corpus: Text of each document by its id.
        queries: Text of each query by its id.
        qrels: Per query id the score of each judged document; 0 and below means not relevant.
        source: Where the texts came from: a folder, or ``"own texts"``.
        warnings: Sentences for the report.
        partial: Whether ``corpus`` has only some of the documents, or none, since the embeddings of all of them are
            elsewhere. Whether all judged documents exist is then known only when these are read.

    Raises:
        ValueError: A judged document or query does not exist, no document is relevant, or a text holds half a
            character (a lone surrogate).

    Example:
        >>> data = RetrievalData("pets", {"d1": "a dog", "d2": "a cat"}, {"q1": "dogs"}, {"q1": {"d1": 1}})
        >>> len(data.corpus), data.queries, data.warnings
        (2, {'q1': 'dogs'}, ())
    """

    name: str
    corpus: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]
    source: str = "own texts"
    warnings: tuple[str, ...] = ()
    partial: bool = False

    def __post_init__(self) -> None:
        place = f"retrieval data {self.name!r}"
        for kind, texts in (("corpus", self.corpus), ("queries", self.queries)):
            for key, text in texts.items():
                if not isinstance(key, str) or not isinstance(text, str):
                    raise TypeError(f"{place}: {kind} has {key!r}: {text!r:.60}; ids and texts must be str")
                if fault := text_fault(text):
                    raise ValueError(f"{place}: the text of {key!r} in {kind} {fault}")
        judged = {document: None for scores in self.qrels.values() for document in scores}
        for kind, found, known in (("queries", self.qrels, self.queries), ("documents", judged, self.corpus)):
            missing = [] if known is self.corpus and self.partial else [key for key in found if key not in known]
            if missing:
                raise ValueError(
                    f"{place}: qrels name {len(missing):,} {kind} that do not exist, the first {missing[0]!r}; add "
                    "them, or take their judgments out"
                )
        relevant = {query for query, scores in self.qrels.items() if any(score > 0 for score in scores.values())}
        if not relevant:
            raise ValueError(f"{place}: no document is relevant for any query; a score above 0 says that one is")
        left_out = len(self.queries) - len(relevant)
        if left_out:
            said = f"{left_out:,} of the {len(self.queries):,} queries have no relevant document and are left out"
            object.__setattr__(self, "warnings", (*self.warnings, f"{self.name}: {said}"))
        if empty := sum(not text.strip() for text in self.corpus.values()):
            said = f"{empty:,} of the {len(self.corpus):,} documents are empty"
            object.__setattr__(self, "warnings", (*self.warnings, f"{self.name}: {said}"))
        # In the order of the queries, as everything else that is kept a query.
        queries = {query: text for query, text in self.queries.items() if query in relevant}
        object.__setattr__(self, "queries", queries)
        object.__setattr__(self, "qrels", {query: dict(self.qrels[query]) for query in queries})
        object.__setattr__(self, "corpus", dict(self.corpus))

    @property
    def checksum(self) -> str:
        """SHA-256 over ids, texts and judgments, so that two results can prove they saw the same task.

        Where ``partial`` is set, the documents that are elsewhere are not part of it.
        """
        digest = hashlib.sha256()
        for part in ({} if self.partial else self.corpus, self.queries, self.qrels):
            for item in part.items():
                digest.update(json.dumps(item, sort_keys=True).encode() + b"\n")
        return digest.hexdigest()


def read_retrieval(folder: str | Path, split: str = "test", *, documents: int | None = None) -> RetrievalData:
    r"""Read a retrieval task in the layout of the BEIR benchmark.

    A document's text is its title, a space, and its text, as the public leaderboard (MTEB) encodes it.

    Args:
        folder: A folder with ``corpus.jsonl`` (``_id``, ``text`` and maybe ``title``), ``queries.jsonl`` (``_id``,
            ``text``) and ``qrels/test.tsv`` (columns ``query-id``, ``corpus-id`` and ``score``); or with the same
            files as ``NAME_corpus.jsonl``, ``NAME_queries.jsonl`` and ``NAME_qrels.tsv``. Each may end in ``.gz``.
        split: Which file in ``qrels``; the layout with names has only one set of judgments.
        documents: Read only so many of the first documents, where the embeddings of all of them are elsewhere; None
            reads all.

    Returns:
        The task. Ids are text: the number 1 and ``"1"`` are one id.

    Raises:
        FileNotFoundError: The folder or one of the files does not exist.
        ValueError: A file is broken, an id occurs twice or is judged and does not exist, a score is not a whole
            number, or no document is relevant; the message names file and line.

    Example:
        >>> import tempfile
        >>> files = {"corpus.jsonl": '{"_id": "d1", "title": "Dogs", "text": "bark"}'}
        >>> files["queries.jsonl"] = '{"_id": "q1", "text": "what barks"}'
        >>> files["qrels.tsv"] = "query-id\tcorpus-id\tscore\nq1\td1\t1\n"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, content in files.items():
        ...         _ = Path(folder, f"pets_{name}").write_text(content)
        ...     data = read_retrieval(folder)
        >>> data.name, data.corpus, data.qrels
        ('pets', {'d1': 'Dogs bark'}, {'q1': {'d1': 1}})
    """
    folder = Path(folder).expanduser()
    name, *paths = _files(folder, split)
    if documents is not None and documents < 0:
        raise ValueError(f"documents={documents} must be at least 0, or None for all")
    table, questions = _read_texts(paths[0], documents), _read_texts(paths[1])
    titled = zip(table.texts("title"), table.texts("text"), strict=True)
    corpus = _by_id(table, [f"{title} {text}".strip() for title, text in titled])
    queries = _by_id(questions, questions.texts("text"))
    known = {"query-id": (queries, paths[1]), "corpus-id": (corpus, paths[0])}
    partial = documents is not None
    qrels = _qrels(read_table(paths[2]), known, unknown=("corpus-id",) if partial else ())
    return RetrievalData(name, corpus, queries, qrels, source=str(folder), partial=partial)


def _files(folder: Path, split: str) -> tuple[str, Path, Path, Path]:
    """Return the name of a task and its three files."""
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(
            f"retrieval folder {str(folder)!r} {what}; it holds corpus.jsonl, queries.jsonl, qrels/"
        )
    if any(Path(folder, f"corpus.jsonl{end}").exists() for end in ("", ".gz")):
        splits = sorted({path.name.split(".tsv")[0] for path in folder.glob("qrels/*.tsv*")})
        remedy = f"; there are the splits {', '.join(splits)}" if splits else ""
        files = _existing(folder, "corpus.jsonl"), _existing(folder, "queries.jsonl")
        return (folder.resolve().name, *files, _existing(folder, f"qrels/{split}.tsv", remedy))
    names = sorted({path.name.split("_corpus.jsonl")[0] for path in folder.glob("*_corpus.jsonl*")})
    if len(names) > 1:
        raise ValueError(
            f"retrieval folder {str(folder)!r} holds the tasks {', '.join(names)}; give each its own folder"
        )
    if names and split != "test":
        raise ValueError(f"split={split!r}: {folder / names[0]}_qrels.tsv has no splits; leave split out")
    if not names:
        raise FileNotFoundError(
            f"retrieval folder {str(folder)!r} has neither corpus.jsonl nor NAME_corpus.jsonl (each with or without "
            ".gz); put the documents there, one object with _id, title and text a line"
        )
    parts = (f"{names[0]}_corpus.jsonl", f"{names[0]}_queries.jsonl", f"{names[0]}_qrels.tsv")
    corpus, queries, qrels = (_existing(folder, part) for part in parts)
    return names[0], corpus, queries, qrels


def _existing(folder: Path, name: str, remedy: str = "; a retrieval task needs it") -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise FileNotFoundError(f"{folder / name} (or the same with .gz) does not exist{remedy}")


def _first_lines(path: Path, count: int) -> list[str]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="\n") as file:
        return [line.rstrip("\r\n") for line in itertools.islice(file, count)]


def _read_texts(path: Path, count: int | None = None) -> Table:
    """Read the objects of documents or queries as a table of ids and texts."""
    # Not by `read_table`, whose columns are those of the first object: in many a corpus only some documents have a
    # title, or it is null.
    rows = []
    lines = read_lines(path) if count is None else _first_lines(path, count)
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}:{number}: not JSON ({error}); write one object with _id and text a line"
            ) from None
        missing = [key for key in ("_id", "text") if not isinstance(value, dict) or key not in value]
        if missing:
            raise ValueError(
                f"{path}:{number}: no {' and no '.join(missing)}; write one object with _id and text a line"
            )
        title = value.get("title")
        rows.append([value["_id"], "" if title is None else title, value["text"]])
    return Table(path, ["_id", "title", "text"], rows, list(range(1, len(rows) + 1)))


def _ids(table: Table, column: str) -> list[str]:
    at = table.index(column)
    found = []
    for row, fields in enumerate(table.rows):
        value = fields[at]
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise table.error(row, f"{column} is {value!r:.60}; give every line an id, a text or a whole number")
        found.append(str(value))
    return found


def _by_id(table: Table, texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for row, key in enumerate(_ids(table, "_id")):
        if key in found:
            raise table.error(row, f"_id {key!r} occurs twice, first on line {lines[key]}; remove one, or rename it")
        found[key], lines[key] = texts[row], table.lines[row]
    return found


def _qrels(
    table: Table, known: Mapping[str, tuple[Mapping[str, str], Path]], unknown: Sequence[str] = ()
) -> dict[str, dict[str, int]]:
    columns = {column: _ids(table, column) for column in known}
    for column, (texts, path) in known.items():
        # A judgment that is dropped without a word changes the scores.
        missing = [row for row, key in enumerate(columns[column]) if key not in texts and column not in unknown]
        if missing:
            said = f", nor are those of {len(missing) - 1:,} more lines" if len(missing) > 1 else ""
            raise table.error(
                missing[0],
                f"{column} {columns[column][missing[0]]!r} is not in {path}{said}; complete that file, or leave these "
                "judgments out",
            )
    qrels: dict[str, dict[str, int]] = {}
    for row, (query, document, score) in enumerate(zip(*columns.values(), table.scores("score"), strict=True)):
        if score != int(score):
            raise table.error(row, f"score {score:g} is not a whole number; write 0 (not relevant), 1, 2, ...")
        earlier = qrels.setdefault(query, {}).setdefault(document, int(score))
        if earlier != score:
            said = f"query {query!r} and document {document!r} have the scores {earlier} and {int(score)}"
            raise table.error(row, f"{said}; keep one of the lines")
    return qrels
