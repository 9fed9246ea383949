"""The teacher's maps on disk: later epochs, killed processes, damaged and foreign folders."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import nn

from st_plugins.losses import VIRTLoss
from st_plugins.methods.virt import map_cache as virt_cache
from st_plugins.methods.virt.map_cache import MapCache, fingerprint, pair_key

Model = Callable[..., SentenceTransformer]
Teacher = Callable[..., CrossEncoder]
FIRST = ["a man is playing guitar .", "dog", "the big red ball", ""]
SECOND = ["the man", "a dog is running in the park .", "unhappy", "cat"]
ORIGIN = {"teacher": "abc", "layers": [0, 1]}


def preprocess(model: SentenceTransformer, *columns: list[str]) -> list[dict[str, Any]]:
    return [model.preprocess(column) for column in columns]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.fixture
def student(make_model: Model) -> SentenceTransformer:
    model = make_model()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter.data, std=0.3)
    return model


@pytest.mark.parametrize("target", ["softmax_slice", "full_row_slice", "logits"])
@pytest.mark.parametrize("heads", ["match", "mean"])
def test_later_epochs_read_and_do_not_run_the_teacher(
    student: SentenceTransformer, make_teacher: Teacher, tmp_path: Path, target: Any, heads: Any
) -> None:
    teacher = make_teacher()
    options = {"target": target, "heads": heads, "layers": {0: 1, 1: 1}}
    exact = VIRTLoss(student, teacher, **options)(preprocess(student, FIRST, SECOND))["virt"]
    loss = VIRTLoss(student, teacher, cache=tmp_path / "maps", **options)
    first = loss(preprocess(student, FIRST, SECOND))["virt"]
    assert first.item() == pytest.approx(exact.item(), rel=2e-3)  # half precision
    runs: list[Any] = []
    teacher.register_forward_hook(lambda *_: runs.append(1))
    assert loss(preprocess(student, FIRST, SECOND))["virt"] == first
    loss.close()
    assert len(shards(tmp_path / "maps")) == 1
    assert loss(preprocess(student, FIRST, SECOND))["virt"] == first
    again = VIRTLoss(student, teacher, cache=tmp_path / "maps", **options)
    order = [2, 0, 3, 1]  # other batches, other padding
    shuffled = again(preprocess(student, *([column[i] for i in order] for column in (FIRST, SECOND))))["virt"]
    assert shuffled.item() == pytest.approx(first.item(), rel=1e-5) and not runs
    again(preprocess(student, [*FIRST, "two"], [*SECOND, "three"]))  # a new pair among the old ones
    assert runs == [1]
    shuffled.backward()


def test_only_the_layers_in_use_are_kept(student: SentenceTransformer, make_teacher: Teacher, tmp_path: Path) -> None:
    loss = VIRTLoss(student, make_teacher(), cache=tmp_path, layers=[-1], heads="mean")
    loss(preprocess(student, ["dog"], ["the man is happy"]))
    loss.close()
    (path,) = shards(tmp_path)
    (tensor,) = load_file(path).values()
    assert tensor.shape == (2 * 1 * 4,) and tensor.dtype == torch.float16


def test_the_size_is_told_before_anything_is_written(
    student: SentenceTransformer, make_teacher: Teacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loss = VIRTLoss(student, make_teacher(), cache=tmp_path)
    for _ in range(2):
        loss(preprocess(student, ["dog", "dog"], ["the man is happy", "a cat"]))
    # 2 layers, 2 heads, 2 directions, 1 × (4 + 2) cells, 2 bytes, 2 pairs
    assert caplog.text.count("takes about 0.048 kB a pair") == 1 and not shards(tmp_path)


def test_large_caches_are_written_on_the_way(
    student: SentenceTransformer, make_teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virt_cache, "_SHARD_BYTES", 100)
    loss = VIRTLoss(student, make_teacher(), cache=tmp_path)
    first = loss(preprocess(student, FIRST, SECOND))["virt"]
    assert len(shards(tmp_path)) == 2
    assert loss(preprocess(student, FIRST, SECOND))["virt"] == first


def test_a_cache_survives_a_kill(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        cache = MapCache(tmp_path, ORIGIN)
        cache.put("a", torch.ones(3))
        cache.close()
        cache.put("b", torch.ones(3))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    cache = MapCache(tmp_path, ORIGIN)
    assert "a" in cache and "b" not in cache and len(cache) == 1


def test_what_waits_is_written_when_the_cache_ends(tmp_path: Path) -> None:
    cache = MapCache(tmp_path, ORIGIN)
    cache.put("a", torch.ones(3))
    assert not shards(tmp_path)
    del cache
    gc.collect()
    assert "a" in MapCache(tmp_path, ORIGIN)


def test_half_written_files_are_ignored(tmp_path: Path) -> None:
    cache = MapCache(tmp_path, ORIGIN)
    cache.put("a", torch.ones(3))
    cache.close()
    (tmp_path / f".{shards(tmp_path)[0].name}.x1.tmp").write_bytes(b"half")
    assert len(MapCache(tmp_path, ORIGIN)) == 1


def test_a_failing_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("No space left on device")

    cache = MapCache(tmp_path, ORIGIN)
    cache.put("a", torch.ones(3))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(virt_cache, "save_file", fail)
        cache.close()
    assert [path.name for path in tmp_path.iterdir()] == ["virt_cache.json"]
    cache.close()  # there is space again
    assert torch.equal(MapCache(tmp_path, ORIGIN).get("a"), torch.ones(3).half())


def test_damaged_files_are_named(tmp_path: Path) -> None:
    cache = MapCache(tmp_path, ORIGIN)
    cache.put("a", torch.ones(300))
    cache.close()
    (path,) = shards(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged .*; delete this file"):
        MapCache(tmp_path, ORIGIN)
    path.unlink()
    assert len(MapCache(tmp_path, ORIGIN)) == 0
    (tmp_path / "virt_cache.json").write_text("{")
    with pytest.raises(ValueError, match=r"virt_cache.json is damaged .*; delete the folder"):
        MapCache(tmp_path, ORIGIN)


def test_entries_of_another_size_are_damage(
    student: SentenceTransformer, make_teacher: Teacher, tmp_path: Path
) -> None:
    VIRTLoss(student, make_teacher(), cache=tmp_path)
    other = MapCache(tmp_path / "other", ORIGIN)
    other.put(pair_key([11], [6, 7]), torch.ones(3))
    other.close()
    (path,) = shards(tmp_path / "other")
    path.rename(tmp_path / path.name)
    loss = VIRTLoss(student, make_teacher(), cache=tmp_path)
    with pytest.raises(ValueError, match=r"damaged \(an entry has the shape \(3,\), not \(16,\)\); delete this file"):
        loss(preprocess(student, ["dog"], ["the man"]))


def test_foreign_folders_are_refused(student: SentenceTransformer, make_teacher: Teacher, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("")
    with pytest.raises(ValueError, match=r"thesis has files but no virt_cache.json: it is no cache of VIRTLoss"):
        VIRTLoss(student, make_teacher(), cache=tmp_path / "thesis")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
    with pytest.raises(ValueError, match=r"chapter.tex is a file; give a new folder"):
        VIRTLoss(student, make_teacher(), cache=tmp_path / "thesis" / "chapter.tex")
    VIRTLoss(student, make_teacher(), cache=tmp_path / "maps")
    other = make_teacher()
    nn.init.ones_(other.transformers_model.classifier.weight)
    with pytest.raises(ValueError, match=r"maps was made differently \(weights '.*' there, '.*' here\)"):
        VIRTLoss(student, other, cache=tmp_path / "maps")
    for options, what in (({"layers": [0]}, "layers"), ({"target": "logits"}, "target"), ({"heads": "mean"}, "heads")):
        with pytest.raises(ValueError, match=rf"maps was made differently \({what} .*give another folder, or delete"):
            VIRTLoss(student, make_teacher(), cache=tmp_path / "maps", **options)
    VIRTLoss(student, make_teacher(), cache=tmp_path / "maps", weight=2.0, distance="frobenius")  # of the same maps


def test_the_record_says_where_the_maps_come_from(
    student: SentenceTransformer, make_teacher: Teacher, tmp_path: Path
) -> None:
    teacher = make_teacher()
    VIRTLoss(student, teacher, cache=tmp_path)
    record = json.loads((tmp_path / "virt_cache.json").read_text())
    assert record["origin"]["weights"] == fingerprint(teacher) and record["library"].startswith("st-plugins")


def test_fingerprints_tell_types_shapes_and_numbers_apart() -> None:
    layers = [nn.Linear(4, 2), nn.Linear(2, 4), nn.Linear(4, 2).half(), nn.BatchNorm1d(4)]
    assert len({fingerprint(layer) for layer in layers}) == 4
    assert fingerprint(layers[2]) == fingerprint(layers[2]) and fingerprint(nn.Linear(4, 2).bfloat16())
