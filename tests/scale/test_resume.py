"""A run that is killed loses nothing, and gives the same bytes when it is run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from st_plugins.core.quantization import Quantization
from st_plugins.miniature import corpus, untrained_encoder
from st_plugins.scale import Embeddings, Encode, Local, Summary, Texts, encode, summarize
from st_plugins.scale.inner.work import SumUp, Worker, items_of

WIDTH, BLOCKS = 16, 40
# So slow that it can be killed anywhere.
PROGRAM = """
import sys, time
from st_plugins.miniature import untrained_encoder
from st_plugins.scale import Encode, Texts, encode, embeddings
module = sys.modules["st_plugins.scale.embeddings"]
class Slow(Encode):
    def embed(self, texts):
        time.sleep(0.1)
        return super().embed(texts)
module.Encode = Slow
encode(untrained_encoder(16), Texts(sys.argv[1], block_size=10), sys.argv[2])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "corpus.txt"
    found.write_text("\n".join(corpus(10 * BLOCKS)) + "\n", encoding="utf-8")
    return found


def started(path: Path, output: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(path), str(output)], stderr=subprocess.PIPE)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.slow
def test_a_run_killed_at_three_moments_gives_the_bytes_of_one_that_was_not(path: Path, tmp_path: Path) -> None:
    alone, output = tmp_path / "alone", tmp_path / "output"
    begun = tmp_path / "output.unfinished"
    encode(untrained_encoder(WIDTH), Texts(path, block_size=10), alone)
    written: dict[str, int] = {}
    for moment in (1, 12, 30):
        process = started(path, output)
        deadline = time.monotonic() + 100
        while len(list(begun.glob("part-*"))) < moment and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not output.exists()
        parts = {file.name: file.stat().st_mtime_ns for file in begun.glob("part-*")}
        assert moment <= len(parts) < BLOCKS
        assert written.items() <= parts.items(), "a block was written twice"
        written = parts
    process = started(path, output)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors.decode()
    assert content(output) == content(alone) and not begun.exists()
    assert not list(tmp_path.glob(".*")), "a lock or a temporary file was left"
    for name, moment in written.items():
        assert (output / name).stat().st_mtime_ns == moment
    ids = np.concatenate([ids for ids, _ in Embeddings(output)])
    assert ids.tolist() == list(range(10 * BLOCKS))


@dataclass(frozen=True)
class Broken(Local):
    """An engine that stops after some blocks, as a killed run does."""

    blocks: int = 0

    def run(self, worker: Any, items: Any) -> Any:
        for number, row in enumerate(super().run(worker, items)):
            if number == self.blocks:
                raise KeyboardInterrupt
            yield row


def interrupted(path: Path, output: Path, blocks: int, **settings: Any) -> None:
    engine = Broken(1, blocks)
    with pytest.raises(KeyboardInterrupt):
        encode(untrained_encoder(WIDTH), Texts(path, block_size=10), output, engine=engine, **settings)


