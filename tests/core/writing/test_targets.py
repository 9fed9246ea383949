"""What may be written over, what is refused before the work, and what killed runs leave."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from st_plugins.core.writing import atomic, marks
from st_plugins.core.writing import neighbors as neighbors
from st_plugins.core.writing.atomic import atomic_file, atomic_folder, file_target, folder_target


def fill(path: Path, text: str = "ours") -> Path:
    """Write a folder as the library does."""
    with atomic_folder(path) as folder:
        (folder / "inner" / "empty").mkdir(parents=True)
        (folder / "weights").write_text(text)
        (folder / "inner" / "config").write_text("c")
    return path


def tree(folder: Path) -> dict[str, bytes | None]:
    """All there is below a folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def a_foreign_file(path: Path) -> None:
    (fill(path) / "inner" / "thesis.txt").write_text("precious")


def a_foreign_folder(path: Path) -> None:
    (fill(path) / ".git").mkdir()


def an_edited_file(path: Path) -> None:
    (fill(path) / "weights").write_text("trained on by hand")


def a_link(path: Path) -> None:
    (fill(path) / "link").symlink_to(path.parent)


def no_mark(path: Path) -> None:
    (fill(path) / marks.MARK).unlink()


def a_torn_mark(path: Path) -> None:
    (fill(path) / marks.MARK).write_text('{"library": "st-plu')


def a_mark_of_others(path: Path) -> None:
    (fill(path) / marks.MARK).write_text('{"library": 1, "files": ["weights"]}')


@pytest.mark.parametrize(
    "made", [a_foreign_file, a_foreign_folder, an_edited_file, a_link, no_mark, a_torn_mark, a_mark_of_others]
)
def test_overwrite_replaces_only_what_we_wrote(tmp_path: Path, made: Callable[[Path], None]) -> None:
    made(tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=r"--output '.*out' is not replaced: '.+' in it is no file"):
        folder_target(tmp_path / "out", name="--output", overwrite=True)
    assert tree(tmp_path) == before


