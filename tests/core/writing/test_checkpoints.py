"""A training's checkpoints: only those of the same run are resumed from, only those of a run are deleted."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback

from st_plugins.core.identity import fingerprint
from st_plugins.core.texts import checksum
from st_plugins.core.writing.checkpoints import CheckpointFolder
from st_plugins.training import train_consert

SETTINGS = {"seed": 0, "model": "a"}


def begun(folder: Path, steps: tuple[int, ...] = (2, 4), **settings: Any) -> CheckpointFolder:
    """Checkpoints of a training that was killed."""
    checkpoints = CheckpointFolder(folder / "out", SETTINGS | settings)
    checkpoints.open(resume=False, overwrite=False)
    for step in steps:
        with checkpoints.writing(step) as path:
            (path / "weights").write_text(f"of {step}")
            (path / "1_Pooling").mkdir()
    checkpoints._release()
    return checkpoints


def resume(folder: Path, **settings: Any) -> str | None:
    """The name of the checkpoint that a training goes on from."""
    checkpoints = CheckpointFolder(folder / "out", SETTINGS | settings)
    found = checkpoints.open(resume=True, overwrite=False)
    checkpoints._release()
    return None if found is None else found.name


@pytest.mark.parametrize("made", ["file in it", "file", "settings of another program", "folder in it"])
@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}, {}])
def test_what_is_in_the_way_and_not_ours_is_left_alone(tmp_path: Path, made: str, how: dict[str, bool]) -> None:
    path = tmp_path / "out.checkpoints"
    if made == "file":
        path.write_text("precious")
    else:
        names = {"file in it": "thesis.txt", "folder in it": "checkpoint-3/weights"}
        file = path / names.get(made, "settings.json")
        file.parent.mkdir(parents=True)
        file.write_text('{"seed": 0}')
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=r"out\.checkpoints' is in the way .*--output"):
        CheckpointFolder(tmp_path / "out", SETTINGS).open(**({"resume": False, "overwrite": False} | how))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("end", ["remove", "keep_if_useful", "overwrite"])
def test_a_user_s_files_in_the_folder_survive(tmp_path: Path, end: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = begun(tmp_path, (2, 4) if end != "keep_if_useful" else ())
    mine = [checkpoints.path / "thesis.txt", checkpoints.path / "checkpoint-1" / "weights"]
    if end != "keep_if_useful":
        mine.append(checkpoints.of_step(4) / "notes.txt")
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("precious")
    if end == "overwrite":
        CheckpointFolder(tmp_path / "out", SETTINGS).open(resume=False, overwrite=True)
    else:
        getattr(checkpoints, end)()
        assert "files that the training did not write" in caplog.text
    left = {path for path in checkpoints.path.rglob("*") if path.is_file()}
    assert left - set(mine) == ({checkpoints.path / name for name in (".st-plugins.json", "settings.json")} & left)
    assert set(mine) <= left and all(path.read_text() == "precious" for path in mine)


def test_only_old_checkpoints_of_the_run_are_deleted(tmp_path: Path) -> None:
    checkpoints = begun(tmp_path, ())
    (checkpoints.path / "checkpoint-1").mkdir()
    (checkpoints.path / "checkpoint-1" / "weights").write_text("precious")
    for step, kept in ((2, {2}), (4, {2, 4}), (6, {4, 6}), (8, {4, 8})):
        with checkpoints.writing(step, keep=4):
            pass
        found = {path.name for path in checkpoints.path.glob("checkpoint-*")}
        assert found == {f"checkpoint-{one}" for one in {1, *kept}}
    with pytest.raises(FileExistsError, match="checkpoint-1' is in the way of a checkpoint"), checkpoints.writing(1):
        pass


@pytest.mark.parametrize("made", ["file in ours", "file", "link", "dangling link"])
def test_what_a_user_put_in_the_place_of_a_checkpoint_is_left(tmp_path: Path, made: str) -> None:
    checkpoints = begun(tmp_path)
    path, mine = checkpoints.of_step(4), tmp_path / "mine"
    if made == "file in ours":
        mine = path / "notes.txt"
        cut(path)
    else:
        shutil.rmtree(path)
        if made == "file":
            mine = path
        elif made == "link":
            (tmp_path / "folder").mkdir()
            mine = tmp_path / "folder" / "weights"
            path.symlink_to(mine.parent)
        else:
            path.symlink_to("nowhere")
    mine.write_text("precious")
    assert resume(tmp_path) == "checkpoint-2"
    with pytest.raises(FileExistsError, match="checkpoint-4' is in the way of a checkpoint"):
        checkpoints.begin(4)
    assert mine.read_text() == "precious"


@pytest.mark.parametrize("name", ["../../mine", "{}/mine", "1_Pooling/mine"])
def test_a_mark_deletes_nothing_elsewhere(tmp_path: Path, name: str) -> None:
    checkpoints = begun(tmp_path)
    mine, checkpoint = tmp_path / "mine", checkpoints.of_step(4)
    mine.write_text("precious")
    mark = checkpoint / ".st-plugins.json"
    content = json.loads(mark.read_text())
    content["files"][name.format(tmp_path)] = "0" * 64
    mark.write_text(json.dumps(content))
    (checkpoint / "1_Pooling").rmdir()
    (checkpoint / "1_Pooling").symlink_to(tmp_path)
    checkpoints.remove()
    assert mine.read_text() == "precious"


def cut(checkpoint: Path) -> None:
    (checkpoint / "weights").write_text("of")


def lost(checkpoint: Path) -> None:
    (checkpoint / "weights").unlink()


def of_another_step(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    shutil.copytree(checkpoint.with_name("checkpoint-2"), checkpoint)


def unmarked(checkpoint: Path) -> None:
    (checkpoint / ".st-plugins.json").unlink()


def linked(checkpoint: Path) -> None:
    checkpoint.rename(checkpoint.with_name("elsewhere"))
    checkpoint.symlink_to("elsewhere")


def of_another_run(checkpoint: Path) -> None:
    other = begun(checkpoint.parent.parent / "other", (4,), seed=1).of_step(4)
    shutil.rmtree(checkpoint)
    shutil.copytree(other, checkpoint)


@pytest.mark.parametrize("spoil", [cut, lost, of_another_step, unmarked, linked, of_another_run])
def test_a_checkpoint_that_is_not_whole_or_not_of_this_run_is_not_taken(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    checkpoints = begun(tmp_path)
    assert resume(tmp_path) == "checkpoint-4"
    spoil(checkpoints.of_step(4))
    assert resume(tmp_path) == "checkpoint-2"


def test_a_checkpoint_is_not_taken_without_the_best_one_that_it_needs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = begun(tmp_path, ())
    for step, best in ((2, 2), (4, 2)):
        with checkpoints.writing(step, keep=best) as path:
            (path / "trainer_state.json").write_text(f'{{"best_global_step": {best}}}')
    assert resume(tmp_path) == "checkpoint-4"
    (checkpoints.of_step(2) / "trainer_state.json").write_text("{}")
    assert resume(tmp_path) is None
    assert "checkpoint-2, which checkpoint-4 needs, is damaged or missing" in caplog.text


def test_other_settings_or_versions_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = begun(tmp_path)
    with pytest.raises(ValueError, match=r"belong to another training: model was 'a' there and is 'b' now"):
        resume(tmp_path, model="b")
    with pytest.raises(ValueError, match="prompt was None there and is 'q: ' now"):
        resume(tmp_path, prompt="q: ")
    settings = checkpoints.path / "settings.json"
    settings.write_text(settings.read_text().replace('"st-plugins": "', '"st-plugins": "9.'))
    with caplog.at_level(logging.WARNING):
        assert resume(tmp_path) == "checkpoint-4"
    assert "was begun with st-plugins 9." in caplog.text
    settings.write_text("{")
    with pytest.raises(ValueError, match="model was None there"):
        resume(tmp_path)


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    """Locks belong to the opened file, so that one process can play both; the system frees those of killed ones."""
    first = begun(tmp_path)
    first.open(resume=True, overwrite=False)
    before = sorted(tmp_path.rglob("*"))
    for how in ({"resume": True, "overwrite": False}, {"resume": False, "overwrite": True}):
        with pytest.raises(FileExistsError, match=r"another process is training into .*out\.checkpoints"):
            CheckpointFolder(tmp_path / "out", SETTINGS).open(**how)
    assert sorted(tmp_path.rglob("*")) == before
    first._release()
    assert resume(tmp_path) == "checkpoint-4"


def test_a_model_is_known_by_its_content(model: SentenceTransformer, tmp_path: Path) -> None:
    known = fingerprint(model)
    model.encode(["a dog", "a cat runs"])
    model.save(str(tmp_path / "moved"))
    assert fingerprint(model) == known == fingerprint(SentenceTransformer(str(tmp_path / "moved"), device="cpu"))
    others = []
    for change in ("weights", "length", "prompt", "similarity", "dropout", "pooling"):
        other = copy.deepcopy(model)
        if change == "weights":
            with torch.no_grad():
                next(other.parameters())[0, 0] += 1e-3
        elif change == "length":
            other.max_seq_length = 5
        elif change == "prompt":
            other.prompts = {"query": "q: "}
        elif change == "similarity":
            other.similarity_fn_name = "dot"
        elif change == "dropout":
            other[0].model.config.hidden_dropout_prob = 0.3
        else:
            other[1].include_prompt = False  # type: ignore[assignment]
        others.append(fingerprint(other))
    assert len({known, *others}) == 7
    assert checksum(["a", "b"]) != checksum(["b", "a"]) and checksum(["a\nb"]) != checksum(["a", "b"])


class Stop(TrainerCallback):
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt


def test_a_training_is_resumed_with_the_same_model_only(
    model: SentenceTransformer, sentences: list[str], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "epochs": 1,
        "batch_size": 10,
        "eval_steps": 2,
        "device": "cpu",
        "show_progress_bar": False,
    }
    model.save(str(tmp_path / "a" / "model"), create_model_card=False)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).mul_(3)
    other.save(str(tmp_path / "b" / "model"), create_model_card=False)
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train_consert(tmp_path / "a" / "model", sentences, output, callbacks=[Stop()], **settings)
    with pytest.raises(ValueError, match="belong to another training: model was '"):
        train_consert(tmp_path / "b" / "model", sentences, output, resume=True, **settings)
    with pytest.raises(ValueError, match="belong to another training: texts was '"):
        train_consert(tmp_path / "a" / "model", sentences[::-1], output, resume=True, **settings)
    (tmp_path / "a" / "model").rename(tmp_path / "moved")
    assert train_consert(tmp_path / "moved", sentences, output, resume=True, **settings).steps == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "moved", "out"]