def test_finished_blocks_are_kept_and_not_encoded_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "output"
    interrupted(path, output, 25)
    # A file that is damaged, one of another run, and what a kill leaves, are made again.
    begun = tmp_path / "output.unfinished"
    finished = len(list(begun.glob("part-*")))
    assert finished > 25
    (begun / "part-0000003.parquet").write_bytes(b"PAR1")
    (begun / "part-0000004.parquet").write_bytes((begun / "part-0000005.parquet").read_bytes())
    (begun / ".part-0000030.parquet.x.tmp").write_bytes(b"half")
    texts = []
    embed = Encode.embed
    monkeypatch.setattr(Encode, "embed", lambda self, given: texts.extend(given) or embed(self, given))
    encode(untrained_encoder(WIDTH), Texts(path, block_size=10), output)
    assert len(texts) == 10 * (BLOCKS - finished + 2)
    assert f"{finished - 2} of 40 blocks" in caplog.text
    encode(untrained_encoder(WIDTH), Texts(path, block_size=10), tmp_path / "alone")
    assert content(output) == content(tmp_path / "alone")


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"precision": "float16"}, "precision was 'float32' and is 'float16'"), ({"batch_size": 8}, "batch_size was 32")],
)
def test_another_run_does_not_go_on_with_what_is_there(
    path: Path, tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    output = tmp_path / "output"
    interrupted(path, output, 5)
    before = content(tmp_path / "output.unfinished")
    model, texts = untrained_encoder(WIDTH), Texts(path, block_size=10)
    with pytest.raises(FileExistsError, match=said):
        encode(model, texts, output, **changed)
    assert content(tmp_path / "output.unfinished") == before
    found = encode(model, texts, output, overwrite=True, **changed)
    found.verify()
    assert len(found) == 10 * BLOCKS


def test_another_model_or_other_texts_do_not_go_on(path: Path, tmp_path: Path) -> None:
    interrupted(path, tmp_path / "output", 5)
    with pytest.raises(FileExistsError, match="model was"):
        encode(untrained_encoder(WIDTH, seed=1), Texts(path, block_size=10), tmp_path / "output")
    path.write_text(path.read_text("utf-8").replace("a", "e", 1), encoding="utf-8")
    with pytest.raises(FileExistsError, match="texts was"):
        encode(untrained_encoder(WIDTH), Texts(path, block_size=10), tmp_path / "output")


@pytest.fixture
def many(tmp_path: Path) -> Texts:
    """Texts in eight small files, each of which one process reads."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text("\n".join(corpus(50, seed=number)) + "\n", encoding="utf-8")
    return Texts(folder, block_size=10)


@pytest.mark.slow
def test_several_processes_give_the_numbers_and_files_of_one(many: Texts, tmp_path: Path) -> None:
    model, texts = untrained_encoder(WIDTH), many
    settings = Summary(WIDTH, sample=20)
    one, two = (summarize(model, texts, settings, engine=Local(workers)) for workers in (1, 2))
    assert one.count == two.count == 10 * BLOCKS and one.texts() == two.texts()
    assert np.abs(one.moments.scatter - two.moments.scatter).max() <= 1e-12 * np.abs(one.moments.scatter).max()
    encode(model, texts, tmp_path / "one", engine=Local(1))
    encode(model, texts, tmp_path / "two", engine=Local(2))
    assert content(tmp_path / "one") == content(tmp_path / "two")


class SlowEncoder(Encode):
    """An encoder that leaves time to kill it."""

    def embed(self, texts: Any) -> Any:
        time.sleep(0.2)
        return super().embed(texts)


@pytest.mark.slow
def test_a_process_that_is_killed_is_an_error_and_no_endless_wait(many: Texts) -> None:
    worker = Worker(SlowEncoder(untrained_encoder(WIDTH)), many, SumUp(Summary(WIDTH)))
    items = items_of(many.scan())
    assert len(items) == 40
    results = Local(2).run(worker, items)
    before = children()
    next(results)
    os.kill(next(iter(children() - before)), signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"one of 2 processes ended .* it was killed.*fewer workers"):
        list(results)


def children() -> set[int]:
    """Return the processes that this one has started to work for it."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == os.getpid() and b"spawn_main" in line:
                found.add(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [0, 1])
def test_more_processes_than_blocks_come_to_an_end(many: Texts, blocks: int) -> None:
    worker = Worker(Encode(untrained_encoder(WIDTH)), many, SumUp(Summary(WIDTH)))
    items = items_of(many.scan())[:blocks]
    assert len(list(Local(4).run(worker, items))) == blocks


class NoPickle(SlowEncoder):
    """An encoder that cannot be sent to another process."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot be pickled")


class NoUnpickle(SlowEncoder):
    """An encoder that cannot be made in another process."""

    def __setstate__(self, state: Any) -> None:
        raise ValueError("not here")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "said"), [(NoPickle, "cannot be pickled"), (NoUnpickle, "not here")])
def test_what_cannot_be_sent_to_processes_is_an_error(many: Texts, kind: type[Encode], said: str) -> None:
    worker = Worker(kind(untrained_encoder(WIDTH)), many, SumUp(Summary(WIDTH)))
    items = items_of(many.scan())
    with pytest.raises((TypeError, ValueError), match=said):
        list(Local(2).run(worker, items))


def test_the_caller_keeps_its_model(many: Texts) -> None:
    model = untrained_encoder(WIDTH).train()
    encode(model, many, many.files[0].parent.parent / "out")
    assert model.training and not any(one.is_shared() for one in model.parameters())


def test_ranges_are_fitted_over_files_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a dog\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(corpus(200)), encoding="utf-8")
    texts = Texts([tmp_path / "a.txt", tmp_path / "b.txt"], block_size=50)
    model = untrained_encoder(WIDTH)
    expected = Quantization.fit("int4", Encode(model).embed([*texts]))
    with pytest.raises(KeyboardInterrupt):
        encode(model, texts, tmp_path / "out", precision="int4", engine=Broken(1, 2))
    # Fitted anew by another machine they would differ in the last bits, and are not fitted anew.
    monkeypatch.setattr(Quantization, "fit", None)
    found = encode(model, texts, tmp_path / "out", precision="int4")
    np.testing.assert_allclose(found.quantization.ranges, expected.ranges, rtol=1e-5)


def test_the_manifest_says_what_was_done(path: Path, tmp_path: Path) -> None:
    found = encode(untrained_encoder(WIDTH), Texts(path, block_size=100), tmp_path / "output", prompt="query: ")
    manifest = json.loads((tmp_path / "output" / "manifest.json").read_text("utf-8"))
    assert manifest["texts"] == 400 and manifest["missing"] == {} and manifest["settings"]["prompt"] == "query: "
    assert [part["rows"] for part in manifest["parts"]] == [100] * 4
    expected = untrained_encoder(WIDTH).encode(corpus(400), prompt="query: ")
    np.testing.assert_allclose(np.concatenate([vectors for _, vectors in found]), expected, atol=1e-5)


def test_sums_have_the_same_bits_whoever_is_done_first(many: Texts) -> None:
    """Not only to 1e-12: a code of few bits may change with the last one."""

    @dataclass(frozen=True)
    class Reversed(Local):
        def run(self, worker: Any, items: Any) -> Any:
            return reversed(list(super().run(worker, items)))

    model, settings = untrained_encoder(WIDTH), Summary(WIDTH, sample=20)
    first, last = (summarize(model, many, settings, engine=engine) for engine in (Local(1), Reversed(1)))
    assert first.count == 400 and first.to_bytes() == last.to_bytes()