def test_overwrite_replaces_our_own(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    (tmp_path / "out" / "weights").unlink()  # what is missing is no loss
    with folder_target(tmp_path / "out", overwrite=True).write() as folder:
        (folder / "new").write_text("n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [marks.MARK, "new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_damaged_cache_may_be_replaced_but_nothing_foreign_in_it(tmp_path: Path) -> None:
    an_edited_file(tmp_path / "cache")
    (tmp_path / "cache" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        folder_target(tmp_path / "cache", overwrite=True, changed=True)
    (tmp_path / "cache" / "thesis.txt").unlink()
    folder_target(tmp_path / "cache", overwrite=True, changed=True)


def test_an_input_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fill(tmp_path / "project" / "model")
    (model / "modules.json").write_text("[]")
    marks.mark(model)
    (tmp_path / "link").symlink_to(model)
    before = tree(tmp_path)
    for output in (model, tmp_path / "project", tmp_path / "link", f"{model}/", model / "inner" / ".."):
        with pytest.raises(ValueError, match=r"output '.*' (is|holds) the input"):
            folder_target(output, overwrite=True, inputs=["bert-base-uncased", None, model])
    for output in (model / "white", tmp_path / "link" / "a" / "white"):
        with pytest.raises(ValueError, match="lies in the input model"):
            folder_target(output, inputs=[model])
    with pytest.raises(ValueError, match="is the input"):
        file_target(model / "inner" / "config", overwrite=True, inputs=[model / "inner" / "config"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="holds the input"):
        folder_target("project", overwrite=True, inputs=["./link"])
    assert tree(tmp_path) == before


def test_links_are_followed_and_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "empty").mkdir()
    for link, target in (("full", "empty"), ("dangling", "later"), ("file", "text")):
        (tmp_path / link).symlink_to(target)
    for output in ("~/full", tmp_path / "dangling"):
        with atomic_folder(output) as folder:
            (folder / "weights").write_text("w")
    with atomic_file(tmp_path / "file") as file:
        file.write_text("t")
    names = {"full", "empty", "dangling", "later", "file", "text"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all((tmp_path / link).is_symlink() for link in ("full", "dangling", "file"))
    assert (tmp_path / "empty" / "weights").is_file() and (tmp_path / "later" / "weights").is_file()
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for look in (folder_target, file_target):
        with pytest.raises(OSError, match=r"output '.*a'"):
            look(tmp_path / "a", overwrite=True)


@pytest.mark.parametrize("target", [folder_target, file_target])
def test_places_that_cannot_be_written_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Callable[..., atomic.Target]
) -> None:
    (tmp_path / "file").write_text("f")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    long = "x" * 300
    places = [
        tmp_path / "file" / "out",
        "/proc/out",
        tmp_path / long,
        tmp_path / long / "out",
        tmp_path / "new" / long,
    ]
    if target is folder_target:
        places += [Path(), "..", tmp_path / "file", "/", "/proc"]
    else:
        places += [Path(), tmp_path, "/dev/null"]
    before = tree(tmp_path)
    for place in places:
        with pytest.raises(OSError, match=r"--output '.*' .*; (choose|give)") as caught:
            target(place, name="--output", overwrite=True)
        assert tree(tmp_path) == before, caught.value


def test_a_full_disk_or_a_folder_without_rights_is_noticed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, whom no read-only folder stops; so the system's refusal is played."""

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(PermissionError, match=r"output '.*out' cannot be written \(Permission denied\)"):
        folder_target(tmp_path / "new" / "out")


def test_the_longest_possible_names_work(tmp_path: Path) -> None:
    name = "é" * 127
    with atomic_folder(tmp_path / name) as folder:
        (folder / "w").write_text("w")
    with atomic_file(tmp_path / f"{name}x") as file:
        file.write_text("t")
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}x"]


def test_mount_points_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "volume")
    with pytest.raises(FileExistsError, match="is a mount point"):
        folder_target(tmp_path / "volume")
    assert folder_target(tmp_path / "volume" / "out").path == tmp_path / "volume" / "out"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("before", ["nothing", "empty", "ours"])
def test_of_two_writers_the_second_fails_and_the_first_one_s_work_stays(
    tmp_path: Path, before: str, overwrite: bool
) -> None:
    path = tmp_path / "out"
    if before == "ours" and not overwrite:
        return
    if before != "nothing":
        path.mkdir() if before == "empty" else fill(path)
    with pytest.raises(FileExistsError, match=r"output '.*out'"), folder_target(path, overwrite=overwrite).write():
        with atomic_folder(path, overwrite=True) as other:
            (other / "weights").write_text("of the other")
    assert (path / "weights").read_text() == "of the other" and list(tmp_path.iterdir()) == [path]


def test_of_two_writers_of_a_file_the_second_fails(tmp_path: Path) -> None:
    (tmp_path / "before.json").write_text("of an earlier run")
    for name, overwrite in (("new", False), ("new too", True), ("before", True)):
        path = tmp_path / f"{name}.json"
        with pytest.raises(FileExistsError, match="output"), file_target(path, overwrite=overwrite).write() as mine:
            mine.write_text("mine")
            path.write_text("of the other")
        assert path.read_text() == "of the other"


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_faster_writer_between_check_and_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_folder: bool
) -> None:
    path, check, calls = tmp_path / "out", atomic._check, []

    def late(target: atomic.Target) -> None:
        check(target)
        calls.append(target)
        if len(calls) == 2:  # the last look before the rename: then the other one finishes
            if is_folder:
                path.mkdir()
                (path / "weights").write_text("of the other")
            else:
                path.write_text("of the other")

    monkeypatch.setattr(atomic, "_check", late)
    monkeypatch.setattr(atomic, "_identity", lambda path: None)
    target = folder_target(path) if is_folder else file_target(path)
    with pytest.raises(FileExistsError, match="another process"), target.write() as new:
        (new / "weights" if is_folder else new).write_text("mine")
    assert (path / "weights" if is_folder else path).read_text() == "of the other"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_came_while_our_folder_was_looked_at_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, check, calls = fill(tmp_path / "out"), atomic._check, []

    def late(target: atomic.Target) -> None:
        check(target)
        calls.append(target)
        if len(calls) == 2:
            (path / "thesis.txt").write_text("precious")

    monkeypatch.setattr(atomic, "_check", late)
    with pytest.raises(FileExistsError, match="another process"), atomic_folder(path, overwrite=True) as new:
        (new / "weights").write_text("mine")
    assert (path / "thesis.txt").read_text() == "precious" and (path / "weights").read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]


