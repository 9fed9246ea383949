"""The texts of the demo: docstrings, split into queries, documents and other sentences."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from st_plugins.cli.demo.documentation import Documentation, read_documentation
from st_plugins.data import read_retrieval
from st_plugins.data.own import read_texts


@pytest.fixture(scope="module")
def real() -> Documentation:
    """The standard library of this Python."""
    return read_documentation()


def _module(folder: Path, name: str, source: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")


def _function(name: str, line: str, body: str) -> str:
    return f'def {name}():\n    """{line}\n\n    {body}\n    """\n\n'


BODY = "Each of these words is here to be counted, so that there are enough of them for a document of its own: {}."


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library of six documented functions, and what is to be left out."""
    public = "".join(_function(f"f{n}", f"Do the thing number {n}.", BODY.format(n)) for n in range(6))
    _module(tmp_path, "public.py", public + _function("_hidden", "Do the hidden thing here.", BODY.format("hidden")))
    _module(tmp_path, "_private.py", _function("f", "Do the private thing here.", BODY.format("private")))
    _module(tmp_path, "test/tests.py", _function("f", "Do the tested thing here.", BODY.format("tested")))
    _module(tmp_path, "site-packages/other.py", _function("f", "Do the other thing here.", BODY.format("other")))
    twice = _function("g", "Do the same thing twice.", BODY.format("one"))
    _module(tmp_path, "twice.py", twice + _function("h", "Do the same thing twice.", BODY.format("two")))
    _module(tmp_path, "broken.py", "def f(:\n")
    (tmp_path / "latin.py").write_bytes(b'x = "\xe9"\n')
    return tmp_path


def test_a_query_is_the_first_line_and_its_document_the_rest(library: Path) -> None:
    found = read_documentation(documents=6, queries=4, source=library)
    search = found.search
    assert len(search.corpus) == 6 and len(search.queries) == 4
    for query, line in search.queries.items():
        (document,) = search.qrels[query]
        number = line.removeprefix("Do the thing number ").rstrip(".")
        assert search.corpus[document] == BODY.format(number)


def test_what_is_private_or_has_no_one_answer_is_left_out(library: Path) -> None:
    found = read_documentation(documents=6, queries=6, source=library)
    texts = " ".join([*found.search.corpus.values(), *found.search.queries.values(), *found.sentences])
    assert not [word for word in ("hidden", "private", "tested", "other thing") if word in texts]
    assert "twice" not in " ".join(found.search.queries.values())
    assert "Do the same thing twice." in found.sentences and BODY.format("one") in found.sentences


def test_nothing_of_the_search_is_among_the_sentences(real: Documentation) -> None:
    searched = {*real.search.corpus.values(), *real.search.queries.values()}
    assert (len(real.search.corpus), len(real.search.queries), len(real.sentences)) == (600, 300, 1000)
    assert len(searched) == 900 and not searched.intersection(real.sentences)
    assert len(set(real.sentences)) == 1000 and not [text for text in searched if "\n" in text]


def test_the_same_python_gives_the_same_texts(real: Documentation) -> None:
    again = read_documentation()
    assert again.search.checksum == real.search.checksum and again.sentences == real.sentences


def test_nothing_is_imported() -> None:
    before = set(sys.modules)
    read_documentation(10, 5, 10)
    assert "antigravity" not in set(sys.modules) - before and "this" not in set(sys.modules) - before


def test_what_is_written_is_what_the_commands_read(library: Path, tmp_path: Path) -> None:
    found = read_documentation(documents=6, queries=4, source=library)
    folder = tmp_path / "written"
    folder.mkdir()
    found.write(folder)
    assert read_texts(folder / "texts.txt") == found.sentences
    read = read_retrieval(folder / "search")
    assert (read.corpus, read.queries, read.qrels) == (found.search.corpus, found.search.queries, found.search.qrels)


def test_a_library_without_sources_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"0 docstrings .* source files .* are missing or packed"):
        read_documentation(source=tmp_path / "python311.zip")
