"""What `encode` writes: files that plain pyarrow reads, a manifest that tells all, and damage that is found."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_plugins.core.quantization import Quantization
from st_plugins.scale import Embeddings, Texts, encode
from st_plugins.scale.inner import parts
from st_plugins.scale.inner.parts import Unfinished

pytest.importorskip("pyarrow")
import pyarrow as arrow
import pyarrow.parquet as parquet


@pytest.fixture
def corpus(tmp_path: Path, sentences: list[str]) -> Path:
    """Twenty texts with ids in two files of JSON lines."""
    (tmp_path / "in").mkdir()
    for number in range(2):
        found = [{"id": f"n{at}", "text": sentences[at]} for at in range(number * 12, 12 + number * 8)]
        (tmp_path / "in" / f"{number}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    return tmp_path / "in"


def given(corpus: Path, **settings: Any) -> Texts:
    return Texts(corpus, "text", **({"id_column": "id", "block_size": 5} | settings))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_files_are_plain_parquet_with_ids_and_vectors(
    corpus: Path, model: SentenceTransformer, tmp_path: Path, sentences: list[str]
) -> None:
    found = encode(model, given(corpus), tmp_path / "out")
    tables = [parquet.read_table(file) for file in sorted((tmp_path / "out").glob("*.parquet"))]
    assert [len(table) for table in tables] == [5, 5, 2, 5, 3]
    table = tables[0]
    assert table.column_names == ["id", "vector", "precision"]
    assert [str(field.type) for field in table.schema][:2] == ["string", "fixed_size_list<element: float>[16]"]
    assert table.column("precision").to_pylist() == ["float32"] * 5
    ids = [one for table in tables for one in table.column("id").to_pylist()]
    vectors = np.array([one for table in tables for one in table.column("vector").to_pylist()], np.float32)
    assert ids == [f"n{at}" for at in range(20)]
    np.testing.assert_allclose(vectors, model.encode(sentences[:20]), atol=1e-6)
    assert [one for block, _ in found for one in block.tolist()] == ids
    assert np.array_equal(np.concatenate([rows for _, rows in found]), vectors)


def test_the_manifest_tells_what_is_there(corpus: Path, model: SentenceTransformer, tmp_path: Path) -> None:
    (corpus / "2.jsonl").write_text("{\n")
    texts = given(corpus, on_error="skip")
    encode(model, texts, tmp_path / "out", batch_size=4, prompt="say: ")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["texts"], manifest["dimension"], manifest["precision"]) == (20, 16, "float32")
    assert manifest["files"] == [str(corpus / f"{number}.jsonl") for number in range(3)]
    assert list(manifest["missing"]) == [str(corpus / "2.jsonl")] and "2.jsonl:1" in str(manifest["missing"])
    assert manifest["settings"]["prompt"] == "say: " and manifest["settings"]["texts"] == texts.scan().checksum
    rows = [(part["file"], part["number"], part["first_row"], part["rows"]) for part in manifest["parts"]]
    expected = [(0, 0, 5), (1, 5, 5), (2, 10, 2), (3, 12, 5), (4, 17, 3)]
    assert rows == [(f"part-{number:07d}.parquet", number, first, count) for number, first, count in expected]
    for part in manifest["parts"]:
        assert hashlib.sha256((tmp_path / "out" / part["file"]).read_bytes()).hexdigest() == part["sha256"]
    assert not (tmp_path / "out.unfinished").exists()
    assert Embeddings(tmp_path / "out").missing == manifest["missing"]


def test_without_ids_texts_are_numbered_and_numbers_stay_numbers(
    corpus: Path, model: SentenceTransformer, tmp_path: Path
) -> None:
    encode(model, given(corpus, id_column=None), tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.parquet"))
    tables = [parquet.read_table(file) for file in files]
    assert [one for table in tables for one in table.column("id").to_pylist()] == list(range(20))
    assert {str(table.schema.field("id").type) for table in tables} == {"int64"}


@pytest.mark.parametrize("ids", [[7, -1], [7, 2**63], ["7", "b"], [7, "b"]])
def test_ids_have_one_type_in_all_files(
    ids: list[Any], model: SentenceTransformer, tmp_path: Path, sentences: list[str]
) -> None:
    for number, one in enumerate(ids):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"id": one, "text": sentences[number]}) + "\n")
    encode(model, Texts(f"{tmp_path}/*.jsonl", "text", id_column="id"), tmp_path / "out")
    tables = [parquet.read_table(file) for file in sorted((tmp_path / "out").glob("*.parquet"))]
    numbers = ids == [7, -1]
    assert {str(table.schema.field("id").type) for table in tables} == {"int64" if numbers else "string"}
    assert [table.column("id")[0].as_py() for table in tables] == (ids if numbers else [str(one) for one in ids])


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int4", "int2", "binary"])
def test_any_precision_is_that_of_quantization(
    precision: str, corpus: Path, model: SentenceTransformer, tmp_path: Path
) -> None:
    plain = np.concatenate([rows for _, rows in encode(model, given(corpus), tmp_path / "plain")])
    found = encode(model, given(corpus), tmp_path / "out", precision=precision)
    stored = Quantization.load(tmp_path / "out")
    codes = stored.quantize(plain)
    tables = [parquet.read_table(file) for file in found.files]
    read = np.array([one for table in tables for one in table.column("vector").to_pylist()])
    assert np.array_equal(read.astype(codes.dtype), codes) and stored.precision == found.precision == precision
    kind = {"float32": "float", "float16": "halffloat", "int8": "int8", "binary": "int8"}.get(precision, "uint8")
    assert str(tables[0].schema.field("vector").type.value_type) == kind
    assert np.array_equal(np.concatenate([rows for _, rows in found]), stored.vectors(codes))
    if precision in ("int8", "int4", "int2"):  # the ranges are those of the first texts, of all files
        np.testing.assert_array_equal(Quantization.fit(precision, plain).quantize(plain), codes)


def test_damage_is_found(corpus: Path, model: SentenceTransformer, tmp_path: Path) -> None:
    found = encode(model, given(corpus), tmp_path / "out")
    found.verify()
    content = found.files[2].read_bytes()
    found.files[2].write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(ValueError, match=r"part-0000002\.parquet is damaged; encode the texts again"):
        found.verify()
    found.files[2].write_bytes(content[:50])
    with pytest.raises(ValueError, match=r"part-0000002\.parquet: not a whole Parquet file"):
        list(found)
    found.files[2].unlink()
    with pytest.raises(ValueError, match=r"part-0000002\.parquet is missing; encode the texts again"):
        found.verify()
    (tmp_path / "out" / "manifest.json").write_text('{"texts": 3}')
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        Embeddings(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json"):
        Embeddings(tmp_path)


def test_an_output_that_exists_is_left_as_it_is(corpus: Path, model: SentenceTransformer, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="mine'"):
            encode(model, given(corpus), tmp_path / "mine", overwrite=overwrite)
    encode(model, given(corpus), tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=r"out' exists and is not empty; choose another folder or overwrite"):
        encode(model, given(corpus), tmp_path / "out", precision="int8")
    assert tree(tmp_path) == before
    assert encode(model, given(corpus), tmp_path / "out", precision="int8", overwrite=True).precision == "int8"
    with pytest.raises(ValueError, match="holds the input"):
        encode(model, given(corpus), corpus, overwrite=True)


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, after: int) -> Iterator[None]:
    """Let some files of embeddings be written, and no more."""
    write, count = Path.write_bytes, [0]

    def limited(self: Path, data: Any) -> int:
        if self.name.startswith(".part-"):
            count[0] += 1
            if count[0] > after:
                write(self, bytes(data)[:10])
                raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", limited)
        yield


def test_a_full_disk_loses_nothing(
    corpus: Path, model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(model, given(corpus), tmp_path / "whole")
    with (
        full_disk(monkeypatch, 2),
        pytest.raises(OSError, match=r"part-0000002\.parquet cannot be written \(No sp") as it,
    ):
        encode(model, given(corpus), tmp_path / "out")
    assert it.value.errno == errno.ENOSPC and "make room there, and run the same again" in str(it.value)
    left = sorted(file.name for file in (tmp_path / "out.unfinished").glob("*part-*"))
    assert left == ["part-0000000.parquet", "part-0000001.parquet"] and not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match=r"out\.unfinished' is a run that has not ended, run it again"):
        Embeddings(tmp_path / "out")
    encode(model, given(corpus), tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_too_little_room_is_told_before_anything_is_encoded(
    corpus: Path, model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match=r"needs about 0\.0 MB, and 0\.0 MB are free; make room, choose another disk"):
        encode(model, given(corpus), tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_two_runs_do_not_write_into_one_output(corpus: Path, model: SentenceTransformer, tmp_path: Path) -> None:
    first = Unfinished(tmp_path / "out")
    with first.opened({"a": 1}, overwrite=False):
        before = tree(tmp_path)
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match=r"another run is writing into .*out\.unfinished'; wait for it"):
                encode(model, given(corpus), tmp_path / "out", overwrite=overwrite)
        # That of the first run stays, though it has written nothing yet.
        assert tree(tmp_path) == before and first.path.is_dir()
    assert not first.path.exists()
    assert len(encode(model, given(corpus), tmp_path / "out")) == 20


def test_an_unfinished_run_with_other_settings_is_kept(
    corpus: Path, model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with full_disk(monkeypatch, 2), pytest.raises(OSError):
        encode(model, given(corpus), tmp_path / "out")
    before = tree(tmp_path)
    for texts, settings in (
        (given(corpus), {"precision": "float16"}),
        (given(corpus), {"prompt": "say: "}),
        (given(corpus, block_size=6), {}),
        (given(corpus, id_column=None), {}),
    ):
        told = next(iter(settings), "block_size" if texts.block_size == 6 else "texts")
        with pytest.raises(FileExistsError, match=rf"unfinished run with other settings: .*{told} was .* and is "):
            encode(model, texts, tmp_path / "out", **settings)
    assert tree(tmp_path) == before
    assert encode(model, given(corpus), tmp_path / "out", precision="float16", overwrite=True).precision == "float16"


def test_a_folder_in_the_way_is_left_as_it_is(corpus: Path, model: SentenceTransformer, tmp_path: Path) -> None:
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished" / "part-0000000.parquet").write_text("mine")
    with pytest.raises(FileExistsError, match=r"out\.unfinished' is in the way, and no run of st-plugins made it"):
        encode(model, given(corpus), tmp_path / "out", overwrite=True)
    assert (tmp_path / "out.unfinished" / "part-0000000.parquet").read_text() == "mine"


def test_a_run_that_was_killed_at_its_very_end_is_taken_up(
    corpus: Path, model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(model, given(corpus), tmp_path / "whole")

    class Killed(BaseException):
        pass

    finish = Unfinished.finish

    def killed(self: Unfinished, manifest: Any) -> None:
        finish(self, manifest)
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Unfinished, "finish", killed)
        encode(model, given(corpus), tmp_path / "out")
    written = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out.unfinished").glob("part-*")}
    encode(model, given(corpus), tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("part-*")} == written


def test_a_part_that_is_damaged_is_written_again(
    corpus: Path, model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(model, given(corpus), tmp_path / "whole")
    with full_disk(monkeypatch, 4), pytest.raises(OSError):
        encode(model, given(corpus), tmp_path / "out")
    unfinished = tmp_path / "out.unfinished"
    (unfinished / "part-0000000.parquet").write_bytes(b"PAR1")
    (unfinished / "part-0000001.parquet").unlink()
    shutil.copy(unfinished / "part-0000002.parquet", unfinished / "part-0000003.parquet")
    (unfinished / ".part-0000004.parquet.abc.tmp").write_bytes(b"half")
    encode(model, given(corpus), tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_file_that_changes_while_it_is_encoded_stops_the_run(
    corpus: Path, model: SentenceTransformer, tmp_path: Path
) -> None:
    texts = given(corpus)
    texts.scan()
    path = corpus / "1.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("a ", "no "), encoding="utf-8")
    with pytest.raises(ValueError, match=r"1\.jsonl has other texts than a moment ago"):
        encode(model, texts, tmp_path / "out")
    assert not (tmp_path / "out").exists() and len(list((tmp_path / "out.unfinished").glob("part-*"))) == 3


def test_what_is_no_setting_is_refused(corpus: Path, model: SentenceTransformer, tmp_path: Path) -> None:
    for settings, told in (
        ({"precision": "int3"}, "precision='int3' must be one of"),
        ({"precision": Quantization("float16", 8)}, "precision is for 8 dimensions, but the model's vectors have 16"),
        ({"engine": "spark"}, "engine='spark' must be 'local' or 'ray'"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=told):
            encode(model, given(corpus), tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_what_a_full_disk_needs_is_computed_in_bytes(tmp_path: Path) -> None:
    parts.check_room(tmp_path, 1)
    with pytest.raises(OSError, match=r"needs about 1,000,000,000,000\.0 MB"):
        parts.check_room(tmp_path, 10**18)


@pytest.mark.parametrize("kind", ["int8", "uint8", "float16", "float32"])
@pytest.mark.parametrize("size", [-1, 2])
def test_parts_that_another_program_wrote_again_are_read(kind: str, size: int, tmp_path: Path) -> None:
    """Some know no lists of a fixed size."""
    rows = np.array([[1, 2], [3, 4]], kind)
    vectors = arrow.array(list(rows), arrow.list_(arrow.from_numpy_dtype(rows.dtype), size))
    parquet.write_table(arrow.table({"id": ["a", "b"], "vector": vectors}), tmp_path / "a.parquet")
    ids, found = parts.read_part(tmp_path / "a.parquet")
    assert ids.tolist() == ["a", "b"] and found.dtype == rows.dtype and np.array_equal(found, rows)


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("id", [1.5], "column 'id' is of type double; ids are"),
        ("vector", [b"ab"], "column 'vector' is of type binary; vectors are lists of"),
        ("vector", [["a"]], "column 'vector' is of type list<element: string>; vectors are lists of"),
        ("vector", arrow.array([[1.0], [1.0, 2.0]], arrow.list_(arrow.float32())), "'vector' has rows of"),
        ("vector", None, "no column 'vector'; there are id"),
        ("id", None, "no column 'id'; there are vector"),
    ],
)
def test_parts_of_other_types_are_refused(column: str, values: Any, told: str, tmp_path: Path) -> None:
    count = 1 if values is None else len(values)
    columns = {"id": [1, 2][:count], "vector": arrow.array([[1.0]] * count, arrow.list_(arrow.float32(), 1))}
    columns = {name: found for name, found in (columns | {column: values}).items() if found is not None}
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError) as raised:
        parts.read_part(tmp_path / "a.parquet")
    assert str(raised.value).startswith(f"{tmp_path / 'a.parquet'}: ") and told in str(raised.value)
