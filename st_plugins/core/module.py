"""The bases of saved modules: a configuration in JSON, tensors in safetensors, and nothing else."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.base.modules import Module
from torch import Tensor, nn
from torch.nn.functional import normalize as unit_length
from typing_extensions import Self

from st_plugins.core.files import write_record, write_tensors
from st_plugins.core.loading.files import Shapes, read_object, read_tensors, regular, shapes
from st_plugins.core.loading.records import naming_unknown
from st_plugins.core.loading.sizes import check_sizes
from st_plugins.core.precision import precise
from st_plugins.core.rows import as_floating_point, refuse_whole_numbers

Array = NDArray[np.floating]

TENSORS = "model.safetensors"
RECORD = "fit.json"


class StoredModule(Module):
    """A module saved as ``config.json``, the arguments of its constructor, and ``model.safetensors``."""

    # Not by the host's helpers: they would also read a pickle, and they refuse recurrent networks on a GPU, whose
    # weights share their memory.

    config_defaults: ClassVar[dict[str, Any]]
    config_parts: ClassVar[tuple[str, ...]] = ()  # arguments that are no configuration, see `load_parts`

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Read the configuration's keys and defaults off the constructor, in its order."""
        super().__init_subclass__(**kwargs)
        # Defaults are not written, so that a later version can read what an earlier one saved, and change them.
        arguments = inspect.signature(cls).parameters
        defaults = {name: arguments[name].default for name in arguments if name not in cls.config_parts}
        cls.config_keys = list(defaults)
        cls.config_defaults = {
            name: list(default) if isinstance(default, tuple) else default  # as JSON has it
            for name, default in defaults.items()
            if default is not inspect.Parameter.empty
        }

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Return the module of this class that a model has."""
        found = [module for module in model.modules() if isinstance(module, cls)]
        if len(found) != 1:
            raise ValueError(
                f"the model must have one {cls.__name__}, but has {len(found)}; build it with "
                f"SentenceTransformer(modules=[..., {cls.__name__}(...)])"
            )
        return found[0]

    def get_config_dict(self) -> dict[str, Any]:
        """Return the arguments of the constructor, defaults left out."""
        known, defaults = {key: getattr(self, key) for key in self.config_keys}, self.config_defaults
        return {key: value for key, value in known.items() if key not in defaults or value != defaults[key]}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the module's files into an existing folder; tensors always as safetensors."""
        self.save_config(output_path)
        write_tensors(Path(output_path) / TENSORS, self.state_dict())

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Read a saved module back, bit for bit."""

        def find(name: str) -> Path:
            path = cls.load_file_path(
                model_name_or_path,
                filename=name,
                subfolder=subfolder,
                token=token,
                cache_folder=cache_folder,
                revision=revision,
                local_files_only=local_files_only,
            )
            if path is None:
                raise ValueError(
                    f"{name} is missing from {Path(model_name_or_path) / subfolder}; save the model again"
                )
            return regular(Path(path))

        config = find(cls.config_file_name)
        return cls.read((init_defaults or {}) | read_object(config), config, find)

    @classmethod
    def read(cls, values: dict[str, Any], config: Path, find: Callable[[str], Path]) -> Self:
        """Build the module from its configuration and its other files."""
        tensors = find(TENSORS)
        with naming_unknown(values, cls.config_keys, config, cls.__name__):
            cls.check_stored(values, shapes(tensors), str(config))  # before memory is asked for
            state = read_tensors(tensors)
            parts = cls.load_parts(find, state)
            try:
                module = cls(**parts, **{key: value for key, value in values.items() if key in cls.config_keys})
            except (TypeError, ValueError) as error:
                raise ValueError(f"{config} does not describe a {cls.__name__}: {error}") from error
            try:
                module.load_state_dict(state)
            except RuntimeError as error:
                raise ValueError(f"{tensors} does not fit {config}: {error}") from error
        module.load_record(find)
        return module

    @classmethod
    def check_stored(cls, values: dict[str, Any], held: Shapes, where: str) -> None:
        """Compare the configuration with the shapes of the tensors."""
        known = {key: value for key, value in values.items() if key in cls.config_keys}
        check_sizes(cls.__name__, known, held, where, lambda: cls(**known))

    @classmethod
    def load_parts(cls, find: Callable[[str], Path], state: dict[str, Tensor]) -> dict[str, Any]:
        """Return the arguments of the constructor that are no configuration; here there are none."""
        return {}

    def load_record(self, find: Callable[[str], Path]) -> None:
        """Take over what is saved beside the tensors; here there is nothing."""


class FittedModule(StoredModule):
    """A module that is fitted to embeddings and maps them, and notes in ``fit.json`` what it was fitted to."""

    embedding_dimension: int
    normalize: bool

    def __init__(self) -> None:
        super().__init__()
        self._sources: dict[str, int] = {}

    @property
    def sources(self) -> dict[str, int]:
        """Number of embeddings fitted on, by source."""
        return dict(self._sources)

    @abstractmethod
    def map(self, rows: Tensor) -> Tensor:
        """Map rows of the right width, in the type in which they come."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Return what `save` notes besides the sources; raises a ValueError if the module is not fitted."""

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Replace ``features["sentence_embedding"]`` by what it is mapped to, in the type that it came in."""
        embeddings: Tensor = features["sentence_embedding"]
        # In half precision 1 / √λ would overflow: computed in float32 at least.
        with torch.autocast(embeddings.device.type, enabled=False):
            mapped = self.map(self.checked(embeddings))
            mapped = unit_length(mapped, dim=-1) if self.normalize else mapped
        features["sentence_embedding"] = mapped.to(embeddings.dtype)
        return features

    @torch.no_grad()
    def transform(self, embeddings: Array) -> Array:
        """Map an array ``(N, embedding_dimension)`` of a floating-point type; the result is of the same type."""
        return np.asarray(self.forward({"sentence_embedding": self.tensor(embeddings)})["sentence_embedding"].cpu())

    def tensor(self, array: Array) -> Tensor:
        """Return an array as a tensor where the parameters are; a TypeError refuses whole numbers."""
        given = as_floating_point(array, type(self).__name__)
        return given.to(next((parameter.device for parameter in self.parameters()), given.device))

    def checked(self, rows: Tensor) -> Tensor:
        """Return rows of the right width in the type to compute in."""
        if rows.shape[-1] != self.embedding_dimension:
            raise ValueError(
                f"sentence_embedding has width {rows.shape[-1]}, but this {type(self).__name__} was made for "
                f"{self.embedding_dimension}"
            )
        refuse_whole_numbers(rows.dtype, type(self).__name__)
        return precise(rows)

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the module's files into an existing folder, and beside them what it was fitted to."""
        record = self.record()  # refused before anything is written
        super().save(output_path)
        write_record(Path(output_path) / RECORD, sources=self._sources, **record)