def test_without_hard_links_a_file_is_written_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    with file_target(tmp_path / "a").write() as file:
        file.write_text("a")
    assert (tmp_path / "a").read_text() == "a"


def test_a_file_is_replaced_only_when_asked_and_if_it_has_the_mark(tmp_path: Path) -> None:
    path = tmp_path / "why.html"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"--html '.*' exists; choose another file or --overwrite"):
        file_target(path, name="--html", mark=b"<meta ours>")
    with pytest.raises(FileExistsError, match=r"--html '.*' is a file that st-plugins did not write"):
        file_target(path, name="--html", overwrite=True, mark=b"<meta ours>")
    path.write_bytes(b" " * ((1 << 20) - 5) + b"<meta ours>")  # across the blocks in which it is read
    with file_target(path, overwrite=True, mark=b"<meta ours>").write() as file:
        file.write_text("new")
    assert path.read_text() == "new"


KILLED = """
import os, sys
from pathlib import Path
from st_plugins.core.writing.atomic import atomic_file, atomic_folder
if sys.argv[1] == "swap":
    rename = Path.rename
    Path.rename = lambda self, target: (rename(self, target), os._exit(9))
    with atomic_folder(sys.argv[2], overwrite=True) as folder:
        (folder / "weights").write_text("new")
with (atomic_file if sys.argv[1] == "file" else atomic_folder)(sys.argv[2]) as path:
    (path / "half" if path.is_dir() else path).write_text("half")
    print("ready", flush=True)
    os._exit(9) if sys.argv[3] == "dies" else sys.stdin.read()
"""


def start(kind: str, path: Path, how: str = "dies") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", KILLED, kind, str(path), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_run_left_is_removed_but_not_a_living_one_s_nor_a_user_s(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    with start(kind, path, "lives") as living:
        assert living.stdout is not None and living.stdout.readline() == "ready\n"
        with start(kind, path) as killed:
            assert killed.wait() == 9
        assert len(list(tmp_path.iterdir())) == 2 and not path.exists()
        (tmp_path / ".out.mine.tmp").mkdir()
        (tmp_path / ".out.mine.tmp" / "thesis.txt").write_text("precious")
        (tmp_path / ".out.file.tmp").write_text("precious")
        with atomic_file(path) if kind == "file" else atomic_folder(path) as new:
            (new / "weights" if kind == "folder" else new).write_text("w")
        assert len(list(tmp_path.iterdir())) == 4  # the output, the living one's, and the user's two
        living.communicate()
        assert living.returncode == 1  # it came second
    assert sorted(one.name for one in tmp_path.iterdir()) == [".out.file.tmp", ".out.mine.tmp", "out"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    path = fill(tmp_path / "out")
    with start("swap", path) as killed:
        assert killed.wait() == 9
    assert not path.exists()
    with pytest.raises(FileExistsError, match="is not empty"):
        folder_target(path)
    assert (path / "weights").read_text() == "ours" and list(tmp_path.iterdir()) == [path]


def test_a_neighbor_is_known_as_such_until_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, deleted = os.unlink, []

    def noted(path: Any, **place: Any) -> None:
        deleted.append(os.path.basename(path))  # noqa: PTH119
        unlink(path, **place)

    monkeypatch.setattr(os, "unlink", noted)
    with neighbors.neighbor(tmp_path, "out") as made:
        (made / "out").mkdir()
        for number in range(20):
            (made / "out" / str(number)).touch()
            (made / f"{number}.csv").touch()
    assert len(deleted) == 41 and deleted[-1] == ".st-plugins-unfinished" and not list(tmp_path.iterdir())
