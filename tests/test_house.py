"""The house keeps its rules: who may import whom, what a shelf shows, and how long a file may be."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import re
import typing
from collections import defaultdict
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import st_plugins

ROOT = Path(st_plugins.__file__).parent
SHELVES = ("augment", "losses", "matching", "modules", "training")
PUBLIC = ("adaptation", "compression", "data", "evaluation", "explain", "geometry", "miniature", "scale", "serving")
LOOSE = 3
LINES = 400
COMMENTS = 0.02
# What a method may import besides core. The trainer stands on top of its room: it measures what it has trained.
BELOW = {"core", "data", "io", "report"}
TRAINER, MEASURES = "methods.contrastive.train_", {"evaluation", "geometry"}


@cache
def files() -> dict[str, Path]:
    """Return every module by its dotted name below the package; a package has the name of its folder."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(source: str, name: str) -> set[str]:
    """Return whom a file imports, inside functions and for type checkers too; the version is no import."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            full = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for what in full:
            if what.split(".")[0] == "st_plugins" and what != "st_plugins.__version__":
                below = what.removeprefix("st_plugins").lstrip(".")
                while below not in files():  # the name of a class or function is no file
                    below = below.rpartition(".")[0]
                found.add(below)
    return found


@cache
def imports() -> dict[str, set[str]]:
    """Return whom every file imports."""
    return {name: imported(path.read_text(encoding="utf-8"), name) for name, path in files().items()}


def room(name: str) -> str:
    """Return the folder that a file stands in: a room for each method, and everything else at the top."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] == "methods" and len(parts) > 1 else 1])


def sold() -> dict[str, Any]:
    """Return everything that a shelf or a public folder exports."""
    found = {}
    for shelf in ("", *SHELVES, *PUBLIC):
        module = importlib.import_module(f"st_plugins.{shelf}".rstrip("."))
        found |= {f"{shelf}.{name}".lstrip("."): getattr(module, name) for name in module.__all__}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return a circle of a graph, or nothing."""
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_the_circle_finder_finds_circles() -> None:
    assert circle({"a": {"b"}, "b": {"c"}}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


def test_imports_inside_functions_and_for_type_checkers_are_seen() -> None:
    source = """
def late():
    from st_plugins.core.files import write_record
if TYPE_CHECKING:
    import st_plugins.io
