"""A model folder as the host may see it: a temporary folder of links to the files that were looked at and allowed.

The host reads whatever it finds beside a model (pickles, code, shards of other formats, pipes), and what it looks for
changes with its versions. A folder that has nothing else in it leaves nothing to find.
"""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

from sentence_transformers.base.modules import Dense, Module, Router, Transformer
from sentence_transformers.sentence_transformer.modules import CNN, LSTM, LayerNorm, WeightedLayerPooling
from sentence_transformers.sentence_transformer.modules.tokenizer import WordTokenizer
from torch import nn

from st_plugins.core.loading import keys
from st_plugins.core.loading.files import Shapes, is_there, read_json, read_object, shapes
from st_plugins.core.loading.hub import local_folder
from st_plugins.core.loading.sizes import check_model_sizes, check_sizes

MODULES, HOST_CONFIG = "modules.json", "config_sentence_transformers.json"
_OLDER = "sentence_transformers.models"
_ALLOWED = ("sentence_transformers.", "st_plugins.")
_TENSORS, _INDEX, _CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
_ADAPTER, _ADAPTER_TENSORS = "adapter_config.json", "adapter_model.safetensors"
_TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    *(f"sentence_{kind}_config.json" for kind in "roberta distilbert camembert albert xlm-roberta xlnet".split()),
)
_SUFFIXES = (".bpe", ".codes", ".jinja", ".json", ".model", ".spm", ".tiktoken", ".txt", ".vocab")
# Files that a tokenizer or processor of transformers reads, whatever the model: there they must be regular.
_READ = tuple(
    """
    added_tokens.json generation_config.json merges.txt preprocessor_config.json processor_config.json
    special_tokens_map.json tokenizer.json tokenizer_config.json vocab.json vocab.txt
    """.split()
)
_TEMPLATES = "additional_chat_templates"
_BUILT_FROM_CONFIG = (Dense, CNN, LSTM, LayerNorm, WeightedLayerPooling)


