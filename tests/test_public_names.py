"""What the README says of the public names."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest

import st_plugins

LOOSE = ("__main__", "io", "recipes")  # what users call of these is sold by the package itself
SHELVES = [
    "st_plugins",
    *(f"st_plugins.{one.name}" for one in pkgutil.iter_modules(st_plugins.__path__) if one.name not in LOOSE),
]
# Trains for minutes where it was never called before; the examples and their tests run it.
SLOW = {"pretrained_encoder"}


def _public() -> dict[str, Any]:
    found = {}
    for package in SHELVES:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if (inspect.isclass(thing) or inspect.isfunction(thing)) and name not in SLOW:
                found[f"{package}.{name}"] = thing
    return found


@pytest.mark.parametrize("name", sorted(_public()))
def test_every_public_class_and_function_has_an_example(name: str) -> None:
    """Doctests are collected by pytest, so what is there runs."""
    assert ">>>" in (_public()[name].__doc__ or ""), f"{name} has no runnable example"
