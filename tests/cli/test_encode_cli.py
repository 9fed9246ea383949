"""``st-plugins encode``, and texts in Parquet files and patterns for ``whiten``, ``compress`` and ``geometry``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_plugins.compression import Compressed
from st_plugins.core.quantization import Quantization
from st_plugins.scale import Embeddings, Summary
from tests.compression.toys import TEXTS, trained_like

arrow = pytest.importorskip("pyarrow")
import pyarrow.parquet  # noqa: E402 - after the skip

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, and the same texts as a text file and as three Parquet files."""
    trained_like().save(str(tmp_path / "model"), create_model_card=False)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    (tmp_path / "shards").mkdir()
    for number, at in enumerate(range(0, len(TEXTS), len(TEXTS) // 3 + 1)):
        found = TEXTS[at : at + len(TEXTS) // 3 + 1]
        table = arrow.table({"key": [f"k{at + one}" for one in range(len(found))], "body": found, "other": found})
        pyarrow.parquet.write_table(table, tmp_path / "shards" / f"{number}.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


def vectors(path: Path) -> NDArray[np.float32]:
    return np.concatenate([rows for _, rows in Embeddings(path)])


def test_encode_writes_what_the_model_gives(folder: Path, command: Command) -> None:
    words = ("encode", "model", "--texts", "shards", "--column", "body", "--id-column", "key", "--output", "out")
    code, out, err = command(*words, "--block-size", "50")
    assert code == 0, err
    found = Embeddings(folder / "out")
    found.verify()
    assert f"wrote out: {len(TEXTS)} vectors of 16 x float32 in {len(found.files)} files" in " ".join(out.split())
    ids = [one for block, _ in found for one in block.tolist()]
    assert ids == [f"k{at}" for at in range(len(TEXTS))]
    plain = SentenceTransformer("model", device="cpu")
    np.testing.assert_allclose(vectors(folder / "out"), plain.encode(list(TEXTS)), atol=1e-4)
    code, _, err = command(*words)
    assert code == 1 and "--output 'out' exists and is not empty" in err and "--overwrite" in err
    assert command(*words, "--overwrite", "--precision", "int8")[0] == 0
    assert Embeddings(folder / "out").precision == "int8"


def test_encode_stores_as_the_model_says(folder: Path, command: Command) -> None:
    words = ("compress", "model", "--texts", "texts.txt", "--bytes", "8", "--precision", "int8", "--output", "small")
    assert command(*words)[0] == 0
    assert command("encode", "small", "--texts", "texts.txt", "--output", "out")[0] == 0
    own, used = Quantization.load(folder / "small"), Quantization.load(folder / "out")
    assert used.precision == own.precision == "int8" and np.array_equal(used.ranges, own.ranges)  # type: ignore[arg-type]
    assert (
        command("encode", "small", "--texts", "texts.txt", "--output", "out", "--overwrite", "--precision", "float32")[
            0
        ]
        == 0
    )
    assert Embeddings(folder / "out").precision == "float32"


@pytest.mark.parametrize("texts", ["shards", "shards/*.parquet", "**/?.parquet"])
def test_geometry_has_the_same_numbers_from_any_files(texts: str, folder: Path, command: Command) -> None:
    assert command("geometry", "model", "--texts", "texts.txt", "--output", "one.json")[0] == 0
    code, out, err = command("geometry", "model", "--texts", texts, "--column", "body", "--output", "two.json")
    assert code == 0, err
    assert f"{len(TEXTS)} texts" in out
    one, two = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("one.json", "two.json"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_geometry_has_the_numbers_of_the_texts_in_memory(folder: Path, command: Command) -> None:
    from st_plugins.geometry.embeddings import describe

    distinct = list(dict.fromkeys(TEXTS))
    Path("texts.txt").write_text("\n".join(distinct), encoding="utf-8")
    assert command("geometry", "model", "--texts", "texts.txt", "--output", "one.json", "--seed", "3")[0] == 0
    found = json.loads((folder / "one.json").read_text(encoding="utf-8"))
    for name, value in describe(SentenceTransformer("model", device="cpu").encode(distinct), seed=3).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_geometry_keeps_no_texts(folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 long documents would be larger than all that it asks of their embeddings."""
    made: list[Summary] = []
    original = Summary.__init__

    def seen(self: Summary, *given: Any, **settings: Any) -> None:
        original(self, *given, **settings)
        made.append(self)

    monkeypatch.setattr(Summary, "__init__", seen)
    assert command("geometry", "model", "--texts", "texts.txt", "--output", "one.json")[0] == 0
    sampled = [one for one in made if len(one.sample())]
    assert sampled and all(one.texts() == [] for one in sampled)


def test_whiten_gives_the_same_model_from_any_files(folder: Path, command: Command) -> None:
    words = ("whiten", "model", "--output-dimension", "6")
    assert command(*words, "--texts", "texts.txt", "--output", "one")[0] == 0
    code, out, err = command(*words, "--texts", "shards/*.parquet", "--column", "body", "--output", "two")
    assert code == 0, err
    assert f"whitened on {len(TEXTS)} texts" in out
    one, two = (SentenceTransformer(name, device="cpu").encode(list(TEXTS[:30])) for name in ("one", "two"))
    assert one.shape[1] == 6
    np.testing.assert_allclose(two, one, atol=2e-3)


def test_compress_gives_the_same_model_from_any_files(folder: Path, command: Command) -> None:
    words = ("compress", "model", "--bytes", "8", "--precision", "int8", "--method", "rotation")
    assert command(*words, "--texts", "texts.txt", "--output", "one")[0] == 0
    code, _, err = command(*words, "--texts", "shards", "--column", "body", "--output", "two")
    assert code == 0, err
    one, two = (Compressed.load(folder / name, device="cpu") for name in ("one", "two"))
    assert one.texts == two.texts and one.bytes == two.bytes == 8
    np.testing.assert_allclose(two.model.encode(list(TEXTS[:30])), one.model.encode(list(TEXTS[:30])), atol=1e-3)


@pytest.mark.parametrize("name", ["encode", "whiten", "geometry"])
def test_a_file_that_cannot_be_read_stops_or_is_told(name: str, folder: Path, command: Command) -> None:
    (folder / "shards" / "1.parquet").write_text("no Parquet", encoding="utf-8")
    output = ("--output", "out")
    words = (name, "model", "--texts", "shards", "--column", "body", *output)
    code, _, err = command(*words)
    assert code == 1 and f"{folder}/shards/1.parquet: not a whole Parquet file" in err
    assert not (folder / "out").exists() and not (folder / "out.unfinished").exists()
    code, out, err = command(*words, "--on-error", "skip")
    assert code == 0, err
    told = " ".join((out + err).split())
    assert "1 of 3 files could not be read and were left out" in told and "1.parquet" in told
    if name == "encode":
        assert list(Embeddings(folder / "out").missing) == [str(folder / "shards" / "1.parquet")]
        assert len(Embeddings(folder / "out")) < len(TEXTS)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--texts", "none.txt"), "none.txt' does not exist; check the path"),
        (("--texts", "*.none"), "no file fits '*.none'"),
        (("--texts", "shards"), "shards/0.parquet: say which column holds the texts with --column"),
        (("--texts", "shards", "--column", "none"), "no column 'none' to read; there are key (string), body (string)"),
        (("--texts", "shards", "--column", "body", "--id-column", "none"), "no column 'none' for the ids to read"),
        (("--texts", "shards", "--column", "body", "--id-column", "body"), "--id-column='body' is the column of the"),
        (("--texts", "plain.txt", "--column", "body"), "plain.txt is read as one text a line and has no columns"),
        (("--texts", "texts.txt", "--precision", "int3"), "--precision='int3' must be one of"),
        (("--texts", "texts.txt", "--address", "auto"), "--address"),
        (("--texts", "texts.txt", "--on-error", "ignore"), "--on-error"),
        (("--texts", "texts.txt", "--block-size", "0"), "--block-size"),
        (("--texts", "texts.txt", "--workers", "0"), "--workers"),
        (("--texts", "texts.txt", "--prompt-name", "none"), "none"),
    ],
)
def test_errors_name_the_option_and_write_nothing(
    words: tuple[str, ...], told: str, folder: Path, command: Command
) -> None:
    Path("plain.txt").write_text("a dog\na cat\n", encoding="utf-8")
    before = sorted(folder.rglob("*"))
    code, out, err = command("encode", "model", "--output", "out", *words)
    assert code != 0 and told in " ".join((out + err).split()), out + err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("model", "told"),
    [("./none", "model folder './none' does not exist"), ("texts.txt", "is a file; give the folder"), ("bad", "bad")],
)
def test_a_model_that_cannot_be_loaded_is_named(model: str, told: str, folder: Path, command: Command) -> None:
    (folder / "bad").mkdir()
    (folder / "bad" / "modules.json").write_text("{", encoding="utf-8")
    code, out, err = command("encode", model, "--texts", "texts.txt", "--output", "out")
    assert code == 1 and told in out + err and "Traceback" not in err
    assert not list(folder.glob("out*"))


def test_ids_that_occur_twice_are_named(folder: Path, command: Command) -> None:
    Path("a.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n', encoding="utf-8")
    words = ("encode", "model", "--texts", "a.jsonl", "--column", "text", "--output", "out", "--id-column", "id")
    code, _, err = command(*words)
    assert code == 1 and "a.jsonl:2: id '1' occurs twice, first at" in err and not list(folder.glob("out*"))