class Stage:
    """A temporary folder that is filled with links to checked files."""

    def __init__(self, folder: Path, path: Path) -> None:
        # All module types of the model; its modules.json (empty for a checkpoint of transformers); and where the
        # staged base model of an adapter is, with what the adapter calls it.
        self.folder, self.path = folder, path
        self.classes: dict[str, type[Module]] = {}
        self.rows: list[dict[str, Any]] = []
        self.bases: dict[str, str] = {}

    def fill(self) -> None:
        """Check the folder and link what loading it needs."""
        if is_there(self.folder / HOST_CONFIG):
            config = read_object(self.folder / HOST_CONFIG)
            _check_activations(config, self.folder / HOST_CONFIG)
            keys.check_host_config(config, self.folder / HOST_CONFIG)
            self._link(HOST_CONFIG)
        if (self.folder / "README.md").is_file():  # the host keeps the card; whatever else has the name is no use
            self._link("README.md")
        if not is_there(self.folder / MODULES):
            self.transformer("")
            return
        self.rows = _module_rows(self.folder)
        self._link(MODULES)
        for row in self.rows:
            self._module(row["type"], row["path"])

    def transformer(self, subfolder: str) -> None:
        """Check and link a model of transformers with its tokenizer."""
        place = self.folder / subfolder
        for name in _TRANSFORMER_CONFIGS:
            if is_there(place / name):
                keys.check_transformer_settings(read_object(place / name), place / name)
        self._files(subfolder, _CONFIG, _ADAPTER, *_TRANSFORMER_CONFIGS, *_READ)
        for template in sorted((place / _TEMPLATES).glob("*.jinja")):
            if template.is_file():
                self._link(subfolder, _TEMPLATES, template.name)
        if is_there(place / _ADAPTER):
            self._adapter(subfolder)
        if is_there(place / _CONFIG):
            config = read_object(place / _CONFIG)
            keys.check_model_config(config, place / _CONFIG)
            _check_activations(config, place / _CONFIG)
            sizes = self._weights(subfolder, config)
            check_model_sizes(self.path / subfolder, config, sizes, place / _CONFIG)
        elif not is_there(place / _ADAPTER):
            raise ValueError(f"{_CONFIG} is missing from {place}; copy or download the model again")

    def _module(self, kind: str, subfolder: str) -> None:
        found = module_class(kind, self.folder)
        self.classes[kind] = found
        place = self.folder / subfolder
        if issubclass(found, Transformer):
            self.transformer(subfolder)
            return
        if issubclass(found, Router):
            self._router(found, subfolder)
            return
        file = place / found.config_file_name
        config = read_object(file) if is_there(file) else {}
        self._files(subfolder, found.config_file_name, "fit.json", *_READ)
        if is_there(place / _TENSORS):
            sizes = shapes(place / _TENSORS)
            self._link(subfolder, _TENSORS)
            if found in _BUILT_FROM_CONFIG:
                _check_stock_module(found, config, sizes, file)
        # A class with a load of its own would look for a pickle now, which is not staged: say so.
        elif found.load.__func__ is not Module.load.__func__:  # type: ignore[attr-defined]
            _refuse_pickles(place)
        tokenizer = config.get("tokenizer_class")
        if tokenizer is not None and not _is_word_tokenizer(tokenizer):
            raise ValueError(f"{file} has tokenizer_class: {tokenizer!r}, which is no word tokenizer of the host")

    def _router(self, found: type[Module], subfolder: str) -> None:
        names = [name for name in (found.config_file_name, _CONFIG) if is_there(self.folder / subfolder / name)]
        if not names:
            raise ValueError(f"{found.config_file_name} is missing from {self.folder / subfolder}")
        file = self.folder / subfolder / names[0]
        config = read_object(file)
        types = config.get("types")
        if not isinstance(types, dict) or not all(isinstance(kind, str) for kind in types.values()):
            raise ValueError(f"{file} has no 'types' that name the modules of the routes")
        self._link(subfolder, names[0])
        for name, kind in types.items():
            route = f"{subfolder}/{name}" if subfolder else name
            _check_inside(route, file)
            self._module(kind, route)

    def _adapter(self, subfolder: str) -> None:
        """Check an adapter, and stage the base model that it names as if it had been asked for itself."""
        file = self.folder / subfolder / _ADAPTER
        config = read_object(file)
        keys.check_adapter(config, file)
        if not is_there(file.parent / _ADAPTER_TENSORS):
            _refuse_pickles(file.parent, "adapter_model.bin")
            raise ValueError(f"{_ADAPTER_TENSORS} is missing from {file.parent}; save the adapter again")
        shapes(file.parent / _ADAPTER_TENSORS)
        self._link(subfolder, _ADAPTER_TENSORS)
        if is_there(file.parent / _CONFIG):
            return  # the base model is in the same folder
        # The base model goes through the same checks, and the adapter's file is rewritten to name the checked copy.
        name = config.get("base_model_name_or_path")
        if not name:
            raise ValueError(f"{file} names no base_model_name_or_path, and there is no {_CONFIG} beside it")
        inner = Path(tempfile.mkdtemp(dir=self.path, prefix="base-"))
        base = Stage(local_folder(name, config.get("revision")), inner)
        if is_there(base.folder / _ADAPTER):
            raise ValueError(f"{file} names {name!r}, which is an adapter itself; merge that one first")
        base.transformer("")
        self.bases[str(inner)] = name
        staged_file = self.path / subfolder / _ADAPTER
        staged_file.unlink()
        kept = {key: value for key, value in config.items() if key != "revision"}
        staged_file.write_text(json.dumps(kept | {"base_model_name_or_path": str(inner)}), encoding="utf-8")

    def _weights(self, subfolder: str, config: dict[str, Any]) -> Shapes:
        """Link the weights of a model of transformers, whole or in shards, and return their shapes."""
        place = self.folder / subfolder
        chosen = config.get("transformers_weights")
        if chosen is not None and not _is_safetensors_name(chosen, _INDEX):
            raise ValueError(f"{place / _CONFIG} has transformers_weights: {chosen!r}; only safetensors are opened")
        names = [_TENSORS, _INDEX] if chosen is None else [chosen]
        name = next((name for name in names if is_there(place / name)), None)
        if name is None:
            _refuse_pickles(place)
            raise ValueError(f"{place} has neither {' nor '.join(names)}; copy or download the model again")
        self._link(subfolder, name)
        if name.endswith(".safetensors"):
            return shapes(place / name)
        # An index is a list of names, each of which would be opened: they must be safetensors beside it.
        parts = read_object(place / name).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise ValueError(f"{place / name} has no weight_map")
        found: Shapes = {}
        for part in sorted({str(part) for part in parts.values()}):
            if not _is_safetensors_name(part):
                raise ValueError(f"{place / name} names {part!r}; only safetensors beside it are opened")
            found |= shapes(place / part)
            self._link(subfolder, part)
        return found

    def _files(self, subfolder: str, *read: str) -> None:
        """Link the regular files of a folder that a module may read; of the names given, only regular files may be."""
        place = self.folder / subfolder
        for name in read:
            is_there(place / name)
        for file in sorted(place.iterdir()) if place.is_dir() else []:
            index = file.name.endswith(_INDEX)
            if file.suffix in _SUFFIXES and not index and file.name not in (MODULES, HOST_CONFIG) and file.is_file():
                self._link(subfolder, file.name)
        for name in read:
            if name.endswith("config.json") and is_there(place / name):
                read_object(place / name)

    def _link(self, *name: str) -> None:
        """Make a file of the folder visible."""
        target = self.path.joinpath(*name)
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        source = self.folder.joinpath(*name).resolve()
        try:
            target.symlink_to(source)
        except OSError:  # Windows allows links to few
            shutil.copyfile(source, target)


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """Check a model folder, and show the host a folder with nothing but what loading it needs."""
    with tempfile.TemporaryDirectory(prefix="st-plugins-") as path:
        stage = Stage(folder, Path(path))
        stage.fill()
        yield stage


