"""Whole files and folders or none."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from st_plugins.core.writing import marks
from st_plugins.core.writing.atomic import atomic_folder, write_text


def test_text_is_utf8_with_unix_line_ends_and_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.md"
    write_text(path, "naïve\n日本\n")
    assert path.read_bytes() == "naïve\n日本\n".encode()


def test_failed_text_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "text.md"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")  # a lone surrogate fails in the middle of writing
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic_folder(path) as folder:
        (folder / "weights").write_text("w")
        assert not path.exists()
    assert (path / "weights").read_text() == "w"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError])
def test_interrupted_folder_leaves_the_old_one(tmp_path: Path, problem: type[BaseException]) -> None:
    path = tmp_path / "model"
    with atomic_folder(path) as folder:
        (folder / "weights").write_text("old")
    with pytest.raises(problem), atomic_folder(path, overwrite=True) as folder:
        (folder / "weights").write_text("half")
        raise problem
    assert (path / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_existing_folder_is_refused_unless_told(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with atomic_folder(tmp_path / "model") as folder:  # an empty folder is nobody's work
        (folder / "a").write_text("a")
    with pytest.raises(FileExistsError, match="is not empty"), atomic_folder(tmp_path / "model"):
        pass
    with atomic_folder(tmp_path / "model", overwrite=True) as folder:
        (folder / "b").write_text("b")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [marks.MARK, "b"]


def test_failed_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    with atomic_folder(path) as folder:
        (folder / "weights").write_text("old")
    rename = Path.rename

    def fail_for_new(self: Path, target: Path) -> Path:
        if self.name == "model" and target == path:
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(OSError, match="disk full"), atomic_folder(path, overwrite=True):
        pass
    assert (path / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_parents_of_what_failed_are_not_left(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space"), atomic_folder(tmp_path / "a" / "b" / "model") as folder:
        (folder / "half").write_text("h")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_modes_are_those_of_new_files_or_of_the_folder_filled(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o770)
    (tmp_path / "usual").mkdir()
    with atomic_folder(tmp_path / "shared"), atomic_folder(tmp_path / "new"):
        pass
    write_text(tmp_path / "text", "t")
    (tmp_path / "other").write_text("t")
    mode = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert mode["shared"] == 0o770 and mode["new"] == mode["usual"] and mode["text"] == mode["other"]
