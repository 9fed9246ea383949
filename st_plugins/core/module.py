"""The base of saved modules: a configuration in JSON, tensors in safetensors, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save_file
from sentence_transformers.base.modules import Module
from torch import Tensor, nn
from typing_extensions import Self

from st_plugins.core.loading.files import Shapes, read_object, read_tensors, regular, shapes
from st_plugins.core.loading.sizes import check_sizes

__all__ = ["RECORD", "TENSORS", "ConfiguredModule", "StoredModule", "find_file"]

logger = logging.getLogger(__name__)

TENSORS = "model.safetensors"
RECORD = "fit.json"


def find_file(module: type[Module], name: str, model: str, subfolder: str, **hub: Any) -> Path:
    """Return where a file of a saved module is."""
    path = module.load_file_path(model, filename=name, subfolder=subfolder, **hub)
    if path is None:
        raise ValueError(f"{name} is missing from {Path(model) / subfolder}; save the model again")
    return regular(Path(path))


class ConfiguredModule(Module):
    """A module whose ``config_keys`` are arguments of its constructor."""

    config_defaults: ClassVar[dict[str, Any]]

    def get_config_dict(self) -> dict[str, Any]:
        """Return the constructor arguments, defaults left out."""
        known, defaults = {key: getattr(self, key) for key in self.config_keys}, self.config_defaults
        return {key: value for key, value in known.items() if key not in defaults or value != defaults[key]}

    @classmethod
    def from_config(cls, config: dict[str, Any], where: str, **parts: Any) -> Self:
        """Build a module from a stored configuration."""
        unknown = sorted(set(config) - set(cls.config_keys))
        if unknown:
            logger.warning("Ignoring %s in %s: written by a newer version?", unknown, where)
        try:
            return cls(**parts, **{key: value for key, value in config.items() if key not in unknown})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} does not describe a {cls.__name__}: {error}") from error


class StoredModule(ConfiguredModule):
    """A module saved as ``config.json`` and ``model.safetensors``, and read back bit for bit."""

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

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        self.save_config(output_path)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, Path(output_path) / TENSORS)

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
        hub: dict[str, Any] = {"token": token, "cache_folder": cache_folder, "revision": revision}
        hub |= {"local_files_only": local_files_only}

        def find(name: str) -> Path:
            return find_file(cls, name, model_name_or_path, subfolder, **hub)

        config = find(cls.config_file_name)
        return cls.read((init_defaults or {}) | read_object(config), config, find)

    @classmethod
    def read(cls, values: dict[str, Any], config: Path, find: Callable[[str], Path]) -> Self:
        """Build the module from its files."""
        tensors = find(TENSORS)
        cls.check_stored(values, shapes(tensors), str(config))
        state = read_tensors(tensors)
        module = cls.from_config(values, str(config), **cls.load_parts(find, state))
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{tensors} does not fit {config}: {error}") from error
        module.load_record(find)
        return module

    @classmethod
    def check_stored(cls, values: dict[str, Any], held: Shapes, where: str) -> None:
        """Compare the configuration with the shapes of the tensors, before memory is asked for."""
        known = {key: value for key, value in values.items() if key in cls.config_keys}
        check_sizes(cls.__name__, known, held, where, lambda: cls(**known))

    @classmethod
    def load_parts(cls, find: Callable[[str], Path], state: dict[str, Tensor]) -> dict[str, Any]:
        """Return arguments of the constructor that are no configuration."""
        return {}

    def load_record(self, find: Callable[[str], Path]) -> None:
        """Take over what is saved beside the tensors; here there is nothing."""
