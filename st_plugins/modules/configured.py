"""What our modules share about their configuration: defaults are not written, and what is unknown is not fatal."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from sentence_transformers.base.modules import Module
from typing_extensions import Self

__all__ = ["ConfiguredModule"]

logger = logging.getLogger(__name__)


class ConfiguredModule(Module):
    """A module whose ``config_keys`` are arguments of its constructor.

    Attributes:
        config_defaults: Values of the arguments that have a default.
    """

    config_defaults: ClassVar[dict[str, Any]]

    def get_config_dict(self) -> dict[str, Any]:
        """Return the constructor arguments, defaults left out."""
        known, defaults = {key: getattr(self, key) for key in self.config_keys}, self.config_defaults
        return {key: value for key, value in known.items() if key not in defaults or value != defaults[key]}

    @classmethod
    def from_config(cls, config: dict[str, Any], where: str, **parts: Any) -> Self:
        """Build a module from a stored configuration.

        Args:
            config: Its content; keys that are no ``config_keys`` are ignored with a warning.
            where: File it came from, for messages.
            **parts: Further arguments of the constructor, which are no configuration.

        Returns:
            The module.

        Raises:
            ValueError: An argument is missing or not allowed.
        """
        unknown = sorted(set(config) - set(cls.config_keys))
        if unknown:
            logger.warning("Ignoring %s in %s: written by a newer version?", unknown, where)
        try:
            return cls(**parts, **{key: value for key, value in config.items() if key not in unknown})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} does not describe a {cls.__name__}: {error}") from error