from st_plugins import __version__
"""
    assert imported(source, "made up") == {"core.files", "io"}


def test_no_method_imports_another() -> None:
    wrong = [
        f"{name} -> {other}"
        for name, others in imports().items()
        for other in others
        if name.startswith("methods.") and other.startswith("methods.") and room(name) != room(other)
    ]
    assert not wrong


def test_a_method_imports_only_what_is_below_it() -> None:
    wrong = []
    for name, others in imports().items():
        allowed = BELOW | (MEASURES if name.startswith(TRAINER) else set())
        wrong += [
            f"{name} -> {other}"
            for other in others
            if name.startswith("methods.") and room(other) != room(name) and other.split(".")[0] not in allowed
        ]
    assert not wrong


def test_no_file_is_in_a_circle() -> None:
    assert circle(imports()) == []


def test_no_folder_is_in_a_circle() -> None:
    folders: dict[str, set[str]] = defaultdict(set)
    for name, others in imports().items():
        folders[room(name)] |= {room(other) for other in others} - {room(name)}
    assert circle(folders) == []


def test_nothing_but_the_command_line_imports_a_shelf() -> None:
    wrong = [
        f"{name} -> {other}"
        for name, others in imports().items()
        for other in others
        if other in SHELVES and room(name) != "cli"
    ]
    assert not wrong


def test_few_modules_stand_loose_at_the_top() -> None:
    loose = {path.stem for path in ROOT.glob("*.py")} - {"__init__", *SHELVES}
    assert len(loose) <= LOOSE, sorted(loose)


@pytest.mark.parametrize("shelf", SHELVES)
def test_a_shelf_only_sells(shelf: str) -> None:
    body = ast.parse(files()[shelf].read_text(encoding="utf-8")).body
    kinds = {type(node) for node in body[1:]}  # after the docstring
    assert kinds <= {ast.ImportFrom, ast.Assign}


@pytest.mark.parametrize("folder", PUBLIC)
def test_every_file_of_a_public_folder_defines_something_for_sale(folder: str) -> None:
    exported = set(importlib.import_module(f"st_plugins.{folder}").__all__)
    for path in (ROOT / folder).glob("*.py"):
        if path.name == "__init__.py":
            continue
        defined = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                defined.add(node.name)
            elif isinstance(node, ast.Assign):
                defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                defined.add(node.target.id)
        assert defined & exported, f"{folder}/{path.name} defines nothing that st_plugins.{folder} sells"


@pytest.mark.parametrize("shelf", ["", *SHELVES, *PUBLIC])
def test_dir_shows_what_is_for_sale(shelf: str) -> None:
    module: ModuleType = importlib.import_module(f"st_plugins.{shelf}".rstrip("."))
    assert set(module.__all__) <= set(dir(module))


def _named(annotation: Any) -> set[type]:
    """Return the classes of this package in an annotation."""
    found = {annotation} if inspect.isclass(annotation) and annotation.__module__.startswith("st_plugins") else set()
    for inner in typing.get_args(annotation):
        found |= _named(inner)
    return found


def test_what_is_returned_can_be_imported() -> None:
    things = sold()
    classes = {thing for thing in things.values() if inspect.isclass(thing)}
    missing = set()
    for name, thing in things.items():
        callables = {name: thing} if inspect.isfunction(thing) else {}
        if inspect.isclass(thing):
            members = inspect.getmembers(thing, lambda member: inspect.isfunction(member) or inspect.ismethod(member))
            callables |= {f"{name}.{key}": member for key, member in members if not key.startswith("_")}
        for where, function in callables.items():
            function = inspect.unwrap(function)
            if not getattr(function, "__module__", "").startswith("st_plugins"):
                continue
            try:
                returned = typing.get_type_hints(function).get("return")
            except NameError:  # a name that is there for type checkers only
                continue
            missing |= {f"{where} -> {kind.__name__}" for kind in _named(returned) - classes}
    assert not missing


def test_no_file_is_long() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files().items()}
    assert {name: length for name, length in lengths.items() if length > LINES} == {}


def test_comments_stand_in_the_code() -> None:
    lines = [line.strip() for path in files().values() for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(line.startswith("#") for line in lines) >= COMMENTS * len(lines)


BRITISH = re.compile(
    r"is(?:e|ed|es|ing|ation)$|labell|colour|neighbour|licence|favour|behaviour|centre(?:d|$|_)", re.IGNORECASE
)
# Words that end so in American English too.
AMERICAN = re.compile(
    r"(?:^|_)(?:noise|raise[sd]?|raising|otherwise|precise|pairwise|wise|promise|premise|advise|exercise|rise)$"
)


def test_identifiers_are_spelled_as_in_america() -> None:
    wrong = set()
    for name, path in files().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for spelled in (getattr(node, "name", None), getattr(node, "id", None), getattr(node, "arg", None)):
                if isinstance(spelled, str) and BRITISH.search(spelled) and not AMERICAN.search(spelled.lower()):
                    wrong.add(f"{name}: {spelled}")
    assert not wrong


def _docstrings(node: ast.AST, for_sale: set[str], path: str, sold_here: bool = False) -> list[str]:
    long = []
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            long += _docstrings(child, for_sale, path, sold_here)
            continue
        private = child.name.startswith("_") and not child.name.startswith("__")
        inside = (sold_here or child.name in for_sale) and not private
        if not inside and "\n\n" in (ast.get_docstring(child) or ""):
            long.append(f"{path}:{child.name}")
        long += _docstrings(child, for_sale, path, inside)
    return long


def test_what_no_shelf_sells_has_one_sentence() -> None:
    names = {name.rpartition(".")[2] for name in sold()}
    # What a base gives to a class that is for sale is for sale.
    names |= {base.__name__ for thing in sold().values() if inspect.isclass(thing) for base in thing.__mro__}
    long = []
    for name, path in files().items():
        if room(name) != "cli":  # a command's docstring is its help
            long += _docstrings(ast.parse(path.read_text(encoding="utf-8")), names, name)
    assert not long


def test_only_shelves_list_what_is_for_sale() -> None:
    lists = {name for name, path in files().items() if "\n__all__ = " in path.read_text(encoding="utf-8")}
    assert lists == {"", *SHELVES, *PUBLIC}