def module_class(kind: str, folder: Path) -> type[Module]:
    """Import the class of a module type; only modules of the host and of this package are."""
    if not kind.startswith(_ALLOWED):
        raise ValueError(
            f"{folder} names the module type {kind!r}; allowed are types that start with "
            f"{' or '.join(map(repr, _ALLOWED))}. If you trust its code, load it with "
            "SentenceTransformer(path, trust_remote_code=True)"
        )
    if any(not part.isidentifier() or part.startswith("_") for part in kind.split(".")):  # a __main__ runs a program
        raise ValueError(f"{folder} names the module type {kind!r}, which is no public name")
    try:
        found = _imported(kind)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{folder} names the module type {kind!r}, which is not installed: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Module)):
        raise ValueError(f"{folder} names {kind!r}, which is not a sentence-transformers module")
    return found


def _imported(kind: str) -> Any:
    package, _, name = kind.rpartition(".")
    # The host's older names, which servers look for; importing them from there is deprecated.
    package = "sentence_transformers.sentence_transformer.modules" if package == _OLDER else package
    return getattr(importlib.import_module(package), name)


def _module_rows(folder: Path) -> list[dict[str, Any]]:
    file = folder / MODULES
    rows = read_json(file)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file} must hold a list with at least one module")
    for row in rows:
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("path", "type")):
            raise ValueError(f"{file} has an entry without a 'path' and a 'type': {row!r}")
        _check_inside(row["path"], file)
    return rows


def _check_inside(path: str, file: Path) -> None:
    """Refuse a path of a module that leads out of the model's folder; links that its owner made may."""
    parts = path.replace("\\", "/").split("/")
    if ".." in parts or "\0" in path or Path(path).is_absolute() or PureWindowsPath(path).anchor:
        raise ValueError(f"{file} has the path {path!r}, which leads out of the folder")


def _refuse_pickles(place: Path, *more: str) -> None:
    """Say that weights in a pickle are not opened, where there are no others."""
    names = ("pytorch_model.bin", "pytorch_model.bin.index.json", *more)
    found = next((name for name in names if (place / name).exists()), None)
    if found is not None:
        raise ValueError(
            f"{place} has its weights in {found} only, and opening a pickle can run code: safetensors only. Get the "
            "model's model.safetensors; or, if you trust the file, load it with SentenceTransformer(path) and save it "
            "again, which writes safetensors"
        )


def _check_stock_module(found: type[Module], config: dict[str, Any], sizes: Shapes, file: Path) -> None:
    activation = config.get("activation_function")
    if activation is not None and not _is_activation(activation):
        raise ValueError(
            f"{file} has activation_function: {activation!r}, but only modules of torch.nn are imported; replace it"
        )
    given = {key: value for key, value in config.items() if key != "activation_function"}
    renamed = {found.config_key_renames.get(key, key): value for key, value in given.items()}
    check_sizes(found.__name__, renamed, sizes, str(file), lambda: found(**renamed))


def _check_activations(config: dict[str, Any], file: Path) -> None:
    """Refuse what the host's CrossEncoder would import and call: any name that begins with ``torch``."""
    nested = config.get("sentence_transformers")
    for place in (config, nested if isinstance(nested, dict) else {}):
        for key in ("activation_fn", "sbert_ce_default_activation_function"):
            if place.get(key) is not None and not _is_activation(place[key]):
                raise ValueError(f"{file} has {key}: {place[key]!r}, but only modules of torch.nn are imported")


def _is_safetensors_name(name: Any, *more: str) -> bool:
    """Return whether this is the name of a file of safetensors in the same folder."""
    return isinstance(name, str) and name.endswith((".safetensors", *more)) and not {"/", "\\"} & set(name)


def _is_activation(name: Any) -> bool:
    if not isinstance(name, str) or not name.startswith("torch.nn."):
        return False
    # Not imported by its name: importing runs code, and torch.nn has it already.
    found = getattr(nn, name.rpartition(".")[2], None)
    return (
        isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith("torch.nn.modules.")
    )


def _is_word_tokenizer(name: Any) -> bool:
    if not isinstance(name, str) or not name.startswith("sentence_transformers."):
        return False
    try:
        found = _imported(name)
    except (ImportError, AttributeError):
        return False
    return isinstance(found, type) and issubclass(found, WordTokenizer)
